"""Save and load of a running model with Megatron's dist_checkpointing; every call is collective.

`torch_dist.py` reads and writes the same format without a model or a process group.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.api import CheckpointException

from megatron_nca import pickles
from megatron_nca.config.model import ModelConfig
from megatron_nca.config.run_config import RunConfig, load_run_config
from megatron_nca.errors import CheckpointError
from megatron_nca.mcore import optim, patches
from megatron_nca.mcore.async_save import Writing, failed
from megatron_nca.mcore.torch_dist import TorchDistReader

LAYOUT_FREE = "fully_reshardable"
"""The one optimizer format that loads at any layout; the others of 0.16.1 are tied to theirs."""


@dataclass(frozen=True)
class Saving:
    """How ranks write."""

    in_background: bool
    """In a forked process of each rank, while training goes on."""
    fully_parallel: bool
    """Copies of the model write a share each, instead of one of them all."""


def _metadata() -> dict:
    return {
        "distrib_optim_sharding_type": LAYOUT_FREE,
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _model_state(chunks: list[torch.nn.Module], metadata: dict) -> dict:
    """Each chunk's sharded tensors without `_extra_state`, pickled objects that only fp8 with a history fills."""
    states = [chunk.module.sharded_state_dict(metadata=metadata) for chunk in chunks]
    return {
        f"model{stage}": {name: tensor for name, tensor in state.items() if not name.endswith("_extra_state")}
        for stage, state in enumerate(states)
    }


def start_save(folder: Path, chunks: list[torch.nn.Module], optimizer: object, how: Saving) -> Writing:
    """Begin to write tensors of model and optimizer into the existing, empty `folder`.

    The state saved is that of now; unless `how.in_background`, all is written on return. A rank that cannot plan or
    begin raises CheckpointError or OSError, not always all ranks alike.
    """
    metadata = _metadata()
    state = _model_state(chunks, metadata)
    state["optimizer"] = optimizer.sharded_state_dict(dict(state), metadata=metadata)
    content = {key: value for key, value in metadata.items() if key != "dp_cp_group"}
    patches.save_without_a_server()
    strategy = TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1)
    if how.fully_parallel and metadata["dp_cp_group"].size() > 1:
        strategy = FullyParallelSaveStrategyWrapper(strategy, metadata["dp_cp_group"])
    try:
        request = dist_checkpointing.save(
            state, str(folder), strategy, async_sharded_save=True, content_metadata=content, **patches.own_writer()
        )
    except CheckpointException as error:  # not an Exception
        raise failed(folder, error) from error
    return Writing(request, folder, how.in_background)


def load(
    folder: Path, chunks: list[torch.nn.Module], optimizer: object, expected: ModelConfig, fully_parallel: bool
) -> RunConfig:
    """Load the weights of a checkpoint and, if it holds them, the optimizer's states; at any layout.

    With `fully_parallel` the copies of a model read a share of the tensors each and exchange them.

    Raises CheckpointError for a checkpoint of another shape: Megatron itself would fill a larger vocabulary with
    zeros and cut a smaller one without a word.
    """
    run_config = load_run_config(folder)
    check_shape(folder, run_config.model, expected)
    metadata = _metadata()
    state = _model_state(chunks, metadata)
    _check_tensors(folder, state)
    if run_config.optimizer:
        state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=True, metadata=metadata)
    _check_common(folder)
    strategy = get_default_load_sharded_strategy(str(folder))
    if fully_parallel and metadata["dp_cp_group"].size() > 1:
        strategy = FullyParallelLoadStrategyWrapper(strategy, metadata["dp_cp_group"])
    strict = "raise_unexpected" if run_config.optimizer else "assume_ok_unexpected"
    try:
        with patches.no_code_from_files():
            state = dist_checkpointing.load(state, str(folder), strategy, strict=strict)
    except (CheckpointException, Exception) as error:
        raise CheckpointError(
            f"{folder}: cannot be loaded ({type(error).__name__}: {str(error)[:500]}). "
            "Cure: use an older checkpoint of the series."
        ) from error
    with torch.no_grad():  # an fp32 optimizer copies into leaves in place
        for stage, chunk in enumerate(chunks):
            inner = getattr(chunk.module, "module", chunk.module)  # Float16Module's own does not say what is missing
            missing, unexpected = inner.load_state_dict(state[f"model{stage}"], strict=False)
            assert not unexpected and all(name.endswith("_extra_state") for name in missing), (missing, unexpected)
        if run_config.optimizer:
            optim.take_settings(state["optimizer"], optimizer)
            optimizer.load_state_dict(state["optimizer"])
        else:
            optimizer.reload_model_params()
    return run_config


def check_shape(folder: Path, found: ModelConfig, expected: ModelConfig) -> None:
    """Raise CheckpointError naming every setting in which the checkpoint's model differs from the one expected."""
    shaping = (
        "num_layers",
        "hidden_size",
        "num_heads",
        "query_groups",
        "ffn_hidden_size",
        "vocab_size",
        "rope_base",
        "rope_scaling",
        "tied_embeddings",
        "norm_epsilon",
    )
    different = [
        f"{name} is {getattr(found, name)}, expected {getattr(expected, name)}"
        for name in shaping
        if getattr(found, name) != getattr(expected, name)
    ]
    if different:
        raise CheckpointError(
            f"{folder}: holds another model: {'; '.join(different)}. "
            "Cure: make the phase's initial checkpoint with `megatron-nca convert transfer`."
        )


def _check_tensors(folder: Path, chunks: dict[str, dict]) -> None:
    """The file's own table of tensors, read without unpickling code, must agree with the model's."""
    table = TorchDistReader(folder).table
    for name, tensor in (item for chunk in chunks.values() for item in chunk.items()):
        if isinstance(tensor, ShardedTensorFactory):  # the gated MLP: gate and up are loaded apart, and checked then
            continue
        shape = tuple(tensor.global_shape)
        found = tuple(table[tensor.key][0]) if tensor.key in table else None
        if found != shape:
            raise CheckpointError(
                f"{folder}: tensor {tensor.key} has shape {found}, expected {shape} (for {name}). "
                "Cure: make the checkpoint with `megatron-nca convert transfer`."
            )


def _check_common(folder: Path) -> None:
    """Megatron unpickles `common.pt` itself, so it goes through the restricted reader first."""
    path = folder / "common.pt"
    if path.exists():  # Megatron-Core 0.19 writes none
        pickles.load(path, path)
