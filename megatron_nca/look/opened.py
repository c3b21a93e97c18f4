"""A dataset opened for looking at: any source, one face.

N sequences, L tokens that training reads of one, T frames, P patches of a frame, H W grid.
"""

from pathlib import Path

import numpy as np

from megatron_nca.config.law import NcaLaw
from megatron_nca.config.schema import build
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.manifest import Manifest
from megatron_nca.errors import DataError, explain
from megatron_nca.nca import patches

TEXT_WINDOW = 1024
"""Tokens of a stretch of text, which has no sequences of its own."""
DELIMITER = -1
"""Stands for the cells of a patch that holds a delimiter, as shuffled sequences have them."""


class Opened:
    """Raises DataError if the dataset is not whole, or its manifest's law cannot be read."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = Path(prefix)
        self.manifest = Manifest.load(self.prefix)
        self.reader = IndexedReader(self.prefix)
        self.trajectory = self.manifest.trajectory
        law = self.common("law")
        self.law = None if law is None else build(NcaLaw, law, f"{prefix}.json: origin.law")
        """The automata behind it, of itself or its base; None for brackets, text, and merged ones of several laws."""

    @property
    def name(self) -> str:
        """The prefix with its folder, since a run's datasets are all called train or validation."""
        return "/".join(self.prefix.parts[-2:])

    def common(self, setting: str) -> dict | None:
        """What the origin says of a setting, that of the base, or of all datasets that were merged if they agree."""
        first, *others = self.said(setting)
        return first if all(other == first for other in others) else None

    def said(self, setting: str) -> list[dict | None]:
        """The same of each of the merged datasets, or of the one; None: nothing."""
        return _said(self.manifest.origin, setting)

    def __len__(self) -> int:
        """Sequences; of a stream of text, whole stretches of 1,024 tokens (or the whole, if that is shorter)."""
        if self.trajectory is not None:
            return len(self.reader)
        return max(1, self.reader.tokens // TEXT_WINDOW)

    def sequence(self, index: int) -> np.ndarray:
        """Tokens (L,) that training reads of a sequence. Raises DataError for an index that is not there."""
        if not 0 <= index < len(self):
            raise DataError(explain("sequence", index, f"{self.prefix} holds 0..{len(self) - 1}.", "choose another."))
        if self.trajectory is None:
            return self.reader.stream(index * TEXT_WINDOW, (index + 1) * TEXT_WINDOW)
        return self.reader[index][: self.trajectory.sequence_length + 1]

    def sequences(self, index: np.ndarray) -> np.ndarray:
        """Tokens (N, L) of several."""
        return np.stack([self.sequence(int(i)) for i in index])

    def documents(self, index: np.ndarray) -> np.ndarray:
        """Whole documents (N, document_tokens), what training never reads included; needs a trajectory."""
        return np.stack([self.reader[int(i)] for i in index])

    def patches(self, tokens: np.ndarray) -> np.ndarray:
        """What stands in the places of patches, (N, T, P), in the whole frames of tokens (N, any); needs a law."""
        width = self.law.frame_tokens
        frames = tokens[:, : tokens.shape[1] // width * width].reshape(len(tokens), -1, width)
        return frames[..., 1:-1]

    def grids(self, index: int) -> np.ndarray:
        """Cells int16 (T, H, W) of the frames read to their end; DELIMITER where a delimiter stands for a patch."""
        law = self.law
        tokens = self.patches(self.sequence(index)[None]).astype(np.int64)
        foreign = tokens >= law.start_token
        sizes = law.num_states, law.patch, law.height, law.width
        cells = patches.decode(np.where(foreign, 0, tokens), *sizes)[0].astype(np.int16)
        rows, columns = law.height // law.patch, law.width // law.patch
        mask = foreign[0].reshape(-1, rows, columns).repeat(law.patch, axis=1).repeat(law.patch, axis=2)
        return np.where(mask, np.int16(DELIMITER), cells)

    @property
    def description(self) -> str:
        """Kind, band and alphabet in a few words."""
        if self.law is None:
            return f"{self.manifest.kind}, {self.manifest.num_tokens:,} ids"
        low, high = self.law.band
        what = f"{self.manifest.kind}, {self.law.num_states} states, band {low:g} to {high:g}"
        return what if self.law.band_scale == "official" else f"{what} {self.law.band_scale}"


def _said(origin: object, setting: str) -> list[dict | None]:
    if not isinstance(origin, dict):
        return [None]
    if merged := origin.get("merged"):
        return [said for each in merged for said in _said(each["origin"], setting)]
    said = origin.get(setting)
    return [said] if isinstance(said, dict) else _said(origin.get("base_origin"), setting)
