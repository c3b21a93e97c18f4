"""Files appear under their final name whole or not at all."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_nca.errors import DataError


@contextlib.contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a folder at; on success it is synced and renamed to `path`.

    On failure what was written is removed and `path` is as it was. A folder already at `path` is replaced.
    Raises DataError when the disk is full or the place cannot be written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        sync(aside)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(aside, path)
        _sync_one(path.parent)
    except OSError as error:
        raise translate(error, path) from error
    finally:
        remove(aside)


def translate(error: OSError, path: Path) -> DataError:
    """An operating system's error as one sentence with its cure."""
    cures = {
        errno.ENOSPC: "free some space or choose another folder",
        errno.EDQUOT: "free some of your quota",
        errno.EACCES: "choose a folder you may write to",
        errno.EROFS: "choose a folder you may write to",
    }
    cure = cures.get(error.errno, "check the path")
    return DataError(
        f"{path}: cannot be written ({error.strerror or error}). Nothing was left under that name. Cure: {cure}."
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with publish(path) as aside:
        aside.write_text(text, encoding="utf-8")


def try_lock(path: Path) -> int | None:
    """Lock the file `path` (made if need be) until the descriptor returned is closed; None if another process holds it.

    Children that inherit the descriptor hold the lock too. Raises DataError where the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise translate(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def sync(path: Path) -> None:
    """Force a file, or a folder and all files in it, to the disk."""
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
