"""The tokens of several texts, one after another."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    tokens: np.ndarray
    """int32 (tokens of all texts,)."""
    lengths: np.ndarray
    """Integers (texts,), whose sum is the number of tokens."""

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]]) -> "Ragged":
        lists = list(texts)
        lengths = np.fromiter(map(len, lists), np.int32, len(lists))
        count = int(lengths.sum(dtype=np.int64))
        return cls(np.fromiter(itertools.chain.from_iterable(lists), np.int32, count), lengths)

    @classmethod
    def joined(cls, texts: Sequence[np.ndarray]) -> "Ragged":
        """Of one array of int32 for each text."""
        tokens = np.concatenate(texts) if texts else np.zeros(0, np.int32)
        return cls(tokens, np.fromiter(map(len, texts), np.int32, len(texts)))

    def tolist(self) -> list[list[int]]:
        """The ids of each text."""
        flat, ends = self.tokens.tolist(), np.cumsum(self.lengths, dtype=np.int64).tolist()
        return [flat[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []

    def ended(self, end: int) -> "Ragged":
        """With one more token behind each text that has any."""
        filled = self.lengths > 0
        places = np.cumsum(self.lengths, dtype=np.int64)[filled]
        return Ragged(np.insert(self.tokens, places, end), self.lengths + filled.astype(np.int32))

    def without_runs(self, token: int) -> "Ragged":
        """With one where a text has `token` several times in a row."""
        again = np.zeros(self.tokens.size, bool)
        again[1:] = (self.tokens[1:] == token) & (self.tokens[:-1] == token)
        starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        again[starts[self.lengths > 0]] = False
        if not again.any():
            return self
        of_text = np.repeat(np.arange(self.lengths.size), self.lengths)
        fewer = np.bincount(of_text[again], minlength=self.lengths.size).astype(np.int32)
        return Ragged(self.tokens[~again], self.lengths - fewer)
