"""Which source, with which settings: what a command line or a recipe asks for, as one object."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_nca.config.automata import CLASSIC, ClassicLaw
from megatron_nca.config.controls import Distribution, DyckLaw, Permute
from megatron_nca.config.law import NcaLaw
from megatron_nca.errors import ConfigError
from megatron_nca.nca import rule, simulate
from megatron_nca.sources import Source
from megatron_nca.sources.classic import ClassicSource
from megatron_nca.sources.corpus_copy import CorpusCopySource
from megatron_nca.sources.counter import check_count
from megatron_nca.sources.dyck import DyckSource
from megatron_nca.sources.iid import IidSource
from megatron_nca.sources.nca import NcaSource
from megatron_nca.sources.shuffled import ShuffledSource

if TYPE_CHECKING:
    from megatron_nca.nca.bank import Bank


@dataclass(frozen=True, kw_only=True)
class Request:
    """Settings of one dataset of any source; those of other sources are not looked at."""

    source: str
    sequences: int | None
    """None: as many as the base has (shuffled, iid)."""
    seed: int
    law: NcaLaw = field(default_factory=NcaLaw)
    base: Path | None = None
    """Prefix of the dataset that a control is made of."""
    sequence_length: int = 1024
    """dyck, k_shuffle_dyck, elementary, life_like, corpus_copy: input tokens of a sequence."""
    permute: Permute = "tokens"
    distribution: Distribution = "unigram"
    dyck: DyckLaw = field(default_factory=DyckLaw)
    automaton: ClassicLaw = field(default_factory=ClassicLaw)

    def open(
        self,
        *,
        threads: int = 1,
        device: simulate.Device = "cpu",
        bank: "Bank | None" = None,
        extend_bank: bool = False,
    ) -> Source:
        """The source, its settings checked. `device`, `bank` and `extend_bank`: of automata only (see NcaSource).

        Raises ConfigError, and DataError for a base that is not there.
        """
        rule.check_seed(self.seed)
        check_count("threads", threads)  # controls need one only, but no setting is skipped
        if self.source == "nca":
            settings = {"threads": threads, "device": device, "bank": bank, "extend_bank": extend_bank}
            return NcaSource(self.law, self.sequences, self.seed, **settings)
        if device != "cpu":
            raise ConfigError(f"--device: is of automata, and the source is {self.source}. Cure: leave it out.")
        if bank is not None:
            raise ConfigError(f"--bank: is of automata, and the source is {self.source}. Cure: leave it out.")
        if self.source in ("dyck", "k_shuffle_dyck"):
            shuffle = self.source == "k_shuffle_dyck"
            return DyckSource(self.dyck, self.sequences, self.seed, self.sequence_length, shuffle=shuffle)
        if self.source in CLASSIC:
            return ClassicSource(self.source, self.automaton, self.sequences, self.seed, self.sequence_length)
        if self.base is None:
            raise ConfigError(f"--base: is required for the source {self.source}. Cure: give the prefix of a dataset.")
        if self.source == "shuffled":
            return ShuffledSource(self.base, self.sequences, self.seed, self.permute)
        if self.source == "iid":
            return IidSource(self.base, self.sequences, self.seed, self.distribution)
        return CorpusCopySource(self.base, self.sequences, self.seed, self.sequence_length)
