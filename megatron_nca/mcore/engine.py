"""All that the training loop sees of Megatron and DeepSpeed: a model that takes steps, evaluates, saves and loads."""

import contextlib
import itertools
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
import torch.distributed as dist

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.recipe import Phase
from megatron_nca.config.run_config import RunConfig, load_run_config
from megatron_nca.mcore import device_environment, parallel, patches
from megatron_nca.mcore.parallel import Ranks, agree, agreed, gather, lone_process, read_ranks  # noqa: F401 (the door)

if TYPE_CHECKING:
    from megatron_nca.mcore.async_save import Writing


@dataclass(frozen=True)
class StepResult:
    """What one iteration measured, equal on all ranks."""

    loss: float
    """Mean over the scored tokens of the global batch, nats."""
    grad_norm: float
    learning_rate: float
    """That this step used."""
    loss_scale: float
    skipped: bool
    """Whether the update was left out: the loss was not accepted, or a gradient was not finite."""
    votes: tuple[float, ...] = ()
    """Sums over all ranks of what each of them voted."""


@dataclass(frozen=True)
class Evaluation:
    loss: float
    loss_by_position: list[float | None]
    """Mean loss of each bucket of target positions; None where no position is scored."""


class Engine:
    """One phase's model on this rank, in Megatron's engine. Building it is collective; so is every method."""

    def __init__(self, model: ModelConfig, phase: Phase, ranks: Ranks, seed: int) -> None:
        self.model_config, self.phase, self.ranks, self.seed = model, phase, ranks, seed
        self.environment_note = device_environment.prepare(phase.parallel)
        patches.import_megatron()
        self._check_machine()
        self.device = parallel.initialise(phase.parallel, ranks)
        self.adam = patches.install()
        from megatron.core.utils import get_model_config

        from megatron_nca.mcore import model as models
        from megatron_nca.mcore import optim, stack

        parallel.seed_streams(seed, 0)
        chosen = stack.choose(phase)
        self.layers = chosen.name
        chunks = models.build(model, phase, chosen, self.device)
        self._config = get_model_config(chunks[0])
        self._numel = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
        self._wrap(chunks)
        self.schedule = optim.build_schedule(self.optimizer, phase)

    def _check_machine(self) -> None:
        """Raise ConfigError if something lacks here, before a group is joined, and alike on every rank."""
        from megatron_nca.mcore import stack

        stack.check_precision(self.phase)

    def _wrap(self, chunks: list[torch.nn.Module]) -> None:
        """Put the engine around the model: `chunks` and `optimizer`."""
        from megatron_nca.mcore import freezing, optim

        self.chunks = optim.wrap(chunks, self.phase.parallel)
        self._frozen = freezing.parameters(self.chunks, self.model_config, self.phase.freeze)
        self.optimizer = optim.build_optimizer(self.chunks, self.phase, self._frozen)
        self._connect()

    def _connect(self) -> None:
        """Give Megatron's schedules what they ask of the configuration."""
        from megatron.core import parallel_state
        from megatron.core.distributed import finalize_model_grads

        self._config.grad_scale_func = self.optimizer.scale_loss
        self._config.finalize_model_grads_func = finalize_model_grads
        if self.chunks[0].ddp_config.overlap_grad_reduce:
            no_sync = [chunk.no_sync for chunk in self.chunks]
            grad_sync = [chunk.start_grad_sync for chunk in self.chunks]
            single = len(self.chunks) == 1
            self._config.no_sync_func = no_sync[0] if single else no_sync
            self._config.grad_sync_func = grad_sync[0] if single else grad_sync
        self._held = None
        if self.phase.parallel.context > 1:
            from megatron_nca.mcore.attention import held_positions

            place = parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
            self._held = held_positions(self.model_config.sequence_length, *place).to(self.device)

    def train_step(
        self,
        batches: Iterator[dict],
        iteration: int,
        accepts: Callable[[float], bool] = math.isfinite,
        votes: Callable[[], Sequence[float]] = tuple,
    ) -> StepResult:
        """One optimizer step on the micro-batches of `batches`; `iteration` counts from 0.

        Their number follows from the sequences consumed so far, as the learning rate does. `votes` is asked on every
        rank once its gradients are there; the sums come with the loss, at no collective of their own. No update is made
        with a loss that `accepts` rejects, which all ranks ask about the same bits, nor with a gradient whose norm is
        known (clip_grad) and not finite: weights and optimizer states are as they were.
        """
        batch_size = self.phase.batch_sizes.at(self.schedule.num_steps)
        self._config.attention_dropout = self.phase.dropout_at(iteration)
        if self._config.attention_dropout:  # nothing else draws random numbers
            parallel.seed_streams(self.seed, iteration)
        for chunk in self.chunks:
            chunk.train()
        self._clear_gradients()
        sums = self._schedule(batches, batch_size, forward_only=False)
        loss_sum, tokens, *voted = self._sum(sums, 2, votes())
        learning_rate, loss_scale = self.learning_rate, float(self.optimizer.get_loss_scale())
        updated, grad_norm = False, math.nan
        loss = loss_sum / tokens
        if accepts(loss):
            with self._updating(iteration):
                updated, grad_norm, _ = self.optimizer.step()
        # Also after a skipped update: the rate is a function of the iteration, which a resume knows.
        self.schedule.step(increment=batch_size)
        return StepResult(
            loss=loss,
            grad_norm=float(grad_norm or 0.0),
            learning_rate=learning_rate,
            loss_scale=loss_scale,
            skipped=not updated,
            votes=tuple(voted),
        )

    def _updating(self, iteration: int) -> contextlib.AbstractContextManager:
        """Around an update, which leaves out what the phase freezes."""
        if self.phase.freeze is None:
            return contextlib.nullcontext()
        from megatron_nca.mcore import freezing

        return freezing.update(self.optimizer, self._frozen, self.phase.freeze.holds_at(iteration))

    def _clear_gradients(self) -> None:
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def evaluate(self, batches: Iterator[dict], sequences: int, buckets: np.ndarray) -> Evaluation:
        """Mean loss over `sequences` validation sequences, in all and by bucket; buckets (L,) of target positions."""
        for chunk in self.chunks:
            chunk.eval()
        with torch.no_grad():
            sums = self._schedule(batches, sequences, forward_only=True)
        length = self.model_config.sequence_length
        values = np.array(self._sum(sums, 2 + 2 * length))
        losses = np.bincount(buckets, weights=values[2 : 2 + length])
        counts = np.bincount(buckets, weights=values[2 + length :])
        means = [float(loss / count) if count else None for loss, count in zip(losses, counts, strict=True)]
        return Evaluation(loss=float(values[0] / values[1]), loss_by_position=means)

    @property
    def learning_rate(self) -> float:
        """Of the next update, of what is trained."""
        rates = [group["lr"] for group in self.optimizer.param_groups if not group["is_decoupled_lr"]]
        return float(rates[0]) if rates else math.nan

    def _schedule(self, batches: Iterator[dict], sequences: int, forward_only: bool) -> list:
        """Run a global batch of `sequences` through the pipeline; what the last stage logged, elsewhere empty."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        chunks, micro_batch_size = len(self.chunks), self.phase.micro_batch_size
        return get_forward_backward_func()(
            forward_step_func=partial(forward_step, by_position=forward_only, held=self._held),
            # Every chunk goes through the same micro-batches at its own pace.
            data_iterator=batches if chunks == 1 else list(itertools.tee(batches, chunks)),
            model=self.chunks,
            num_microbatches=sequences // (micro_batch_size * self.phase.parallel.data),
            seq_length=self.model_config.sequence_length,
            micro_batch_size=micro_batch_size,
            forward_only=forward_only,
        )

    def _sum(self, logged: list[torch.Tensor], size: int, votes: Sequence[float] = ()) -> list[float]:
        """What the last stage logged for each micro-batch, added up over them and over all sequences, and all ranks'
        votes: `size` and len(votes) numbers. One collective of all ranks, and the same bits on each.
        """
        from megatron.core import parallel_state

        values = torch.zeros(size + len(votes), dtype=torch.float64, device=self.device)
        values[size:] = torch.tensor(votes, dtype=torch.float64)
        # All ranks of a tensor-parallel group have the same losses, which must count once.
        if logged and parallel_state.get_tensor_model_parallel_rank() == 0:
            values[:size] = torch.stack(logged).sum(0)
        if self.ranks.world_size > 1:
            dist.all_reduce(values)
        return values.tolist()

    @property
    def device_name(self) -> str:
        """As the driver calls it."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def memory(self) -> dict[str, int]:
        """Not collective: bytes of this rank, with Megatron-LM's key on a GPU; on a CPU what is resident."""
        if self.device.type == "cuda":
            return {"mem-max-allocated-bytes": torch.cuda.max_memory_allocated(self.device)}
        return {"mem-rss-bytes": psutil.Process().memory_info().rss}

    @property
    def checkpoint_bytes(self) -> int:
        """About what a checkpoint takes on disk: weights, fp32 weights and two moments, of all ranks."""
        return self._numel * 16 * self.phase.parallel.tensor * self.phase.parallel.pipeline

    def start_save(self, folder: Path) -> "Writing":
        """Begin to save into the existing, empty `folder`; all is written on return unless the phase's async_save.

        One rank alone may raise OSError, while the others wait inside Megatron for the launcher to end them.
        """
        from megatron_nca.mcore import sharded

        how = sharded.Saving(self.phase.async_save, self.phase.fully_parallel_checkpoints)
        with self._whole_weights():
            return sharded.start_save(folder, self.chunks, self.optimizer, how)

    @contextlib.contextmanager
    def _whole_weights(self, to_change: bool = False) -> Iterator[None]:
        """Inside, this rank holds the weights of its part of the model, up to date; `to_change` sets them."""
        if self.chunks[0].ddp_config.overlap_param_gather and not to_change:
            for chunk in self.chunks:  # else weights of other ranks' shards are those before the last update
                chunk.start_param_sync(force_sync=True)
        yield

    def load(self, folder: Path) -> RunConfig:
        """Weights, and optimizer states if there are any; sets the schedule to the checkpoint's iteration."""
        from megatron_nca.mcore import freezing, sharded

        freezing.check_same(folder, load_run_config(folder), self.phase.freeze)
        shared = self.phase.fully_parallel_checkpoints
        with self._whole_weights(to_change=True):
            run_config = sharded.load(folder, self.chunks, self.optimizer, self.model_config, shared)
        self.schedule.num_steps = 0
        self.schedule.step(increment=run_config.consumed_sequences)
        return run_config

    def close(self) -> None:
        parallel.leave_model_groups()


