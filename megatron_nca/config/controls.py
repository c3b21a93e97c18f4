"""Settings of the sources beside automata: what a comparison needs to tell an effect of automata from any other."""

from dataclasses import dataclass
from typing import Literal

from megatron_nca.errors import ConfigError, explain

CONTROLS = ("shuffled", "iid", "dyck", "k_shuffle_dyck", "corpus_copy")
"""Sources that `generate` makes in place of automata."""
BASES = {
    "shuffled": ("nca", "dyck", "k_shuffle_dyck", "elementary", "life_like", "corpus_copy"),
    "iid": ("nca", "dyck", "k_shuffle_dyck", "elementary", "life_like", "corpus_copy"),
    "corpus_copy": ("corpus", "indexed"),
}
"""Of which sources a control's base may be; the others need none."""

Permute = Literal["tokens", "patches"]
"""What `shuffled` permutes within each sequence. tokens: all that training reads, delimiters included, so that no frame
is left. patches: the patch tokens alone, delimiters stay where they are."""
Distribution = Literal["unigram", "uniform"]
"""What `iid` draws from. unigram: the scored targets of the base, so that the best possible loss is the entropy that
the base's manifest states. uniform: all ids alike."""


@dataclass(frozen=True, kw_only=True)
class DyckLaw:
    """Brackets: of `dyck` the last opened closes first, of `k_shuffle_dyck` each kind closes for itself.

    Defaults as the paper's baseline (64 kinds, vocabulary 128, depth 1 to 16, p_open 0.5). The released code never
    draws the last kind (an exclusive bound); here all occur.
    """

    symbols: int = 64
    """Kinds of brackets; kind s opens with token s and closes with token symbols + s."""
    max_depth: int = 16
    """Most brackets open at once; with none open, one opens."""
    p_open: float = 0.5
    """Chance to open where both is possible."""
    end: Literal["balanced", "cut"] = "balanced"
    """balanced: brackets close in time; of an odd number of tokens the last one opens a bracket that never closes.
    cut: as released, whatever is open at the end stays open."""

    def __post_init__(self) -> None:
        for name, high in (("symbols", 2**12), ("max_depth", 2**16)):
            value = getattr(self, name)
            if not 1 <= value <= high:
                raise ConfigError(explain(f"dyck.{name}", value, f"must lie in 1..{high}.", "leave it out."))
        if not 0 < self.p_open < 1:
            raise ConfigError(explain("dyck.p_open", self.p_open, "must lie between 0 and 1.", "0.5 is the paper's."))

    @property
    def num_tokens(self) -> int:
        """Distinct tokens: an opening and a closing one of each kind."""
        return 2 * self.symbols
