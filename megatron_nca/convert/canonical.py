"""The hub of conversion: a checkpoint as a model and a named sequence of tensors that are read only when asked for.

Spokes (one file a format) make one from their files or write their files from one. Names and shapes are those of
`initialise.tensor_table`; every tensor has the type in which it is stored, so that passing through changes no bit.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_nca import files
from megatron_nca.config.model import ModelConfig
from megatron_nca.errors import CheckpointError
from megatron_nca.initialise import tensor_table

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that a weight may have, all of which float32 holds exactly."""
_OVERHEAD_BYTES = 4096
"""At most what a format adds to a tensor's own bytes; for the check of free space."""


@dataclass(frozen=True)
class CanonicalTensor:
    """`read()` gives a CPU tensor of `shape` and `dtype`, read anew each time; `note` says what a user should know.

    Where its format can give a tensor in parts, `read` is an object that has `in_blocks()` too.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], torch.Tensor]
    note: str | None = None

    def in_blocks(self) -> Iterator[torch.Tensor]:
        """The numbers of `read()`, flat and in order, in pieces as they come from the file, or all at once."""
        blocks = getattr(self.read, "in_blocks", None)
        if blocks is not None:
            yield from blocks()
        else:
            yield self.read().contiguous().view(-1)


@dataclass(frozen=True)
class Ignored:
    """Something in a file that is no weight of the model: optimizer state, random states, extra state."""

    key: str
    reason: str
    shape: tuple[int, ...] | None = None
    """None: not a tensor."""


@dataclass(frozen=True)
class CanonicalCheckpoint:
    """Where it is from (`origin`, for messages), its model, its tensors, and what was left aside.

    `notes` are sentences that a user should read; `described_by`
    names the file that describes the model.
    """

    origin: str
    model: ModelConfig
    tensors: tuple[CanonicalTensor, ...]
    ignored: tuple[Ignored, ...] = ()
    iteration: int = 0
    notes: tuple[str, ...] = ()
    described_by: str = "run_config.yaml"

    def tensor(self, name: str) -> CanonicalTensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def check(self) -> None:
        """Raise CheckpointError naming each tensor too many, too few, of another shape or of an unreadable type."""
        expected = {spec.name: spec.shape for spec in tensor_table(self.model)}
        found = {tensor.name: tensor for tensor in self.tensors}
        counts = Counter(tensor.name for tensor in self.tensors)
        faults = [f"{name} occurs {count} times" for name, count in counts.items() if count > 1]
        faults += [f"{name} is missing" for name in expected if name not in found]
        faults += [f"{name} is not a tensor of this model" for name in found if name not in expected]
        for name in expected.keys() & found.keys():
            if found[name].shape != expected[name]:
                faults.append(f"{name} has shape {found[name].shape}, expected {expected[name]}")
            if found[name].dtype not in DTYPES:
                faults.append(f"{name} is stored as {found[name].dtype}, expected one of {', '.join(DTYPES)}")
        if faults:
            raise CheckpointError(f"{self.origin}: does not hold the model it describes: {'; '.join(sorted(faults))}. "
                                  f"Cure: use another checkpoint, or correct its {self.described_by}.")


def check_free(folder: Path, *checkpoints: CanonicalCheckpoint) -> None:
    """Raise DataError if the disk of `folder` has too little space for all of them, in any format."""
    need = sum(DTYPES[tensor.dtype].itemsize * math.prod(tensor.shape) + _OVERHEAD_BYTES
               for checkpoint in checkpoints for tensor in checkpoint.tensors)
    files.check_free(folder, need, "--to", str(folder), "free some space, or choose another folder.")


def cast(checkpoint: CanonicalCheckpoint, dtype: str) -> CanonicalCheckpoint:
    """The same checkpoint with every tensor in `dtype`; what a rounded tensor was stored as stands in its note.

    Reading raises CheckpointError where a number of the source is beyond the range of the new type.
    """
    tensors = tuple(_cast(checkpoint.origin, tensor, dtype) for tensor in checkpoint.tensors)
    return dataclasses.replace(checkpoint, tensors=tensors)


def _cast(origin: str, tensor: CanonicalTensor, dtype: str) -> CanonicalTensor:
    if tensor.dtype == dtype:
        return tensor

    def read() -> torch.Tensor:
        values = tensor.read()
        result = values.to(DTYPES[dtype])
        if narrower and bool((torch.isfinite(values) & ~torch.isfinite(result)).any()):
            raise CheckpointError(f"{origin}: {tensor.name} holds numbers up to {float(values.abs().max()):.3g}, "
                                  f"beyond the range of {dtype}. Cure: choose another --dtype.")
        return result

    narrower = dtype != "float32"
    said = f"{'rounded' if narrower else 'widened'} from {tensor.dtype} to {dtype}"
    return CanonicalTensor(tensor.name, tensor.shape, dtype, read, f"{tensor.note}; {said}" if tensor.note else said)
