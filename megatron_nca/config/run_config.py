"""What a checkpoint says of itself, in the `run_config.yaml` beside its tensors."""

from dataclasses import dataclass, field
from pathlib import Path

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.schema import build, named, read_yaml
from megatron_nca.config.start import Freeze
from megatron_nca.errors import CheckpointError, ConfigError

FILE_NAME = "run_config.yaml"


@dataclass(frozen=True, kw_only=True)
class LossRecord:
    """What training remembers of its losses to judge the next one."""

    level: float | None = None
    """Running mean of good losses, nats; None before the first."""
    bad_in_a_row: int = 0
    """Just before."""
    skipped: int = 0
    """Updates left out because of a bad loss or gradient, in all."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    model: ModelConfig
    iteration: int = 0
    consumed_sequences: int = 0
    recipe: str | None = None
    phase: str | None = None
    arm: str | None = None
    seed: int | None = None
    data_sha256: str | None = None
    """Of the training .bin, so that a resume on other data is refused; None while data were still being made."""
    data_digest: str | None = None
    """Of the settings of data that nodes make for themselves, which are known before the data."""
    freeze: Freeze | None = None
    """Of the phase that trained it."""
    losses: LossRecord = field(default_factory=LossRecord)
    optimizer: bool = False
    """Whether optimizer state is inside: true for training's own, false for the converter's."""


def load_run_config(checkpoint: Path) -> RunConfig:
    """Read `run_config.yaml` of one checkpoint folder. Raises CheckpointError."""
    path = Path(checkpoint) / FILE_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint}: is not a whole checkpoint of this project ({FILE_NAME} is missing). "
            "Cure: give the folder of one iteration, such as .../checkpoints/iter_0000100."
        )
    try:
        with named(path):
            return build(RunConfig, read_yaml(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
