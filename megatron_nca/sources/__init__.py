"""Sources of tokens: each offers the sequences of a dataset in order, and what a manifest says about them."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from megatron_nca.data.trajectories import Trajectory


class Source(Protocol):
    """A dataset as a pure function of its settings: sequence index -> tokens."""

    kind: str
    """As in the manifest."""

    @property
    def num_sequences(self) -> int: ...

    @property
    def num_tokens(self) -> int:
        """Ids that can occur."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows that a model allocates."""
        ...

    @property
    def trajectory(self) -> Trajectory:
        """Layout of every document."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """Tokens (n, document_tokens) of the next n >= 0 sequences, until all are there. Raises DataError."""
        ...

    def identity(self) -> dict:
        """The settings that decide every byte of the dataset."""
        ...

    def origin(self) -> dict:
        """What made the data, for the manifest: the identity and more; complete once `blocks` is exhausted."""
        ...
