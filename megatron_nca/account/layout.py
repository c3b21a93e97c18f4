"""How many ranks share one copy of the model, and a layout with as many copies as a number of devices holds."""

import dataclasses

from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.errors import ConfigError, explain


def ranks_of_a_copy(parallel: ParallelConfig) -> int:
    """tensor x pipeline x context: the ranks that one copy of the model and of its sequences is spread over."""
    return parallel.tensor * parallel.pipeline * parallel.context


def optimizer_shards(parallel: ParallelConfig) -> int:
    """data x context: the ranks that hold the same weights, over which the distributed optimizer is sharded."""
    return parallel.data * parallel.context


def at_world_size(parallel: ParallelConfig, world_size: int) -> ParallelConfig:
    """The same split of a model on `world_size` devices, with as many copies as they hold. Raises ConfigError."""
    copy = ranks_of_a_copy(parallel)
    if world_size < 1 or world_size % copy:
        reason = f"is not a multiple of tensor x pipeline x context = {copy}, the ranks of one copy of the model."
        near = max(1, round(world_size / copy)) * copy
        raise ConfigError(explain("--world-size", world_size, reason, f"for example {near}."))
    return dataclasses.replace(parallel, data=world_size // copy)
