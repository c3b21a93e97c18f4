"""Folders of encoded stretches of a corpus, and what was counted of each."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from megatron_nca import files
from megatron_nca.errors import DataError

RECORD, REJECTED, TOTAL, IDENTITY = "record.json", "rejected.jsonl", "total.json", "identity.json"
LOCK = "lock"
UNSIGNED = "unsigned"
"""Stands in a new folder until it has an identity; what is beside it is lost with the process that made it."""


@dataclass
class Counts:
    """Of a stretch, or of all of them."""

    documents: int = 0
    """Also those that are empty or bad."""
    text_bytes: int = 0
    tokens: int = 0
    """Of all keys."""
    bad: dict[str, int] = field(default_factory=dict)
    """By reason, the documents that could not be taken."""
    first_bad: str | None = None

    @property
    def reasons(self) -> str:
        return "; ".join(f"{reason}: {number:,}" for reason, number in sorted(self.bad.items()))

    def left_out(self) -> dict:
        """What an origin says of them."""
        return {"lines": self.documents, "left_out_lines": sum(self.bad.values()),
                "left_out_by_reason": dict(sorted(self.bad.items()))}

    def __iadd__(self, other: "Counts") -> "Counts":
        for name in ("documents", "text_bytes", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, number in other.bad.items():
            self.bad[reason] = self.bad.get(reason, 0) + number
        self.first_bad = self.first_bad or other.first_bad
        return self


class Parts:
    """The encoded stretches that are there, in `folders`; this process writes into the first.

    `identity`: what the parts are made from; it may take long to know, and a new folder is written into before.
    `shared`: with other processes at the same time, unless `alone`. Then parts of other settings are an error; else
    they are removed, and so is what a killed process left. Until `close`, or the end of a `with` block, no process
    that would be alone begins, where the disk has locks. Raises DataError.
    """

    def __init__(self, folders: Sequence[Path], identity: Callable[[], dict], shared: bool = False,
                 alone: bool = False) -> None:
        self.folders = [Path(folder) for folder in folders]
        self._identity, self._lock, self._signed = identity, None, True
        try:
            if shared:
                self._join(alone)
            else:
                self._take()
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        """The one folder for this process alone."""
        [folder] = self.folders
        self._lock = _hold(folder)
        if not _is_new(folder):
            text = self._text()
            _clean(folder, text)
            if _is_new(folder):
                self._write_identity()
            _check(folder, text)
            return
        self._signed = False
        files.write_text(folder / UNSIGNED, "")

    def _join(self, alone: bool) -> None:
        text = self._text()
        for folder in self.folders:
            files.create_folder(folder, {IDENTITY: text})
        self._lock = _hold(self.folders[0], shared=not alone)
        if _is_new(self.folders[0]):  # another removed it between these lines
            self._write_identity()
        for folder in self.folders:
            _check(folder, text)

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes at the parts."""
        if self._lock is not None:
            folder = self.folders[0]
            of_parts = (folder / IDENTITY).exists() or (folder / UNSIGNED).exists()
            if not of_parts and files.holds(self._lock, folder / LOCK):
                files.remove(folder / LOCK)  # the user's folder is as it was
            os.close(self._lock)
            self._lock = None

    def _text(self) -> bytes:
        return _as_text(self._identity())

    def sign(self) -> None:
        """Once the identity is known: from now on the parts outlive this process."""
        if not self._signed:
            self._write_identity()
            (self.folders[0] / UNSIGNED).unlink()
            self._signed = True

    def _write_identity(self) -> None:
        with files.publish(self.folders[0] / IDENTITY) as aside:
            aside.write_bytes(self._text())

    def new(self, number: int) -> Path:
        """Where this process writes a stretch."""
        return self.folders[0] / f"{number:06d}"

    def find(self, number: int) -> Path | None:
        """The folder of a stretch that is there."""
        return next((path for folder in self.folders if (path := folder / f"{number:06d}").is_dir()), None)

    def counts(self, number: int) -> Counts | None:
        """Of a stretch that is there."""
        found = self.find(number)
        return None if found is None else Counts(**json.loads((found / RECORD).read_text(encoding="utf-8")))

    def note_total(self, stretches: int) -> None:
        """Say how many there are in all."""
        files.write_text(self.folders[0] / TOTAL, json.dumps({"stretches": stretches}))

    def all_counts(self) -> list[Counts]:
        """Of every stretch, in order. Raises DataError if one is missing."""
        where = ", ".join(map(str, self.folders))
        total = next((content for folder in self.folders if (content := _content(folder / TOTAL)) is not None), None)
        if total is None:
            raise DataError(f"{where}: no shard has come to its end. Cure: run all shards with --shard I/N first.")
        number = json.loads(total)["stretches"]
        missing = [stretch for stretch in range(number) if self.find(stretch) is None]
        if missing:
            listed = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
            raise DataError(f"{where}: {len(missing)} of {number} stretches of the input are missing ({listed}; "
                            "stretch S is of shard S modulo the number of shards). Cure: run those shards again; they "
                            "make what is missing.")
        return [self.counts(stretch) for stretch in range(number)]

    def remove(self) -> None:
        """Remove the parts, and the folders if nothing else is in them."""
        for folder in self.folders:
            _remove(folder)


def _hold(folder: Path, shared: bool = False) -> int | None:
    return files.hold(folder / LOCK, folder, shared)


def _is_new(folder: Path) -> bool:
    return all(path.name == LOCK for path in folder.iterdir())


def _check(folder: Path, identity: bytes) -> None:
    if _content(folder / IDENTITY) != identity:
        raise DataError(f"{folder}: holds no parts of this dataset, but other files or parts made of another "
                        "input, tokenizer or setting. Cure: choose another folder with --parts, or remove it.")


def _clean(folder: Path, identity: bytes) -> None:
    found = _content(folder / IDENTITY)
    if found is not None and found != identity:
        print(f"{folder}: were made from another input, tokenizer or setting; they are removed.", file=sys.stderr)
    if found != identity if found is not None else (folder / UNSIGNED).exists():
        for path in folder.iterdir():
            if path.name != LOCK:
                files.remove(path)
    for left in folder.glob(".*.tmp"):  # by a process that was killed
        files.remove(left)


def remove_parts_of(identity: dict, folders: Sequence[Path]) -> None:
    """Remove those parts in `folders` that are of this identity: their datasets are there."""
    for folder in map(Path, folders):
        if _content(folder / IDENTITY) != _as_text(identity):
            continue
        try:
            lock = _hold(folder)
        except DataError:  # a run that is at work there, with another choice of the documents, removes them itself
            continue
        try:
            _remove(folder)
        finally:
            if lock is not None:
                os.close(lock)


def _remove(folder: Path) -> None:
    with ThreadPoolExecutor(4) as threads:  # what is cached of a file takes the kernel time to give up
        patterns = ("[0-9]*", ".*.tmp", TOTAL)
        list(threads.map(files.remove, [path for pattern in patterns for path in folder.glob(pattern)]))
    for name in (UNSIGNED, IDENTITY, LOCK):  # until the end they say whose the folder is
        files.remove(folder / name)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _as_text(identity: dict) -> bytes:
    return json.dumps(identity, sort_keys=True).encode()


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
