#!/usr/bin/env python3
"""Submit a recipe's whole plan to Slurm: `python slurm/submit.py RECIPE --cluster FILE`; the same as a verb is
`megatron-nca submit`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from megatron_nca.__main__ import main  # a clone that is not installed works too

if __name__ == "__main__":
    sys.exit(main(["submit", *sys.argv[1:]]))
