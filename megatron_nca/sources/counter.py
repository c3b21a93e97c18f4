"""What the sources beside automata share: random bits by counter, documents in blocks, another dataset as material.

Sequence i is a function of (seed, i) alone. Its bits are words of Philox4x64-10 with the key (seed, purpose) and a
counter that begins at (0, 0, i, 0): NumPy's bit generator, whose raw words are the same in every version. Numbers are
made from them here, since those of numpy.random.Generator may change.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.manifest import Manifest
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.errors import ConfigError, DataError, explain

SHUFFLED, IID, DYCK, K_SHUFFLE_DYCK, CORPUS_COPY, ELEMENTARY, LIFE_LIKE = (
    0x636F6E74726F6C00 + number for number in range(1, 8)
)
"""Purposes never share bits."""
BLOCK_TOKENS = 2**22


def bits(seed: int, purpose: int, index: np.ndarray, count: int) -> np.ndarray:
    """Random words uint64 (n, count) of the sequences `index` (n,)."""
    key = np.array([seed, purpose], dtype=np.uint64)
    rows = [np.random.Philox(key=key, counter=[0, 0, int(i), 0]).random_raw(count) for i in index]
    return np.array(rows, dtype=np.uint64).reshape(len(index), count)


def below(words: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """int64 in 0..bound-1 from words uint64 of which the upper 32 bits count; `bound` < 2^32 broadcasts."""
    return ((words >> np.uint64(32)) * np.asarray(bound, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)


def whole(sequence_length: int) -> Trajectory:
    """The layout of documents without frames: sequence_length + 1 tokens, all scored but the first."""
    return Trajectory(
        sequence_length=sequence_length,
        document_tokens=sequence_length + 1,
        frame_tokens=sequence_length + 1,
        first_scored_token=1,
    )


def check_count(name: str, value: int) -> int:
    """`value`. Raises ConfigError if it is below 1."""
    if value < 1:
        raise ConfigError(explain(name, value, "must be at least 1.", "give a positive number."))
    return value


class CounterSource:
    """A source given by `documents`; see `Source` for what the attributes mean."""

    kind: str
    trajectory: Trajectory
    num_sequences: int

    def documents(self, index: np.ndarray) -> np.ndarray:
        """Tokens (n, document_tokens) of the sequences `index` (n,)."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Called before the first block: checks that take long."""

    def identity(self) -> dict:
        """The settings that decide every byte of the dataset."""
        raise NotImplementedError

    def origin(self) -> dict:
        """What made the data, for the manifest."""
        return self.identity()

    def blocks(self) -> Iterator[np.ndarray]:
        """Tokens (n, document_tokens) of all sequences in order."""
        self.prepare()
        size = max(1, BLOCK_TOKENS // self.trajectory.document_tokens)
        for first in range(0, self.num_sequences, size):
            yield self.documents(np.arange(first, min(first + size, self.num_sequences)))


class Base:
    """Another dataset, from which a control is made. Raises DataError if it is not whole."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = Path(prefix)
        self.manifest = Manifest.load(self.prefix)
        self.reader = IndexedReader(self.prefix)

    def trajectory(self, control: str) -> Trajectory:
        """The layout of its documents. Raises DataError if it is a stream of text, which has no sequences yet."""
        if self.manifest.trajectory is None:
            raise DataError(
                explain(
                    "base",
                    str(self.prefix),
                    f"is a stream of {self.manifest.kind}, not sequences, so nothing {control} can be made of it.",
                    "cut it into sequences first: generate --source corpus_copy.",
                )
            )
        return self.manifest.trajectory

    def documents(self, index: np.ndarray) -> np.ndarray:
        """Tokens (n, document_tokens) of its sequences `index` (n,); a copy."""
        return np.stack([self.reader[int(i)] for i in index])

    def identity(self) -> dict:
        """Which data it is, by content."""
        manifest = self.manifest
        return {"kind": manifest.kind, "documents": manifest.documents, "bin_sha256": manifest.files["bin"].sha256}

    def verify(self) -> None:
        """Read all of it and compare hashes: a control of damaged data would look sound. Raises DataError."""
        self.manifest.verify(self.prefix)
