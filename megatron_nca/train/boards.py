"""TensorBoard, if it is installed, and Weights & Biases, if the recipe asks for it; with Megatron-LM's key names."""

import importlib.util
import logging
import secrets
from pathlib import Path

from megatron_nca import files
from megatron_nca.config.recipe import Recipe
from megatron_nca.config.schema import to_dict
from megatron_nca.errors import ConfigError, LaunchError, explain
from megatron_nca.run_dir import PhaseFolder

logger = logging.getLogger("megatron_nca.train")

BY_SAMPLES = ("lm loss", "learning-rate", "batch-size", "loss-scale", "grad-norm", "lm loss validation",
              "lm loss validation ppl")
"""What Megatron-LM gives TensorBoard a second time, over the consumed sequences, as `<key> vs samples`."""


def check(recipe: Recipe) -> None:
    """Raise ConfigError if the recipe asks for Weights & Biases and it is not installed; every rank finds the same."""
    if recipe.wandb is None:
        return
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # a folder `wandb` here, of earlier runs, looks like a package
        cure = "pip install 'megatron_nca[wandb]', or leave wandb out of the recipe."
        raise ConfigError(explain("wandb.project", recipe.wandb.project, "the package wandb is not installed.", cure))


class TensorBoard:
    """Scalars by iteration in a phase's folder; what is later than `resumed_at` is hidden after a resume."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_at + 1 if resumed_at else None)

    def add(self, iteration: int, consumed: int, values: dict[str, float]) -> None:
        """`consumed` in sequences."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, iteration)
            if key in BY_SAMPLES:
                self._writer.add_scalar(f"{key} vs samples", value, consumed)

    def close(self, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One run of Weights & Biases for a phase of an arm at a seed; a resume goes on with the same run.

    It passes over steps that it has, which an exact resume measures again with the same result.
    """

    def __init__(self, recipe: Recipe, folder: PhaseFolder, name: str) -> None:
        """Raises LaunchError if the service refuses or cannot be reached."""
        import wandb

        asked = recipe.wandb
        if not folder.wandb_id.exists():
            files.write_text(folder.wandb_id, secrets.token_hex(8))
        try:
            self._run = wandb.init(
                project=asked.project,
                entity=asked.entity,
                group=asked.group or recipe.name,
                name=name,
                id=folder.wandb_id.read_text(encoding="utf-8"),
                resume="allow",
                mode=asked.mode,  # None: WANDB_MODE of the environment
                dir=str(folder.path),
                config=to_dict(recipe),
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            cure = "log in with `wandb login`, or set WANDB_MODE=offline and `wandb sync` the phase's folder later."
            reason = f"Weights & Biases: {str(error).rstrip('.')}."
            raise LaunchError(explain("wandb.project", asked.project, reason, cure)) from error

    def add(self, iteration: int, consumed: int, values: dict[str, float]) -> None:
        """`consumed` in sequences."""
        self._run.log({"samples vs steps": consumed, **values}, step=iteration)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def open_boards(recipe: Recipe, folder: PhaseFolder, name: str, resumed_at: int) -> list:
    """A TensorBoard and a WeightsAndBiases, or those of them that are there; on the rank that writes.

    Raises LaunchError.
    """
    boards: list = []
    if importlib.util.find_spec("tensorboard") is None:
        logger.info("TensorBoard is not installed (extra `log`), so nothing is written for it.")
    else:
        boards.append(TensorBoard(folder.tensorboard, resumed_at))
    if recipe.wandb is not None:
        boards.append(WeightsAndBiases(recipe, folder, name))
    return boards
