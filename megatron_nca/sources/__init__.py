"""Sources of tokens: each offers the sequences of a dataset in order, and what a manifest says about them."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np


class Source(Protocol):
    """A dataset as a pure function of its settings: sequence index -> tokens."""

    @property
    def num_sequences(self) -> int: ...

    def blocks(self) -> Iterator[np.ndarray]:
        """Tokens (n, document_tokens) of the next n >= 0 sequences, until all are there. Raises DataError."""
        ...

    def origin(self) -> dict:
        """What made the data, for the manifest; complete once `blocks` is exhausted."""
        ...