def build_engine(model: ModelConfig, phase: Phase, ranks: Ranks, seed: int) -> Engine:
    """The engine that the phase names. Collective; raises ConfigError, on every rank alike."""
    if phase.parallel.engine == "megatron":
        return Engine(model, phase, ranks, seed)
    patches.import_megatron()
    from megatron_nca.mcore.zero import ZeroEngine

    return ZeroEngine(model, phase, ranks, seed)


def forward_step(
    batches: Iterator[dict], model: torch.nn.Module, by_position: bool, held: torch.Tensor | None
) -> tuple[torch.Tensor, Callable]:
    """Megatron's forward step. `held` are the positions of this rank where sequences are split."""
    batch = next(batches)
    length = batch["tokens"].shape[1]
    if held is not None:
        batch = {key: rows.index_select(1, held) for key, rows in batch.items()}
    losses = model(batch["tokens"], None, None, labels=batch["labels"])
    positions = (length, held) if by_position else None
    return losses, partial(_loss, batch["loss_mask"], positions=positions)


def _loss(loss_mask: torch.Tensor, losses: torch.Tensor, positions: tuple[int, torch.Tensor | None] | None) -> tuple:
    """Megatron's loss function: (sum of losses, scored tokens, what to log). Shapes (B, positions of this rank).

    With `positions`, the length of a sequence and which of it are held here, both are logged by position too.
    """
    masked = losses.float() * loss_mask
    total, tokens = masked.sum(), loss_mask.sum()
    logged = torch.stack([total.detach(), tokens]).double()
    if positions is not None:
        length, held = positions
        for values in (masked, loss_mask):
            sums = values.double().sum(0)
            logged = torch.cat([logged, sums if held is None else sums.new_zeros(length).index_copy(0, held, sums)])
    return total, tokens.to(torch.int), logged


def datasets(*args: object, **kwargs: object) -> object:
    """Build `mcore.datasets.Datasets`; a process group must be there."""
    from megatron_nca.mcore.datasets import Datasets

    return Datasets(*args, **kwargs)


def versions(engine: str) -> dict[str, str]:
    """What computes here, in the engine of that name."""
    packages = ["megatron-core"] if engine == "megatron" else ["megatron-core", engine]
    found = {package: version(package) for package in packages}
    return {"python": platform.python_version(), "torch": torch.__version__, **found}
