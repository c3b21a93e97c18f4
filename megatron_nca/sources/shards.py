"""One dataset of automata made by many processes: each makes its share as parts in a folder, the last step joins them.

A folder of parts holds identity.json, rules-BLOCK.npy (the accepted ones of a block of candidates) and
sequences-CHUNK.npy (tokens). Parts appear by rename, whole or not at all, and are a function of the dataset's settings,
not of the number of processes. Who shares a folder shares the search; who shares none, because a node's disk is its
own, searches alone, and the folders are joined.
"""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megatron_nca import files
from megatron_nca.config.schema import to_dict
from megatron_nca.data.indexed import IndexedWriter, optimal_dtype
from megatron_nca.data.manifest import Manifest
from megatron_nca.errors import DataError
from megatron_nca.sources import writing
from megatron_nca.sources.nca import BLOCK_TOKENS, NcaSource

PIECES = 64
"""Chunks of sequences, and about as many blocks of candidates, that a dataset has at least where it is large enough."""
AHEAD = 2
"""Blocks of its own that a process searches ahead of the first one missing; then it makes that one, whosesoever."""


class Parts:
    """The parts of one dataset in `folders`, of which this process writes into the first. Raises DataError.

    Nothing is written before a share, so that settings that are refused leave no identity behind.
    """

    def __init__(self, source: NcaSource, folders: Sequence[Path]) -> None:
        self.source, self.folders = source, [Path(folder) for folder in folders]
        self.block = min(source.largest_block, max(64, source.num_rules // PIECES))
        """Candidates of a block."""
        largest = max(1, BLOCK_TOKENS // source.trajectory.document_tokens)
        self.chunk = min(largest, -(-source.num_sequences // PIECES))
        """Sequences of a chunk."""
        self.num_chunks = -(-source.num_sequences // self.chunk)
        self._accepted: dict[int, np.ndarray] = {}
        """By block, the numbers of the accepted candidates."""
        self._identity = json.dumps(to_dict(source.identity()), indent=2).encode()
        for folder in self.folders:
            self._check_identity(folder)

    def _check_identity(self, folder: Path) -> None:
        if _is_free(folder):
            return
        try:
            same = (folder / "identity.json").read_bytes() == self._identity
        except OSError:
            same = False
        if not same:
            raise DataError(f"{folder}: holds no parts of this dataset, but other files or parts made with other "
                            "settings. Cure: choose another folder with --parts, or remove it.")

    def _begin(self) -> None:
        """Make the first folder, unless it is there. Raises DataError."""
        if not files.create_folder(self.folders[0], {"identity.json": self._identity}):
            self._check_identity(self.folders[0])

    def _check_space(self, shard: int, shards: int) -> None:
        """Raises DataError if the disk has too little free space for what a share lacks."""
        lacking = (chunk for chunk in range(shard, self.num_chunks, shards) if self._find(chunk) is None)
        sequences = sum(len(self._of_chunk(chunk)) for chunk in lacking)
        width = self.source.trajectory.document_tokens * optimal_dtype(self.source.num_tokens).itemsize
        cure = "free some space, or choose another folder with --parts."
        files.check_free(self.folders[0], sequences * width, "shard", f"{shard}/{shards}", cure)

    def make_share(self, shard: int, shards: int, progress: Callable[[int], None] = lambda sequences: None) -> int:
        """Make the chunks of one of `shards` processes, those that are not there. Returns how many were made.

        Raises DataError, before anything is written where the space is too little.
        """
        self._check_space(shard, shards)
        self._begin()
        while not self._found_all():
            self._search(self._next_block(shard, shards))
        made = 0
        for chunk in range(shard, self.num_chunks, shards):
            index = self._of_chunk(chunk)
            if self._find(chunk) is None:
                self._publish(self._name(chunk), self.source.sequences(index))
                made += 1
            progress(len(index))
        return made

    def merge(self, prefix: Path, progress: Callable[[int], None] = lambda sequences: None) -> Manifest:
        """Join all chunks to PREFIX.{bin,idx,json}, the same bytes as of one process, and remove the parts.

        Raises DataError, naming what is missing or damaged; then the parts stay.
        """
        source = self.source
        missing = [chunk for chunk in range(self.num_chunks) if self._find(chunk) is None]
        if missing:
            listed = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
            raise DataError(f"{', '.join(map(str, self.folders))}: {len(missing)} of {self.num_chunks} chunks of "
                            f"sequences are missing ({listed}; chunk C is of shard C modulo the number of shards). "
                            "Cure: run those shards again; they make what is missing.")
        writing.check_space(source, prefix)
        if not self._found_all():
            self._begin()
        while not self._found_all():
            self._search(self._first_missing())
        with IndexedWriter(prefix, source.num_tokens, source.trajectory) as writer:
            for chunk in range(self.num_chunks):
                writer.add_documents(self._load(chunk))
                progress(len(self._of_chunk(chunk)))
            fields = {"kind": source.kind, "vocab_size": source.vocab_size, "origin": source.origin()}
            manifest = writer.finish(fields)
        self.remove()
        return manifest

    def remove(self) -> None:
        """Remove the parts, and the folders if nothing else is in them."""
        for folder in self.folders:
            for pattern in ("rules-*.npy", "sequences-*.npy", ".*.npy.*.tmp", "identity.json"):
                for path in folder.glob(pattern):
                    files.remove(path)
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _found_all(self) -> bool:
        """Whether the blocks without a gap from the first hold all rules; the source then knows them."""
        for folder in self.folders:
            for path in folder.glob("rules-*.npy"):
                block = int(path.stem.removeprefix("rules-"))
                if block not in self._accepted:
                    self._accepted[block] = _read(path)
        blocks = [self._accepted[block] for block in range(self._first_missing())]
        numbers = np.concatenate(blocks) if blocks else np.empty(0, dtype=np.int64)
        return self.source.adopt(numbers, len(blocks) * self.block)

    def _first_missing(self) -> int:
        block = 0
        while block in self._accepted:
            block += 1
        return block

    def _next_block(self, shard: int, shards: int) -> int:
        """A missing block of this process's own near the first missing one, else that one: another process may be
        slow or dead, and two that make one block write the same bytes."""
        first = self._first_missing()
        near = range(first, first + AHEAD * shards)
        own = (block for block in near if block % shards == shard and block not in self._accepted)
        return next(own, first)

    def _search(self, block: int) -> None:
        first = block * self.block
        self.source.check_candidates(first + self.block)
        numbers = first + np.flatnonzero(self.source.acceptance(first, self.block))
        self._publish(f"rules-{block}.npy", numbers.astype(np.int64))
        self._accepted[block] = numbers

    def _publish(self, name: str, values: np.ndarray) -> None:
        content = io.BytesIO()  # written to a file, numpy does not say why it cannot
        np.save(content, values, allow_pickle=False)
        with files.publish(self.folders[0] / name) as aside:
            aside.write_bytes(content.getbuffer())

    def _of_chunk(self, chunk: int) -> np.ndarray:
        """Numbers of its sequences."""
        first = chunk * self.chunk
        return np.arange(first, min(first + self.chunk, self.source.num_sequences))

    @staticmethod
    def _name(chunk: int) -> str:
        return f"sequences-{chunk}.npy"

    def _find(self, chunk: int) -> Path | None:
        return next((path for folder in self.folders if (path := folder / self._name(chunk)).exists()), None)

    def _load(self, chunk: int) -> np.ndarray:
        path = self._find(chunk)
        tokens = _read(path)
        expected = (len(self._of_chunk(chunk)), self.source.trajectory.document_tokens)
        if tokens.shape != expected:
            raise DataError(f"{path}: holds tokens of shape {tokens.shape}, not {expected}. "
                            "Cure: remove it and run its shard again.")
        return tokens


def _is_free(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Cure: remove it and run its shard again.") from error
