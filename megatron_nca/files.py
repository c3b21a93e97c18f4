"""Files appear under their final name whole or not at all."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from megatron_nca.errors import DataError, explain

Item = TypeVar("Item")
LONGEST_NAME = 255 - len(".." "1234567-12345678.tmp")
"""Bytes of a file's name; while it is written it has more."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextlib.contextmanager
def publish(path: Path, new: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a folder at; on success it is synced and renamed to `path`.

    On failure what was written is removed and `path` is as it was. A folder replaces a folder already at `path`; with
    `new` only an empty one, so that of two that make it at the same time the first has it. Raises DataError when the
    disk is full, the place cannot be written, or a file is to go where a folder stands.
    """
    path = Path(path)
    aside = _aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        sync(aside)
        if not aside.is_dir():
            refuse_folder(path)
        elif path.is_dir() and not path.is_symlink():
            if new and any(path.iterdir()):
                raise DataError(f"{path}: was made by another process meanwhile, and is left as it is. "
                                "Cure: look at what is there, or choose another folder.")
            shutil.rmtree(path)
        os.replace(aside, path)
        _sync_one(path.parent)
    except OSError as error:
        raise translate(error, path) from error
    finally:
        remove(aside)


def left_aside(path: Path) -> list[Path]:
    """What lies beside `path` for it to be published by a process that this machine does not have (any more)."""
    found = path.parent.glob(f".{glob.escape(path.name)}.*.tmp")
    return [each for each in sorted(found) if (writer := re.fullmatch(r"(\d+)-[0-9a-f]{8}", each.name.split(".")[-2]))
            and not Path(f"/proc/{writer[1]}").exists()]


def refuse_folder(path: Path) -> None:
    """Raise DataError if a folder stands where a file is to be, before the work that it is made from."""
    if path.is_dir() and not path.is_symlink():
        raise DataError(f"{path}: is a folder. Cure: name a file, or move it away.")


def check_replaced(folder: Path, names: Collection[str], setting: str, also: Collection[str] = ()) -> None:
    """Raise DataError, naming the setting, unless a report may take the place of what is at `folder`: nothing, an empty
    folder, or a folder of files of all these names, perhaps those of `also`, and no others."""
    there = set(os.listdir(folder)) if folder.is_dir() else None
    if there or (there is None and (folder.exists() or folder.is_symlink())):
        if there is None or not set(names) <= there:
            raise DataError(explain(setting, str(folder), "exists and is no report.", "choose another folder."))
        if others := sorted(there - {*names, *also}):
            reason = f"holds {others[0]} beside a report, which would be lost."
            raise DataError(explain(setting, str(folder), reason, "move it away, or choose another folder."))


def check_free(folder: Path, need: int, setting: str, value: object, cure: str) -> None:
    """Raises DataError, naming the setting, if the disk of `folder`, made or not, has less than `need` bytes free."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if need > free:
        reason = f"needs {size_text(need)}, and in {folder} {size_text(free)} are free."
        raise DataError(explain(setting, value, reason, cure))


def size_text(size: float) -> str:
    """Bytes for a reader: 0 kB, 0.4 kB, 217.1 kB, 2.1 MB, 16.38 GB."""
    for unit, name, digits in ((1e9, "GB", 2), (1e6, "MB", 1)):
        if size >= unit:
            return f"{size / unit:,.{digits}f} {name}"
    return f"{size / 1e3:.1f} kB" if size else "0 kB"


def check_name(path: Path) -> None:
    """Raise DataError if a file's name is too long to be written aside first."""
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise DataError(f"{path}: its name is longer than {LONGEST_NAME} bytes. Cure: choose a shorter one.")


def create_folder(path: Path, contents: Mapping[str, bytes]) -> bool:
    """Make the folder `path` with these files, whole or not at all; False if a file or a folder with files is there.

    Of several processes that make one folder at the same time, one succeeds. Raises DataError.
    """
    path = Path(path).resolve()
    aside = _aside(path)
    try:
        aside.mkdir(parents=True)
        for name, content in contents.items():
            (aside / name).write_bytes(content)
        sync(aside)
        try:
            os.rename(aside, path)  # over an empty folder or nothing; anything else stays
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                return False
            raise
        _sync_one(path.parent)
        return True
    except OSError as error:
        raise translate(error, path) from error
    finally:
        remove(aside)


def _aside(path: Path) -> Path:
    """A name beside `path` that no other process takes, on this machine or another that shares the disk."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


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


def json_text(value: object, indent: int | None = None) -> str:
    """JSON in readable letters, which UTF-8 can write: a byte of a file's name that is no UTF-8, half of a surrogate
    pair to Python, stands as an escape and is read back as it was."""
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", json.dumps(value, indent=indent, ensure_ascii=False))


def take_number(folder: Path, text: str) -> int:
    """Claim the next number by a file of that name in `folder`, with `text`; no two processes get the same one.

    Raises DataError where the file cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            number = highest_number(folder) + 1
            try:
                descriptor = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                continue
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            return number
    except OSError as error:
        raise translate(error, folder) from error


def highest_number(folder: Path) -> int:
    """The last that `take_number` gave there; 0: none."""
    try:
        return max((int(name) for name in os.listdir(folder) if name.isdecimal()), default=0)
    except FileNotFoundError:
        return 0


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items in their order; the next one is made in a thread while the caller works on the last."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item
            del item  # before the one after the next is made


class EarlySync:
    """Sends what is written to a file to its disk while more is written, so that the last fsync finds little to do.

    Left to itself the kernel begins with it when a tenth of the memory waits, and with a smaller file in the end.
    """

    _STEP_BYTES = 1 << 27

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._thread = descriptor, ThreadPoolExecutor(1)
        self._waiting, self._under_way = 0, None

    def wrote(self, count: int) -> None:
        """`count` more bytes were written. Raises the OSError of an earlier sync: the kernel says once what is lost."""
        self._waiting += count
        if self._waiting < self._STEP_BYTES:
            return
        if self._under_way is not None:
            if not self._under_way.done():
                return
            self._under_way.result()
        self._under_way, self._waiting = self._thread.submit(os.fsync, self._descriptor), 0

    def close(self) -> None:
        """Before the file is closed. Raises OSError."""
        self._thread.shutdown()
        if self._under_way is not None:
            self._under_way.result()


class HashedFile(io.RawIOBase):
    """A new file that is written from begin to end and hashed meanwhile, in a thread; no file is read for its hash.

    The hash may be up to `lag` writes behind, whose data the caller then leaves as they are; 0: it may change them.
    """

    _KEPT_LAG = 4

    def __init__(self, path: Path, lag: int = 0) -> None:
        self._lag, self._hashing = lag, deque()
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115  (closed with this)
        self._thread, self._digest, self._bytes = ThreadPoolExecutor(1), hashlib.sha256(), 0
        self._early = EarlySync(self._file.fileno())

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:
        return self._write(data, self._lag)

    def write_kept(self, data: bytes | memoryview) -> int:
        """The same with data that stay as they are until the file is closed: the hash may lag whatever `lag` is."""
        return self._write(data, self._KEPT_LAG)

    def _write(self, data: bytes | memoryview, lag: int) -> int:
        view = memoryview(data).cast("B")
        self._hashing.append(self._thread.submit(self._digest.update, view))
        done = 0
        try:
            while done < len(view):
                done += self._file.write(view[done:])
        finally:
            self._wait_for_hash(lag)
        self._bytes += done
        self._early.wrote(done)
        return done

    def _wait_for_hash(self, behind: int) -> None:
        while len(self._hashing) > behind:
            self._hashing.popleft().result()

    def tell(self) -> int:
        return self._bytes

    def fileno(self) -> int:
        return self._file.fileno()

    def record(self) -> dict[str, object]:
        """What a file list says of it."""
        self._wait_for_hash(0)
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        self._wait_for_hash(0)
        self._thread.shutdown()
        with self._file:
            self._early.close()


def try_lock(path: Path, shared: bool = False) -> int | None:
    """Lock the file `path` (made if need be) until the descriptor returned is closed; None if another process holds it.

    `shared`: with others that lock it so. Children that inherit the descriptor hold the lock too. Raises DataError
    where the file cannot be made, OSError where its disk has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise translate(error, path) from error
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def hold(path: Path, what: Path, shared: bool = False) -> int | None:
    """A descriptor that holds the lock `path`, which its holder may remove at its end; None where the disk has none.

    Raises DataError naming `what` if another process has it.
    """
    while True:
        try:
            descriptor = try_lock(path, shared)
        except OSError:
            return None
        if descriptor is None:
            raise DataError(f"{what}: another run is at work here. Cure: wait for its end, or stop it.")
        if holds(descriptor, path):
            return descriptor
        os.close(descriptor)  # its holder removed it at its end


def holds(descriptor: int, path: Path) -> bool:
    """Whether it is the file that has this name still."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


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
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:  # a disk that takes no writes says so before it looks for the file
            if error.errno != errno.EROFS:
                raise


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
