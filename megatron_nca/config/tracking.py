"""Where a run is shown beside its own folder."""

from dataclasses import dataclass
from typing import Literal

from megatron_nca.errors import ConfigError, explain


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Weights & Biases: every phase of an arm at a seed is a run, named `<arm>/seed<k>/<phase>`."""

    project: str
    entity: str | None = None
    """User or team; None: the default of whoever is logged in."""
    group: str | None = None
    """None: the recipe's name."""
    mode: Literal["online", "offline"] | None = None
    """offline: into the phase's folder only, for `wandb sync`. None: what the variable WANDB_MODE says, else online."""

    def __post_init__(self) -> None:
        if not self.project:
            raise ConfigError(explain("wandb.project", self.project, "is empty.", "name a project."))
