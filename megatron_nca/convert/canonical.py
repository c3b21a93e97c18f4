"""The hub of conversion: a checkpoint as a model and a named sequence of tensors that are read only when asked for.

Spokes (one file a format) make one from their files or write their files from one. Names and shapes are those of
`initialise.tensor_table`; every tensor has the type in which it is stored, so that passing through changes no bit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.errors import CheckpointError
from megatron_nca.initialise import tensor_table

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that a weight may have, all of which float32 holds exactly."""


@dataclass(frozen=True)
class CanonicalTensor:
    """`read()` gives a CPU tensor of `shape` and `dtype`, read anew each time; `note` says what a user should know."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], torch.Tensor]
    note: str | None = None


@dataclass(frozen=True)
class Ignored:
    """Something in a file that is no weight of the model: optimizer state, random states, extra state."""

    key: str
    reason: str
    shape: tuple[int, ...] | None = None
    """None: not a tensor."""


@dataclass(frozen=True)
class CanonicalCheckpoint:
    """Where it is from (`origin`, for messages), its model, its tensors, and what was left aside."""

    origin: str
    model: ModelConfig
    tensors: tuple[CanonicalTensor, ...]
    ignored: tuple[Ignored, ...] = ()
    iteration: int = 0

    def tensor(self, name: str) -> CanonicalTensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def check(self) -> None:
        """Raise CheckpointError naming each tensor too many, too few, of another shape or of an unreadable type."""
        expected = {spec.name: spec.shape for spec in tensor_table(self.model)}
        found = {tensor.name: tensor for tensor in self.tensors}
        faults = [f"{tensor.name} occurs twice" for tensor in self.tensors if tensor is not found[tensor.name]]
        faults += [f"{name} is missing" for name in expected if name not in found]
        faults += [f"{name} is not a tensor of this model" for name in found if name not in expected]
        for name in expected.keys() & found.keys():
            if found[name].shape != expected[name]:
                faults.append(f"{name} has shape {found[name].shape}, expected {expected[name]}")
            if found[name].dtype not in DTYPES:
                faults.append(f"{name} is stored as {found[name].dtype}, expected one of {', '.join(DTYPES)}")
        if faults:
            raise CheckpointError(f"{self.origin}: does not hold the model it describes: {'; '.join(sorted(faults))}. "
                                  "Cure: use another checkpoint, or correct its run_config.yaml.")
