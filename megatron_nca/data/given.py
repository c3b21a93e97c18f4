"""Files that a user named, and those below a folder. What cannot be read is one message that names it."""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_nca import files
from megatron_nca.errors import DataError

_PIPES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""Where even a file is another one for another process."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around what reads `path`. Raises DataError in place of an operating system's error."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). "
                        "Cure: check the path and its permissions.") from error


def check_file(path: Path) -> None:
    """Raises DataError if there is no plain file that this process may read."""
    pipe = f"{path}: is a pipe or device, which cannot be read twice. Cure: give a file."
    if str(path).startswith(_PIPES):
        raise DataError(pipe)
    with reading(path):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            what = "is a link to a file that is missing" if path.is_symlink() else "is missing"
            raise DataError(f"{path}: {what}. Cure: check the path.") from error
        if stat.S_ISDIR(mode):
            raise DataError(f"{path}: is a folder, not a file. Cure: name its files.")
        if not stat.S_ISREG(mode):
            raise DataError(pipe)
        open(path, "rb").close()


def described(path: Path) -> dict[str, object]:
    """What an origin says of an input; reads all of it. Raises DataError."""
    with reading(path):
        return {"name": path.name, "bytes": path.stat().st_size, "sha256": files.sha256(path)}


def files_below(folder: Path, is_left_out: Callable[[Path], bool] = lambda path: False
                ) -> tuple[list[Path], list[Path]]:
    """All files in `folder` and its folders, in the order of their names, links to files among them; and the links to
    folders, which are not entered. Raises DataError for a folder that cannot be read."""
    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). "
                        "Cure: check the path and its permissions.") from error

    found, links = [], []
    for root, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not is_left_out(Path(root, name))]
        links += [Path(root, name) for name in folders if os.path.islink(os.path.join(root, name))]
        found += [path for path in (Path(root, name) for name in names) if not is_left_out(path)]
    return sorted(found), sorted(links)


def outputs_of(prefix: Path, parts: Sequence[Path]) -> Callable[[Path], bool]:
    """Whether a path is one that preprocess_corpus.py writes for this --output-prefix and --parts, or what it leaves
    of one when it is killed."""
    names = re.compile(rf"\.?{re.escape(prefix.name)}(_\d+-of-\d+)?"
                       r"(\.parts|_rejected\.jsonl|_.+_document\.(bin|idx|json))(\.[0-9a-f-]+\.tmp)?")
    folder, others = prefix.parent.resolve(), {path.resolve() for path in parts}

    def is_output(path: Path) -> bool:
        if names.fullmatch(path.name) and path.parent.resolve() == folder:
            return True
        return bool(others) and path.resolve() in others

    return is_output
