"""The documentation of a Debian machine as texts: what packages put under /usr/share/doc, and manual pages."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from megatron_nca.errors import DataError

NAMES = re.compile(r"(?:copyright|(?:readme|news|authors|todo|faq)(?:\..*)?|.*\.(?:txt|md|rst))(?:\.gz)?",
                   re.IGNORECASE)
"""Files of text under share/doc, written by people. Changelogs and generated pages are left out."""


def debian_files(root: Path = Path("/usr")) -> Iterator[tuple[str, bytes]]:
    """(path below `root`, content), sorted by path: share/doc, and English manual pages as they are written, in troff.

    Compressed files are decompressed. Links are left out. A minimal machine may have copyright files alone. Raises
    DataError if there is nothing, or a file cannot be read.
    """
    found = [path for path in (root / "share/doc").rglob("*") if NAMES.fullmatch(path.name)]
    found += (root / "share/man").glob("man[1-9]/*.[1-9]*")
    paths = {path.relative_to(root).as_posix(): path for path in found if path.is_file() and not path.is_symlink()}
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
