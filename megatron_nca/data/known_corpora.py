"""Corpora whose field names and sizes are known: a table in YAML, checked, and what it says of a result."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_nca.config.schema import build, read_yaml, suggest
from megatron_nca.data.manifest import Manifest
from megatron_nca.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Training tokens of the whole corpus, ends of documents included, or as many as its user trains on."""

    tokenizer: str | None
    """The type of those that count so; None: of any with about as many ids as GPT-2's, or unknown."""
    low: float
    high: float | None


@dataclass(frozen=True, kw_only=True)
class KnownCorpus:
    json_key: str
    hold_out: dict[str, float]
    expected: Expected
    about: str

    def compare(self, manifests: Sequence[Manifest]) -> str:
        """A sentence for the user on whether this is the whole corpus."""
        tokens = manifests[0].tokens
        used = manifests[0].origin["tokenizer"]["type"]
        high = self.expected.high
        said = f"{self.expected.low:,.0f} tokens" + (" or more" if high is None else f" to {high:,.0f}")
        if self.expected.tokenizer is not None:
            said += f" of a {self.expected.tokenizer}" + ("" if used == self.expected.tokenizer else f", not a {used}")
        inside = tokens >= self.expected.low and (high is None or tokens <= high)
        verdict = "as expected" if inside else "FEWER" if tokens < self.expected.low else "MORE"
        return f"expected for training: {said}; there are {tokens:,}: {verdict}."


def load(path: Path, name: str) -> KnownCorpus:
    """The corpus of that name. Raises DataError with those that there are; ConfigError if the table is wrong."""
    table = read_yaml(path)
    if name not in table:
        raise DataError(f"--corpus {name}: is not in {path}.{suggest(name, list(table))} Cure: name one that is there, "
                        "or leave it out.")
    return build(KnownCorpus, table[name], f"{path}: {name}")
