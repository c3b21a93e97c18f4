"""Tokens drawn independently, from the frequencies of another dataset or all alike: nothing can be learned in context.

The layout is the base's, so that exactly as many targets are scored, but there are no delimiters in fixed places.
"""

import functools
from pathlib import Path

import numpy as np

from megatron_nca.config.controls import Distribution
from megatron_nca.sources import counter


class IidSource(counter.CounterSource):
    """Token t of sequence i is a draw of its own.

    `distribution`: "unigram", the scored targets of the base: the lowest loss that any model can reach is then the
    unigram entropy of the base's manifest; "uniform", all ids alike: ln(num_tokens). Raises DataError.
    """

    kind = "iid"

    def __init__(
        self, base: Path, num_sequences: int | None, seed: int, distribution: Distribution = "unigram"
    ) -> None:
        self.base = counter.Base(base)
        self.trajectory = self.base.trajectory("iid")
        manifest = self.base.manifest
        self.num_tokens, self.vocab_size = manifest.num_tokens, manifest.vocab_size
        self.num_sequences = manifest.documents if num_sequences is None else num_sequences
        counter.check_count("sequences", self.num_sequences)
        self.seed, self.distribution = seed, distribution

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Scored targets of the base by token, int64 (num_tokens,)."""
        counts = np.zeros(self.num_tokens, dtype=np.int64)
        size = max(1, counter.BLOCK_TOKENS // self.trajectory.document_tokens)
        for first in range(0, len(self.base.reader), size):
            documents = self.base.documents(np.arange(first, min(first + size, len(self.base.reader))))
            scored = self.trajectory.scored_targets(documents)
            counts += np.bincount(scored.reshape(-1), minlength=self.num_tokens)
        return counts

    def prepare(self) -> None:
        self.base.verify()

    def documents(self, index: np.ndarray) -> np.ndarray:
        words = counter.bits(self.seed, counter.IID, index, self.trajectory.document_tokens)
        if self.distribution == "uniform":
            return counter.below(words, self.num_tokens)
        ends = np.cumsum(self.counts)
        places = ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53 * ends[-1]).astype(np.int64)
        return np.searchsorted(ends, np.minimum(places, ends[-1] - 1), side="right")

    def identity(self) -> dict:
        return {
            "generator": "megatron_nca.iid",
            "law_version": 1,
            "distribution": self.distribution,
            "seed": self.seed,
            "sequences": self.num_sequences,
            "base": self.base.identity(),
        }

    def origin(self) -> dict:
        return {**self.identity(), "base_origin": self.base.manifest.origin}
