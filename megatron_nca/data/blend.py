"""Several indexed datasets that are read as one, each with its share of the sequences."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_nca.data.manifest import Manifest


@dataclass(frozen=True)
class Blend:
    """Datasets and their weights, which need not sum to 1. One dataset alone is read as it is."""

    weights: tuple[float, ...]
    prefixes: tuple[Path, ...]

    @classmethod
    def of(cls, *parts: tuple[float, Path]) -> "Blend":
        return cls(tuple(weight for weight, _ in parts), tuple(prefix for _, prefix in parts))

    def manifests(self) -> list[Manifest]:
        """Raises DataError if one is not whole."""
        return [Manifest.load(prefix) for prefix in self.prefixes]

    def content_sha256(self, manifests: Sequence[Manifest]) -> str:
        """Of the .bin of a dataset alone; of several, of their weights and the sha256 of each .bin, as JSON."""
        shas = [manifest.files["bin"].sha256 for manifest in manifests]
        if len(shas) == 1:
            return shas[0]
        parts = [[weight, sha] for weight, sha in zip(self.weights, shas, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
