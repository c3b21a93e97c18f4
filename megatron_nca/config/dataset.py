"""A recipe's dataset: one source of tokens with a training and a validation part."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_nca.config.automata import ClassicLaw
from megatron_nca.config.controls import Distribution, DyckLaw, Permute
from megatron_nca.config.law import NcaLaw
from megatron_nca.errors import ConfigError, explain

REQUIRED = {
    "nca": ("law", "sequences", "validation_sequences"),
    "shuffled": ("base",),
    "iid": ("base",),
    "dyck": ("sequences", "validation_sequences"),
    "k_shuffle_dyck": ("sequences", "validation_sequences"),
    "elementary": ("sequences", "validation_sequences"),
    "life_like": ("sequences", "validation_sequences"),
    "corpus_copy": ("base", "validation_sequences"),
    "corpus": ("input", "vocab_size"),
    "indexed": ("vocab_size", "train_prefix", "validation_prefix"),
    "blend": ("blend",),
}
OPTIONAL = {
    "nca": ("seed", "validation_seed", "on_node"),
    "shuffled": ("permute", "sequences", "validation_sequences", "seed", "validation_seed"),
    "iid": ("distribution", "sequences", "validation_sequences", "seed", "validation_seed"),
    "dyck": ("dyck", "seed", "validation_seed"),
    "k_shuffle_dyck": ("dyck", "seed", "validation_seed"),
    "elementary": ("automaton", "seed", "validation_seed"),
    "life_like": ("automaton", "seed", "validation_seed"),
    "corpus_copy": ("tokens", "sequences", "seed", "validation_seed"),
    "corpus": ("held_out_share",),
    "indexed": (),
    "blend": (),
}
BYTE_FALLBACK = 258
"""Pieces of a sentencepiece model before any of text: 256 bytes and two special ones (data/tokenizer.py)."""


@dataclass(frozen=True, kw_only=True)
class OnNode:
    """A dataset that each node of a training makes for itself, on its own disk or in its memory."""

    folder: str
    """Node-local and absolute once variables are filled in, on the node: `/dev/shm/nca`, `$SLURM_TMPDIR/nca`."""
    when: Literal["start", "background"] = "background"
    """start: before the first iteration, on all cores. background: while the model trains, in the order in which it
    reads; the search for rules and the validation part still come first."""
    threads: int | None = None
    """Of the generator; None: all cores of the process at start, a quarter of them in the background."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(explain("threads", self.threads, "must be at least 1.", "leave it out for the default."))
        if not self.folder.startswith(("/", "$")):
            cure = "give one that begins with / or with a variable, such as /dev/shm/nca."
            raise ConfigError(explain("folder", self.folder, "is not the absolute path of a node-local folder.", cure))

    def path(self) -> Path:
        """The folder on this node. Raises ConfigError if a variable of it is not set here."""
        path = os.path.expandvars(self.folder)
        if "$" in path or not os.path.isabs(path):
            reason = f"is {path!r} here: a variable is not set, or holds no absolute path."
            raise ConfigError(explain("on_node.folder", self.folder, reason, "set it on every node, or name a folder."))
        return Path(path)

    def num_threads(self) -> int:
        """Threads of the generator on this node."""
        cores = len(os.sched_getaffinity(0))
        return self.threads or (cores if self.when == "start" else max(1, cores // 4))


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a phase trains on. Which settings belong to which source: REQUIRED and OPTIONAL above."""

    source: Literal[
        "nca",
        "corpus",
        "indexed",
        "blend",
        "shuffled",
        "iid",
        "dyck",
        "k_shuffle_dyck",
        "elementary",
        "life_like",
        "corpus_copy",
    ]
    law: NcaLaw | None = None
    """nca: the automata. In YAML a mapping, optionally with `preset: released|paper` to start from and
    `domain: web|math|code` for the band."""
    sequences: int | None = None
    """Training sequences; shuffled, iid: None for as many as the base has."""
    validation_sequences: int | None = None
    """Held-out sequences, drawn at validation_seed."""
    seed: int = 0
    validation_seed: int = 1_000_003
    on_node: OnNode | None = None
    """nca: made on each node by the training that reads it; None: made beforehand, in the run folder. Same bytes."""
    base: str | None = None
    """The dataset of this recipe whose tokens are shuffled, counted or copied. Parts go by name, but the validation
    part of iid is drawn from the distribution of the training part."""
    permute: Permute = "tokens"
    """shuffled: what is permuted within each sequence."""
    distribution: Distribution = "unigram"
    """iid: what tokens are drawn from."""
    dyck: DyckLaw | None = None
    """dyck, k_shuffle_dyck: the law of the brackets; None: the paper's."""
    automaton: ClassicLaw | None = None
    """elementary, life_like: grid, patch and rules; None: its defaults."""
    tokens: int | None = None
    """corpus_copy: training tokens in place of sequences, rounded up to whole sequences."""
    input: str | None = None
    """corpus: a JSONL file with a `text` key, or what the machine has: `python-stdlib`, the standard library's source,
    or `debian-docs`, /usr/share/doc and manual pages."""
    vocab_size: int | None = None
    """corpus: size of the sentencepiece model trained on it. indexed: of the vocabulary the files were made with."""
    held_out_share: float = 0.05
    """corpus: share of documents, chosen by hash, kept for validation."""
    train_prefix: str | None = None
    """indexed: path of an existing .bin/.idx pair, without its ending."""
    validation_prefix: str | None = None
    blend: tuple[tuple[float, str], ...] | None = None
    """blend: [weight, dataset] of indexed datasets of this recipe, made with one tokenizer. A sequence comes from each
    in proportion to its weight, in training as in validation."""

    def __post_init__(self) -> None:
        for name in REQUIRED[self.source]:
            if getattr(self, name) is None:
                raise ConfigError(
                    explain("source", self.source, f"a dataset of this source needs '{name}'.", f"add '{name}'.")
                )
        self._check_foreign()
        self._check_blend()
        if self.source == "corpus_copy" and (self.tokens is None) == (self.sequences is None):
            raise ConfigError(
                explain("source", self.source, "needs either 'tokens' or 'sequences'.", "give one of the two.")
            )
        for name in ("sequences", "validation_sequences", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(explain(name, value, "must be at least 1.", "give a positive number."))
        if self.is_generated and self.seed == self.validation_seed:
            raise ConfigError(
                explain(
                    "validation_seed",
                    self.validation_seed,
                    "equals seed, so validation would hold the training rules.",
                    "choose another.",
                )
            )
        if not 0 < self.held_out_share < 1:
            raise ConfigError(
                explain("held_out_share", self.held_out_share, "must lie between 0 and 1.", "0.05 is usual.")
            )

    def check_numbers(self, where: str) -> None:
        """Raise ConfigError for a vocabulary or seeds that would be refused only once steps of the run were made."""
        least, reason, cure = 1, "must be at least 1.", "give that of the tokenizer of the files."
        if self.source == "corpus":
            least, reason = BYTE_FALLBACK + 1, f"byte fallback alone takes {BYTE_FALLBACK} pieces of its tokenizer."
            cure = "512 or more is usual."
        if self.vocab_size is not None and self.vocab_size < least:
            raise ConfigError(explain(f"{where}.vocab_size", self.vocab_size, reason, cure))
        for name in ("seed", "validation_seed"):
            if not 0 <= getattr(self, name) < 2**64:
                cure = "give for example 0."
                raise ConfigError(explain(f"{where}.{name}", getattr(self, name), "must lie in 0..2^64-1.", cure))

    def _check_foreign(self) -> None:
        """No setting is skipped in silence."""
        known = {"source", *REQUIRED[self.source], *OPTIONAL[self.source]}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in known and value != field.default:
                reason = f"is no setting of the source {self.source!r}."
                shown = value if isinstance(value, str | int | float) else "(given)"
                raise ConfigError(explain(field.name, shown, reason, "leave it out, or choose another source."))

    def _check_blend(self) -> None:
        if self.blend is None:
            return
        shown = [list(entry) for entry in self.blend]
        if len({name for _, name in self.blend}) != len(self.blend) or len(self.blend) < 2:
            cure = "name two or more, each once."
            raise ConfigError(explain("blend", shown, "is no blend of different datasets.", cure))
        if not all(weight > 0 for weight, _ in self.blend):
            raise ConfigError(explain("blend", shown, "has a weight that is not positive.", "leave that dataset out."))

    @property
    def is_generated(self) -> bool:
        """Whether `megatron-nca generate` makes it."""
        return self.source not in ("corpus", "indexed", "blend")
