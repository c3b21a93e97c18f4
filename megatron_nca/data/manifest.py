"""The manifest beside an indexed dataset: what it is, what made it, and how to know that it is whole."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_nca import files
from megatron_nca.config.schema import build, to_dict
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.errors import ConfigError, DataError

FORMAT = "megatron_nca dataset"
VERSION = 1


def part(prefix: Path, ending: str) -> Path:
    """PREFIX.ending, where PREFIX may itself hold dots."""
    return Path(f"{prefix}.{ending}")


def prefix_of(path: Path) -> Path:
    """The prefix of a dataset that a user names by it, or by one of its files."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".bin", ".idx", ".json") else path


def unigram_entropy_nats(histogram: np.ndarray) -> float:
    """Entropy in nats of the distribution with these counts: the loss of a model that knows frequencies only.

    `histogram` (V,) holds non-negative counts. Raises DataError if all are zero.
    """
    counts = np.asarray(histogram, dtype=np.float64)
    counts = counts[counts > 0]
    if counts.size == 0:
        raise DataError("the histogram of tokens is empty, so it has no entropy. Cure: write at least one document.")
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0  # + 0.0 turns -0.0 of a single token into 0.0


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """PREFIX.json. It holds no date and no absolute path: the same command makes the same bytes."""

    format: Literal["megatron_nca dataset"] = FORMAT
    version: Literal[1] = VERSION
    kind: Literal[
        "nca", "corpus", "shuffled", "iid", "dyck", "k_shuffle_dyck", "elementary", "life_like", "corpus_copy",
        "loss_mask"
    ]
    documents: int
    tokens: int
    dtype: str
    """NumPy's name of the type in the .bin."""
    vocab_size: int
    """Rows a model allocates."""
    num_tokens: int
    """Ids that can occur: 0 <= token < num_tokens."""
    files: dict[str, FileRecord]
    """Of "bin" and "idx"."""
    unigram_entropy_nats: float
    """Of the scored targets."""
    trajectory: Trajectory | None
    """Layout of the documents of a generated dataset; None for a corpus, which is one stream of tokens."""
    origin: dict
    """What made it (nca: law, preset, seed, candidates; controls: settings, seed and the base with its own origin;
    corpus: input files with hashes, tokenizer)."""

    def __post_init__(self) -> None:
        if set(self.files) != {"bin", "idx"}:
            raise DataError(f"files = {sorted(self.files)}: expected the records of 'bin' and 'idx'.")
        if not 0 < self.num_tokens <= self.vocab_size:
            raise DataError(f"num_tokens = {self.num_tokens}: must lie in 1..vocab_size = {self.vocab_size}.")

    @property
    def tokenizer_sha256(self) -> str | None:
        """Of the tokenizer that made a corpus, or the first of those merged; None for automata."""
        origin = self.origin
        while "merged" in origin:
            origin = origin["merged"][0]["origin"]
        return origin.get("tokenizer", {}).get("sha256")

    @classmethod
    def load(cls, prefix: Path) -> "Manifest":
        """Read PREFIX.json and check the sizes of its files. Raises DataError with the cure."""
        path = part(prefix, "json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"{path}: is missing, so the dataset {prefix} was never finished or was made by "
                            "another tool. Cure: make it again.") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}). Cure: check the path.") from error
        except (ValueError, RecursionError) as error:  # of UTF-8, of JSON, a number or a nesting beyond Python's limits
            raise DataError(f"{path}: is not JSON ({error}). Cure: make the dataset again.") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise DataError(f"{path}: is not the manifest of a dataset (format is not {FORMAT!r}). "
                            "Cure: check the prefix, or make the dataset again.")
        if values.get("version") != VERSION:
            raise DataError(f"{path}: version = {values.get('version')!r}: this program reads version {VERSION}. "
                            "Cure: make the dataset again, or use the program that made it.")
        try:
            manifest = build(cls, values)
        except (ConfigError, DataError) as error:
            raise DataError(f"{path}: {error} Cure: make the dataset again.") from error
        manifest.check(prefix)
        return manifest

    def save(self, prefix: Path) -> None:
        """Write PREFIX.json whole or not at all. Raises DataError."""
        files.write_text(part(prefix, "json"), self.to_json())

    def to_json(self) -> str:
        return files.json_text(to_dict(self), indent=2) + "\n"

    def check(self, prefix: Path) -> None:
        """Compare the sizes of the files, without reading them. Raises DataError."""
        for ending, record in self.files.items():
            path = part(prefix, ending)
            if not path.is_file():
                raise DataError(f"{path}: is missing, though the manifest names it. Cure: make the dataset again.")
            size = path.stat().st_size
            if size != record.bytes:
                raise DataError(f"{path}: has {size:,} bytes, but its manifest says {record.bytes:,}. "
                                "Cure: copy it anew, or make the dataset again.")

    def verify(self, prefix: Path) -> None:
        """Compare sizes and hashes; reads every byte. Raises DataError."""
        self.check(prefix)
        for ending in self.files:
            self.compare_sha256(prefix, ending, files.sha256(part(prefix, ending)))

    def compare_sha256(self, prefix: Path, ending: str, digest: str) -> None:
        """Raise DataError if that is not the file's sha256 here."""
        said = self.files[ending].sha256
        if digest != said:
            raise DataError(f"{part(prefix, ending)}: its sha256 is {digest}, but its manifest says "
                            f"{said}. Cure: copy it anew, or make the dataset again.")

    def replace(self, **changes: object) -> "Manifest":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
