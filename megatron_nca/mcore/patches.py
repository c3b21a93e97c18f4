"""What Megatron-Core needs on any device, each with its reason. Other monkeypatches: only `cpu.py`, `rotary.py`,
`plain_cost.py`, and `lone_rank.py` while it builds."""

import contextlib
import importlib
import inspect
import logging
import queue
import sys
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from megatron_nca import pickles
from megatron_nca.mcore import cpu, plain_cost, rotary


class FusedAdam(torch.optim.Optimizer):
    """AdamW on torch's fused kernels with the state layout of Transformer Engine's and Apex's FusedAdam.

    The step count is one number per parameter group. torch's own AdamW keeps a tensor per parameter, which
    Megatron's DistributedOptimizer loses when it saves (0.16.1: `step` comes back as 0 from dp_reshardable and is a
    KeyError from fully_reshardable).
    """

    def __init__(
        self,
        params: object,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        if not adam_w_mode or capturable:
            raise ValueError("FusedAdam: only decoupled weight decay, without CUDA graphs, is offered.")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            group["step"] = group.get("step", 0) + 1
            if not parameters:
                continue
            for parameter in parameters:
                state = self.state[parameter]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
            step = torch.tensor(float(group["step"]), device=parameters[0].device)
            torch._fused_adamw_(
                parameters,
                [parameter.grad for parameter in parameters],
                [self.state[parameter]["exp_avg"] for parameter in parameters],
                [self.state[parameter]["exp_avg_sq"] for parameter in parameters],
                [],
                [step] * len(parameters),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )


# What Megatron 0.16.1 makes torch 2.13 say on every rank, about code that is not ours and is right.
_NOISE = (
    "full scope is deprecated",
    "The .grad attribute of a Tensor that is not a leaf",
    ".*torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor)",
    "Please use DTensor instead",
    "`load_state_dict` is deprecated",
    # What is used in their place is said in the log by the training loop.
    "(Transformer Engine and )?Apex (is|are) not installed",
    "Transformer Engine and Apex are not installed",
    "When using async grad allreduce it is recommended",
    "If you are using transformer_engine as the transformer implementation",
    # 0.19.2: its optimizer imports it; how it reads what is no tensor, on each rank by itself.
    "MimoModelConfig is experimental",
    "The argument order of load has been changed",
    "torch.distributed is disabled, unavailable or uninitialized, assuming the intent is to load in a single process",
)
# What 0.19.2 says in its log about code that serves 0.16 too. Name of the logger -> how the message begins.
_NOTICES = {
    # 0.16 does not have the HybridModel that is to replace it.
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",
    # It computes the one that we would compute and hand over.
    "megatron.core.distributed.distributed_data_parallel": "DistributedDataParallel: full_param_layout not provided",
    # Its own call, for the common.pt of 0.16 and of the converter.
    "megatron.core.dist_checkpointing.strategies.common": "load_common is deprecated",
    # Its queue of calls, which is not used here.
    "megatron.core.dist_checkpointing.strategies.torch": "MCore's async save is deprecated",
}


def quiet() -> None:
    """Leave out the warnings and notices above; all others still show."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in _NOTICES:
        logging.getLogger(name).addFilter(_is_news)


def import_megatron() -> None:
    """Quietly, before anything else imports it, and without what is not used here but costs every rank two seconds.

    Its inference imports Weights & Biases where that is installed; its decorators import torch's compiler, which
    `cpu.py` leaves out of 0.16 (a router of experts in 0.19 calls it by itself).
    """
    quiet()
    cpu.install()
    hidden = {"wandb"} - set(sys.modules)
    sys.modules.update(dict.fromkeys(hidden))
    try:
        importlib.import_module("megatron.core.models.gpt")
    finally:
        for name in hidden:
            del sys.modules[name]


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOTICES[record.name])


def install() -> str:
    """Apply the patches that this machine needs; returns the name of the Adam that Megatron will use."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    rotary.install()
    plain_cost.install()
    if not optimizer.USING_PYTORCH_OPTIMIZER and optimizer.Adam is not FusedAdam:
        return f"{optimizer.Adam.__module__}.{optimizer.Adam.__qualname__}"
    optimizer.Adam = distrib_optimizer.Adam = FusedAdam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True
    return "megatron_nca FusedAdam (torch._fused_adamw_)"


def save_without_a_server() -> None:
    """Let Megatron's checkpoint writer hand its results over in this process, where our saves wait for them.

    By itself it starts a server process for a queue on every rank: seconds and 270 MB, and a rank that is killed
    leaves its server behind for ever.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    assert hasattr(filesystem_async, "_results_queue"), "Megatron-Core 0.16 to 0.19 keep the queue there"
    filesystem_async._results_queue = queue.Queue()


def own_writer() -> dict[str, str]:
    """For dist_checkpointing.save, which from 0.19 on asks whose writer it plans for: Megatron's own."""
    from megatron.core import dist_checkpointing

    asked = "async_strategy" in inspect.signature(dist_checkpointing.save).parameters
    return {"async_strategy": "mcore"} if asked else {}


@contextlib.contextmanager
def no_code_from_files() -> Iterator[None]:
    """torch's reader, which Megatron uses, unpickles `.metadata` and objects among the tensors; inside, the
    restricted reader does."""
    before = FileSystemReader.read_metadata, DefaultLoadPlanner.load_bytes
    FileSystemReader.read_metadata, DefaultLoadPlanner.load_bytes = _read_metadata, _load_bytes
    try:
        yield
    finally:
        FileSystemReader.read_metadata, DefaultLoadPlanner.load_bytes = before


def _read_metadata(reader: FileSystemReader, *_: object, **__: object) -> Metadata:
    metadata = pickles.read_metadata(Path(reader.path))
    metadata.storage_meta = metadata.storage_meta or StorageMeta()
    metadata.storage_meta.load_id = reader.load_id
    return metadata


def _load_bytes(planner: DefaultLoadPlanner, item: object, value: BytesIO) -> None:
    name = item.dest_index.fqn
    loaded = pickles.load(value, f"object {name}")
    if planner.flatten_state_dict:
        set_element(planner.original_state_dict, planner.mappings[name], loaded)
    else:
        planner.state_dict[name] = loaded
