"""Which tokens of a generated document are input, target and scored (plain NumPy).

A document holds whole frames: document_tokens = num_frames * frame_tokens, at least sequence_length + 1.
Training reads input document[0:L] and target document[1:L+1]; what lies behind L is never read.
Documents without frames, of brackets or copied text, count as one frame of L + 1 tokens.
L sequence_length; the position of a target is its index i in 0..L-1, its token stands at i + 1 in the document.
"""

from dataclasses import dataclass

import numpy as np

from megatron_nca.config.law import NcaLaw
from megatron_nca.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The layout of every document of a generated dataset; all counts are in tokens."""

    sequence_length: int
    document_tokens: int
    frame_tokens: int
    """Tokens of a frame with its two delimiters."""
    first_scored_token: int
    """Index in the document of the first target token that carries loss."""

    def __post_init__(self) -> None:
        whole = self.frame_tokens > 0 and self.document_tokens % self.frame_tokens == 0
        if not whole or not 0 < self.sequence_length < self.document_tokens:
            raise DataError(f"trajectory: document_tokens = {self.document_tokens} must hold whole frames of "
                            f"{self.frame_tokens} tokens and more than sequence_length = {self.sequence_length}.")
        if not 1 <= self.first_scored_token <= self.sequence_length:
            raise DataError(f"trajectory.first_scored_token = {self.first_scored_token}: must lie in "
                            f"1..{self.sequence_length}, or no target is scored.")

    @classmethod
    def of_law(cls, law: NcaLaw) -> "Trajectory":
        """The layout that the automata law prescribes."""
        return cls(sequence_length=law.sequence_length, document_tokens=law.document_tokens,
                   frame_tokens=law.frame_tokens, first_scored_token=law.first_scored_token)

    @property
    def num_scored(self) -> int:
        """Scored targets of a sequence (987 of 1,024 for the released law)."""
        return self.sequence_length + 1 - self.first_scored_token

    @property
    def num_frames(self) -> int:
        """Frames that the targets of a sequence touch; the last may be cut."""
        return self.sequence_length // self.frame_tokens + 1

    def inputs(self, documents: np.ndarray) -> np.ndarray:
        """Input tokens (..., L) of documents (..., document_tokens); a view."""
        return documents[..., : self.sequence_length]

    def targets(self, documents: np.ndarray) -> np.ndarray:
        """Target tokens (..., L) of documents (..., document_tokens); a view."""
        return documents[..., 1 : self.sequence_length + 1]

    @property
    def scored_columns(self) -> slice:
        """Where in a document the targets stand that carry loss."""
        return slice(self.first_scored_token, self.sequence_length + 1)

    def scored_targets(self, documents: np.ndarray) -> np.ndarray:
        """Only the targets that carry loss, (..., num_scored); a view."""
        return documents[..., self.scored_columns]

    def loss_mask(self) -> np.ndarray:
        """Boolean (L,): true at target positions that carry loss."""
        return np.arange(1, self.sequence_length + 1) >= self.first_scored_token

    def frames(self) -> np.ndarray:
        """int64 (L,): the frame, from 0, in which each target token stands; the buckets of the loss by position."""
        return np.arange(1, self.sequence_length + 1) // self.frame_tokens
