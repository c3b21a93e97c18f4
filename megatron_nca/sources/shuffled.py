"""The tokens of another dataset's sequences, permuted within each sequence.

What structure taught is gone; what frequencies teach is left, of each sequence and of all. Permuted is what training
reads, the first sequence_length + 1 tokens of a document; the rest, which is never read, stays.
"""

from pathlib import Path

import numpy as np

from megatron_nca.config.controls import Permute
from megatron_nca.errors import DataError, explain
from megatron_nca.sources import counter


class ShuffledSource(counter.CounterSource):
    """Sequence i is sequence i of the base, permuted by (seed, i). Every permutation is equally likely.

    `permute`: "tokens" moves all tokens, delimiters too, so that no frame is left (and tokens of the unscored first
    frame come to be scored); "patches" leaves each frame's first and last token in its place.
    Raises DataError for a base without sequences, without frames ("patches"), or with fewer sequences than asked for.
    """

    kind = "shuffled"

    def __init__(self, base: Path, num_sequences: int | None, seed: int, permute: Permute = "tokens") -> None:
        self.base = counter.Base(base)
        self.trajectory = self.base.trajectory("shuffled")
        manifest = self.base.manifest
        self.num_tokens, self.vocab_size = manifest.num_tokens, manifest.vocab_size
        self.num_sequences = manifest.documents if num_sequences is None else num_sequences
        counter.check_count("sequences", self.num_sequences)
        if self.num_sequences > manifest.documents:
            reason = f"{base} holds only {manifest.documents}, and each is used once."
            raise DataError(explain("sequences", num_sequences, reason, "lower it, or make a larger base."))
        if permute == "patches" and self.trajectory.num_frames == 1:
            reason = f"{base} has no frames, so no delimiters that could stay."
            raise DataError(explain("permute", permute, reason, "permute tokens."))
        self.seed, self.permute = seed, permute

    def places(self) -> np.ndarray:
        """Positions in a document whose tokens change places, int64, in order."""
        read = np.arange(self.trajectory.sequence_length + 1)
        if self.permute == "tokens":
            return read
        within = read % self.trajectory.frame_tokens
        return read[(within != 0) & (within != self.trajectory.frame_tokens - 1)]

    def prepare(self) -> None:
        self.base.verify()

    def documents(self, index: np.ndarray) -> np.ndarray:
        documents, places = self.base.documents(index), self.places()
        order = np.argsort(counter.bits(self.seed, counter.SHUFFLED, index, len(places)), axis=1, kind="stable")
        documents[:, places] = np.take_along_axis(documents[:, places], order, axis=1)
        return documents

    def identity(self) -> dict:
        return {
            "generator": "megatron_nca.shuffled",
            "law_version": 1,
            "permute": self.permute,
            "seed": self.seed,
            "sequences": self.num_sequences,
            "base": self.base.identity(),
        }

    def origin(self) -> dict:
        return {**self.identity(), "base_origin": self.base.manifest.origin}
