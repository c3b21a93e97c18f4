#!/usr/bin/env bash
# Say which system packages are missing, before pip or the compiler fail in their own words.
# usage: requirements/check_system.sh PYTHON
set -euo pipefail
python=${1:?usage: requirements/check_system.sh PYTHON}

if ! command -v "$python" > /dev/null; then
    echo "$python: no such interpreter. Cure: install Python 3.11 (apt-get install -y python3), or: make PYTHON=python3.12" >&2
    exit 1
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
    3.10 | 3.11 | 3.12) ;;
    *)
        echo "$python is Python $version; this project needs 3.10, 3.11 or 3.12. Cure: make PYTHON=python3.11" >&2
        exit 1
        ;;
esac

missing=()
"$python" -c 'import venv, ensurepip' 2> /dev/null || missing+=(python3-venv)
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
    || missing+=(python3-dev)
if command -v g++ > /dev/null; then
    echo '#include <zlib.h>' | g++ -E -x c++ - > /dev/null 2>&1 || missing+=(zlib1g-dev)
else
    missing+=(g++ zlib1g-dev)
fi
if [ ${#missing[@]} -gt 0 ]; then
    echo "Missing on this machine: ${missing[*]}. Install with:" >&2
    echo "    apt-get install -y ${missing[*]}" >&2
    exit 1
fi
