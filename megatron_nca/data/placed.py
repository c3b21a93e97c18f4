"""An indexed dataset whose documents are written in any order, while others read those that are there."""

import os
from array import array
from pathlib import Path

import numpy as np

from megatron_nca import files
from megatron_nca.data.indexed import Aside, IndexedWriter
from megatron_nca.data.manifest import FileRecord, Manifest, part
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.errors import DataError


def unfinished(prefix: Path) -> Path:
    """Prefix of the .bin and .idx of a dataset in the making; they have their full sizes from the start."""
    return prefix.with_name(f".{prefix.name}.unfinished")


def remove_unfinished(prefix: Path) -> bool:
    """Remove what a killed writer left. Those that still have it open keep what they see. Whether there was any."""
    left = [path for ending in ("bin", "idx") if (path := part(unfinished(prefix), ending)).exists()]
    for path in left:
        files.remove(path)
    return bool(left)


class PlacedWriter(IndexedWriter):
    """Write the N documents of PREFIX.{bin,idx,json} in any order; the same bytes as IndexedWriter in theirs.

        with PlacedWriter(prefix, num_tokens, trajectory, documents=N) as writer:
            writer.place(index, tokens)         # (n,), (n, document_tokens)
            manifest = writer.finish({...})     # once all N were placed, each once

    From the start `unfinished(prefix)` can be opened by an IndexedReader of this machine, which sees a document when
    `place` has returned. The disk space is taken at the start. Raises DataError as IndexedWriter does. Of several
    processes only one may write at a prefix; the caller sees to that.
    """

    def __init__(self, prefix: Path, num_tokens: int, trajectory: Trajectory, documents: int) -> None:
        super().__init__(prefix, num_tokens, trajectory)
        self._count = documents
        self._placed = 0

    def __enter__(self) -> "PlacedWriter":
        aside = unfinished(self.prefix)
        length = self.trajectory.document_tokens
        record = length * self.dtype.itemsize
        with self._translated("bin"):
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self.prefix)
            self._bin = _PlacedFile(part(self.prefix, "bin"), part(aside, "bin"), self._count, record)
        self._lengths.extend(array("i", [length]) * self._count)
        self.tokens = self._count * length
        try:
            with self._translated("idx"):
                self._idx = Aside(part(self.prefix, "idx"), part(aside, "idx"))
                self._write_index()
                self._idx.flush()
        except DataError:
            self.__exit__(None, None, None)
            raise
        return self

    @property
    def documents(self) -> int:
        """Placed so far."""
        return self._placed

    def place(self, index: np.ndarray, tokens: np.ndarray) -> None:
        """Write documents (n, document_tokens) as those of number `index` (n,), none of which was there before."""
        tokens = np.asarray(tokens)
        self._check(tokens)
        block = np.ascontiguousarray(tokens, dtype=self.dtype)
        counts = np.bincount(self.trajectory.scored_targets(block).reshape(-1))
        with self._translated("bin"):
            for number, row in zip(index.tolist(), block, strict=True):
                self._bin.write_at(number, row)
        self.histogram[: len(counts)] += counts
        self._placed += len(index)

    def finish(self, manifest_fields: dict) -> Manifest:
        if self._placed != self._count:
            raise DataError(f"{self.prefix}: {self._placed:,} of {self._count:,} documents were written. "
                            "Cure: place each once.")
        return super().finish(manifest_fields)


class _PlacedFile:
    """A file of `count` records of the same size, as Aside to those that publish it."""

    def __init__(self, path: Path, aside: Path, count: int, record: int) -> None:
        self.path, self.aside, self.record, self.bytes = path, aside, record, count * record
        self._descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.posix_fallocate(self._descriptor, 0, self.bytes)
        except OSError:
            self.discard()
            raise

    def write_at(self, number: int, row: np.ndarray) -> None:
        written = os.pwrite(self._descriptor, row.view(np.uint8), number * self.record)
        if written != self.record:
            raise OSError(f"{written} of {self.record} bytes were written")

    def sync(self) -> FileRecord:
        os.fsync(self._descriptor)
        self._close()
        return FileRecord(bytes=self.bytes, sha256=files.sha256(self.aside))

    def discard(self) -> None:
        self._close()
        files.remove(self.aside)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
