"""Environment variables that CUDA reads when a rank first uses its GPU, so they are set before that.

CUDA_DEVICE_MAX_CONNECTIONS = 1 makes a GPU take kernels in the order of their launch. Megatron-LM demands it
(arguments.py, validate_args) for tensor and context parallelism before Blackwell: only then does a collective that was
launched before a matrix product start before it, and the two overlap. Without them, and on Blackwell (compute
capability 10), it would only take parallelism away. On a CPU it means nothing. Not run on a GPU yet.
"""

import os
import subprocess
from collections.abc import Mapping

import torch

from megatron_nca.config.parallel import ParallelConfig

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
BLACKWELL = 10


def prepare(parallel: ParallelConfig) -> str | None:
    """Set what the layout needs in this process, unless the user did; returns what the log should say of it."""
    # Counted by the driver's management library: CUDA itself would read the variable now.
    if torch.cuda.device_count() == 0:
        return None
    value, note = choose(parallel, _compute_capability(), os.environ)
    if value is not None:
        os.environ[CONNECTIONS] = value
    return note


def choose(
    parallel: ParallelConfig, capability: int | None, environment: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """The value to set, None to leave it, and a note. `capability`: the major number of the GPU's, None: not known."""
    found = environment.get(CONNECTIONS)
    needed = (parallel.tensor > 1 or parallel.context > 1) and (capability is None or capability < BLACKWELL)
    if not needed:
        note = f"{CONNECTIONS} = {found} of the environment keeps kernels in order, which this layout does not need"
        return None, note if found == "1" else None
    if found is None:
        return "1", f"{CONNECTIONS} set to 1, so that communication of tensor and context parallelism can overlap"
    if found == "1":
        return None, None
    note = f"warning: {CONNECTIONS} = {found} of the environment is kept, but tensor and context parallelism overlap "
    return None, note + "their communication only with 1. Cure: unset it."


def _compute_capability() -> int | None:
    """Of the first GPU, its major number, asked of the driver without starting CUDA."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return int(told.split(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError):
        return None  # then as for older ones: the variable costs little where it is not needed
