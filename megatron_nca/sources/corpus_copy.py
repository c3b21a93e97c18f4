"""A natural corpus, or another one, cut to a budget of tokens: the control that trains its first phase on text.

The stream of the base is cut into windows of sequence_length tokens and the one after; a copy holds the first windows
of a fixed random order, none twice. If the base is what the last phase trains on, its texts come again there.
"""

import functools
from pathlib import Path

import numpy as np

from megatron_nca.errors import DataError, explain
from megatron_nca.sources import counter


class CorpusCopySource(counter.CounterSource):
    """Sequence i is window order[i] of the base's stream; the order is a function of the seed and the base's length.

    Raises DataError for a base that is missing, has no manifest, or is smaller than the budget.
    """

    kind = "corpus_copy"

    def __init__(self, base: Path, num_sequences: int, seed: int, sequence_length: int) -> None:
        self.base = counter.Base(base)
        self.trajectory = counter.whole(counter.check_count("sequence_length", sequence_length))
        self.num_tokens, self.vocab_size = self.base.manifest.num_tokens, self.base.manifest.vocab_size
        self.num_sequences = counter.check_count("sequences", num_sequences)
        self.seed = seed
        self.windows = (self.base.reader.tokens - 1) // sequence_length
        if self.num_sequences > self.windows:
            reason = f"{base} holds {self.windows:,} windows of {sequence_length} tokens, and none is used twice."
            raise DataError(explain("sequences", num_sequences, reason, "lower the budget, or give a larger corpus."))

    @functools.cached_property
    def order(self) -> np.ndarray:
        """All windows, int64 (windows,), in random order."""
        words = counter.bits(self.seed, counter.CORPUS_COPY, np.zeros(1), self.windows)
        return np.argsort(words[0], kind="stable")

    def prepare(self) -> None:
        self.base.verify()

    def documents(self, index: np.ndarray) -> np.ndarray:
        length = self.trajectory.sequence_length
        starts = self.order[index] * length
        return np.stack([self.base.reader.stream(start, start + length + 1) for start in starts.tolist()])

    def identity(self) -> dict:
        return {
            "generator": "megatron_nca.corpus_copy",
            "law_version": 1,
            "sequence_length": self.trajectory.sequence_length,
            "seed": self.seed,
            "sequences": self.num_sequences,
            "base": self.base.identity(),
        }

    def origin(self) -> dict:
        return {**self.identity(), "base_origin": self.base.manifest.origin}
