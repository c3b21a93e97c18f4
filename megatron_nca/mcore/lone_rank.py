"""One rank of a world of any size, built alone and without memory for its tensors: proof that a layout builds.

torch's fake process group answers every collective at once, and tensors lie on torch's meta device, where they have
shapes and no values. Nothing can be trained so.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.config.recipe import Phase
from megatron_nca.errors import ConfigError, explain
from megatron_nca.mcore import parallel, patches


@dataclass(frozen=True)
class BuiltRank:
    """What stands on one rank: parameters as a number, the rest in bytes. Moments are made at the first step, two for
    each fp32 weight of the rank's share."""

    rank: int
    stage: int
    parameters: int
    weights: int
    gradients: int
    moments: int


class _OnMeta(TorchFunctionMode):
    """Megatron names the device of each tensor, and asks for the type of some; here every device is the meta device,
    and types are those of the device that is meant."""

    def __torch_function__(
        self, function: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = "meta"
        result = function(*args, **kwargs)
        if isinstance(result, str):
            return result.replace("torch.meta.", "torch.cuda." if torch.cuda.is_available() else "torch.")
        return result


@contextlib.contextmanager
def fake_world(layout: ParallelConfig, rank: int) -> Iterator[None]:
    """Inside, this process is that rank of a whole world, in which every collective is done at once and moves nothing.

    This process must have no process group. Raises ConfigError for a rank out of range.
    """
    if not 0 <= rank < layout.world_size:
        cure = f"choose one of 0 to {layout.world_size - 1}."
        raise ConfigError(explain("--rank", rank, f"the world has {layout.world_size} ranks.", cure))
    patches.import_megatron()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    try:
        with _fake_groups():
            parallel.initialise(layout, parallel.Ranks(rank=rank, world_size=layout.world_size, local_rank=0))
            patches.install()
            parallel.seed_streams(0, 0)
            yield
    finally:
        parallel.leave_model_groups()
        parallel.shut_down()


@contextlib.contextmanager
def _fake_groups() -> Iterator[None]:
    """Every group made inside is a fake one, also those that Megatron asks Gloo for, and all ranks say what this says
    (the fake group would leave the objects of the others unset)."""
    new_group, all_gather_object = dist.new_group, dist.all_gather_object

    def fake_group(*args: object, **kwargs: object) -> object:
        return new_group(*args, **{**kwargs, "backend": "fake"})

    def repeat(objects: list, mine: object, group: object = None) -> None:
        objects[:] = [mine] * len(objects)

    dist.new_group, dist.all_gather_object = fake_group, repeat
    try:
        yield
    finally:
        dist.new_group, dist.all_gather_object = new_group, all_gather_object


def build(model: ModelConfig, phase: Phase, rank: int) -> BuiltRank:
    """Build model, gradient buffers and optimizer of one rank of the phase's world, and count them."""
    with fake_world(phase.parallel, rank):
        from megatron.core import parallel_state

        from megatron_nca.mcore import model as models
        from megatron_nca.mcore import optim, stack

        with torch.device("meta"), _OnMeta():
            chunks = models.build(model, phase, stack.choose(phase), torch.device("meta"))
            chunks = optim.wrap(chunks, phase.parallel)
            optimizer = optim.build_optimizer(chunks, phase)
        share = [parameter for group in optimizer.optimizer.param_groups for parameter in group["params"]]
        return BuiltRank(
            rank=rank,
            stage=parallel_state.get_pipeline_model_parallel_rank(),
            parameters=sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters()),
            weights=sum(buffer.param_data.nbytes for chunk in chunks for buffer in chunk.buffers),
            gradients=sum(buffer.grad_data.nbytes for chunk in chunks for buffer in chunk.buffers),
            moments=2 * sum(parameter.nbytes for parameter in share),
        )
