"""Dyck languages: k kinds of brackets that nest, or k that close each for itself (k-shuffle Dyck).

A walk: with no bracket open one opens, at max_depth one closes, else one opens with chance p_open; its kind is uniform.
What closes: in Dyck the last one opened; in k-shuffle Dyck a kind drawn uniformly from the kinds that are open
(michahu/pre-pretraining; released code utils/dataset_utils.py, whose exclusive bound never draws the last kind).
A sequence has sequence_length + 1 tokens, of which the last is only a target. With `end: balanced` brackets close in
time; of an odd number of tokens the last one is an opening bracket that the cut leaves open.
"""

import numpy as np

from megatron_nca.config.controls import DyckLaw
from megatron_nca.config.schema import to_dict
from megatron_nca.sources import counter


class DyckSource(counter.CounterSource):
    """Words of a Dyck language; kind s opens with token s and closes with token symbols + s. Raises ConfigError."""

    def __init__(
        self, law: DyckLaw, num_sequences: int, seed: int, sequence_length: int, *, shuffle: bool = False
    ) -> None:
        self.kind = "k_shuffle_dyck" if shuffle else "dyck"
        self.law, self.seed, self.shuffle = law, seed, shuffle
        self.num_sequences = counter.check_count("sequences", num_sequences)
        self.trajectory = counter.whole(counter.check_count("sequence_length", sequence_length))
        self.num_tokens = self.vocab_size = law.num_tokens

    def documents(self, index: np.ndarray) -> np.ndarray:
        length = self.trajectory.document_tokens
        purpose = counter.K_SHUFFLE_DYCK if self.shuffle else counter.DYCK
        words = np.ascontiguousarray(counter.bits(self.seed, purpose, index, length).T)
        tokens = np.empty((length, len(index)), dtype=np.int64)
        brackets = (_Kinds if self.shuffle else _Stack)(len(index), self.law)
        threshold = np.uint64(round(self.law.p_open * 2**32))
        for t in range(length):
            chance, choice = words[t] >> np.uint64(32), words[t] << np.uint64(32)
            opens = self._forced(chance < threshold, brackets.depth, length, t)
            rows, others = np.flatnonzero(opens), np.flatnonzero(~opens)
            tokens[t, rows] = counter.below(choice[rows], self.law.symbols)
            brackets.open(rows, tokens[t, rows])
            tokens[t, others] = self.law.symbols + brackets.close(others, choice[others])
        return tokens.T

    def _forced(self, opens: np.ndarray, depth: np.ndarray, length: int, t: int) -> np.ndarray:
        """Which sequences open a bracket at token t, where the draw `opens` is overruled by depth and end."""
        opens = (opens & (depth < self.law.max_depth)) | (depth == 0)
        left = length - length % 2 - t  # of the part that is balanced
        if self.law.end == "balanced" and left > 0:
            return opens & (depth < left)
        return opens

    def identity(self) -> dict:
        return {
            "generator": f"megatron_nca.{self.kind}",
            "law_version": 1,
            "dyck": to_dict(self.law),
            "sequence_length": self.trajectory.sequence_length,
            "seed": self.seed,
            "sequences": self.num_sequences,
        }


class _Stack:
    """Open brackets of n sequences in the order of their opening; the last one closes first."""

    def __init__(self, num: int, law: DyckLaw) -> None:
        self.depth = np.zeros(num, dtype=np.int64)
        self._kinds = np.zeros((num, law.max_depth), dtype=np.int64)

    def open(self, rows: np.ndarray, kinds: np.ndarray) -> None:
        """Open a bracket of `kinds` (m,) in the sequences `rows` (m,)."""
        self._kinds[rows, self.depth[rows]] = kinds
        self.depth[rows] += 1

    def close(self, rows: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Close a bracket in the sequences `rows` (m,); returns its kind (m,). `words` are not needed."""
        self.depth[rows] -= 1
        return self._kinds[rows, self.depth[rows]]


class _Kinds:
    """Open brackets of n sequences as counts by kind, beside a list of the kinds that are open."""

    def __init__(self, num: int, law: DyckLaw) -> None:
        self.depth = np.zeros(num, dtype=np.int64)
        self._counts = np.zeros((num, law.symbols), dtype=np.int32)
        self._open = np.zeros((num, min(law.symbols, law.max_depth)), dtype=np.int64)
        self._num_open = np.zeros(num, dtype=np.int64)

    def open(self, rows: np.ndarray, kinds: np.ndarray) -> None:
        """Open a bracket of `kinds` (m,) in the sequences `rows` (m,)."""
        first = self._counts[rows, kinds] == 0
        self._open[rows[first], self._num_open[rows[first]]] = kinds[first]
        self._num_open[rows[first]] += 1
        self._counts[rows, kinds] += 1
        self.depth[rows] += 1

    def close(self, rows: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Close a bracket in the sequences `rows` (m,), of a kind drawn by `words` (m,); returns the kinds (m,)."""
        slots = counter.below(words, self._num_open[rows])
        kinds = self._open[rows, slots]
        self._counts[rows, kinds] -= 1
        self.depth[rows] -= 1
        last = self._counts[rows, kinds] == 0
        rows, slots = rows[last], slots[last]
        self._num_open[rows] -= 1
        self._open[rows, slots] = self._open[rows, self._num_open[rows]]
        return kinds
