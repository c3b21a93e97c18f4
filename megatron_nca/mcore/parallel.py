"""Rank variables, process groups, the device and the random streams: the one reader of a launcher's environment."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import psutil
import torch
import torch.distributed as dist

from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.errors import ConfigError, MegatronNcaError, explain
from megatron_nca.mcore import cpu, patches

SLURM_VARIABLES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """Where this process stands. One process without a launcher is rank 0 of 1."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        return self.rank == self.world_size - 1


def read_ranks() -> Ranks:
    """From RANK, WORLD_SIZE and LOCAL_RANK as torchrun sets them.

    MEGATRON_NCA_LAUNCHER=slurm says that srun started the ranks, not torchrun; they then take Slurm's numbers, which
    are there in every job. Others that read these variables find them set.
    """
    if os.environ.get("MEGATRON_NCA_LAUNCHER") == "slurm":
        for name, of_slurm in SLURM_VARIABLES.items():
            os.environ[name] = os.environ[of_slurm]
    return Ranks(
        rank=int(os.environ.get("RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
    )


def attempt() -> int | None:
    """The number that this launch was given in the phase's folder, if it was."""
    return int(os.environ["MEGATRON_NCA_ATTEMPT"]) if "MEGATRON_NCA_ATTEMPT" in os.environ else None


def end_with_launcher() -> None:
    """Under torchrun, die when it dies: a rank that lives on would be a second writer beside the restarted run."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent(os.getppid())


def launched_at() -> float:
    """When this process, or the launcher that started it, began; seconds since the epoch."""
    return psutil.Process(os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()).create_time()


def die_with_parent(parent: int) -> None:
    """End this process at once when the process `parent`, which started it, ends; on Linux."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it had ended before
            os.kill(os.getpid(), signal.SIGKILL)


def check_world_size(parallel: ParallelConfig, ranks: Ranks) -> None:
    """Raise ConfigError, on every rank alike, if the launcher started another number of ranks than the layout needs."""
    if ranks.world_size != parallel.world_size:
        raise ConfigError(
            explain(
                "world size",
                ranks.world_size,
                f"the layout tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context} "
                f"x data {parallel.data} needs {parallel.world_size} ranks.",
                f"start with torchrun --nproc-per-node {parallel.world_size}, or change the phase's parallel settings.",
            )
        )


def initialise(parallel: ParallelConfig, ranks: Ranks) -> torch.device:
    """Join the process group and build Megatron's groups. Returns this rank's device."""
    cpu.install()
    from megatron.core import parallel_state

    use_cuda = torch.cuda.is_available()
    device = torch.device("cuda", ranks.local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _join(ranks, "nccl" if use_cuda else "gloo")
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
    )
    return device


def _join(ranks: Ranks, backend: str) -> None:
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.world_size, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)


@contextlib.contextmanager
def lone_process() -> Iterator[None]:
    """Inside, this process is a group of its own, on the CPU, whatever the environment says of ranks."""
    patches.import_megatron()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
    try:
        yield
    finally:
        shut_down()


def side_store(name: str) -> dist.Store:
    """A connection of its own to the store at which ranks meet, under keys of this launch.

    Operations on one connection wait for each other, and those of a process group may wait long.
    """
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=False, wait_for_workers=False, timeout=COLLECTIVE_TIMEOUT)
    return dist.PrefixStore(f"{name} {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def leave_model_groups() -> None:
    """Leave Megatron's groups, so that another layout can be built in this process."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()


def shut_down() -> None:
    """Leave the process group at the end of a process; safe to call when none was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave_at_once(code: int) -> None:
    """End this process after a failure, when leaving a group in good order would wait for other ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def seed_streams(seed: int, iteration: int) -> None:
    """Set all of Megatron's random streams to a function of (seed, iteration, rank).

    Called at the front of each iteration, so that dropout after a resume equals dropout without one and
    no random state needs to be saved. Stages, parts of a sequence and copies of the model draw apart; inside a
    tensor-parallel group Megatron itself keeps what must be equal equal.
    """
    from megatron.core import parallel_state, tensor_parallel

    group = parallel_state.get_tensor_model_parallel_src_rank()
    combined = int(np.random.SeedSequence([seed, iteration, group]).generate_state(1)[0]) % (2**31 - 10_000)
    torch.manual_seed(combined)
    tensor_parallel.model_parallel_cuda_manual_seed(combined, force_reset_rng=True)


def gather(value: object) -> list:
    """Collective: the values of all ranks, by rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def agree(error: MegatronNcaError | None) -> None:
    """Collective: raise on every rank if any rank has an error, the lowest rank's, so that none is left waiting."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        if error is not None:
            raise _mark(error)
        return
    for rank, found in enumerate(gather(None if error is None else (type(error), str(error)))):
        if found is not None:
            raise _mark(found[0](found[1] if rank == 0 else f"rank {rank}: {found[1]}"))


def agreed(action: Callable[[], Result]) -> Result:
    """Collective: the result of `action` on this rank, or the lowest rank's MegatronNcaError on all ranks."""
    result, error = None, None
    try:
        result = action()
    except MegatronNcaError as failure:
        error = failure
    agree(error)
    return result


def _mark(error: MegatronNcaError) -> MegatronNcaError:
    error.agreed = True
    return error


def speaks_for(error: MegatronNcaError, ranks: Ranks) -> bool:
    """Whether this rank prints the error: the first of all ranks that agreed on it, or the only one that has it."""
    return ranks.is_first or not getattr(error, "agreed", False)
