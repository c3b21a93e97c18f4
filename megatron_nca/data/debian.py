"""The documentation of a Debian machine as texts: what packages put under /usr/share/doc, and manual pages."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from megatron_nca.data.given import files_below
from megatron_nca.errors import DataError

NAMES = re.compile(r"(?:copyright|(?:readme|news|authors|todo|faq)(?:\..*)?|.*\.(?:txt|md|rst))(?:\.gz)?",
                   re.IGNORECASE)
"""Files of text under share/doc, written by people. Changelogs and generated pages are left out."""

MANUAL = re.compile(r"share/man/man[1-9]/[^/]*\.[1-9][^/]*")
"""English manual pages; other languages have folders of their own."""


def debian_files(root: Path) -> Iterator[tuple[str, bytes]]:
    """(path below `root`, content), sorted by path: share/doc, and English manual pages as they are written, in troff.

    Compressed files are decompressed. Links are left out. A minimal machine may have copyright files alone. Raises
    DataError if there is nothing, or a file or folder cannot be read.
    """
    folders = [root / name for name in ("share/doc", "share/man") if (root / name).is_dir()]
    there = [path for folder in folders for path in files_below(folder)[0]]
    names = {path.relative_to(root).as_posix(): path for path in there}
    paths = {name: path for name, path in names.items()
             if (NAMES.fullmatch(path.name) if name.startswith("share/doc/") else MANUAL.fullmatch(name))
             and path.is_file() and not path.is_symlink()}
    if not paths:
        raise DataError(f"{root}/share/doc: holds no documentation. Cure: use a Debian machine, or give a text with "
                        "--input.")
    for name, path in sorted(paths.items()):
        try:
            content = path.read_bytes()
            yield name, gzip.decompress(content) if path.suffix == ".gz" else content
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}). "
                            "Cure: install its package again.") from error
        except (EOFError, zlib.error) as error:
            raise DataError(f"{path}: is damaged ({error}). Cure: install its package again.") from error
