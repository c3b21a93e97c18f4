"""The one reader of pickles that come in files, which runs no code from them, whoever wrote them, and their writer.

Training's resume, with either engine, and the converters read through it: `.metadata` of Megatron's torch_dist
checkpoints by an unpickler that knows the classes of that format alone, all that torch.save wrote with
weights_only=True, without what other packages of this process have told torch to let pass.
"""

import contextlib
import io
import os
import pickle
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.metadata import Metadata

from megatron_nca.errors import CheckpointError

METADATA_FILE = ".metadata"
TRUST_VARIABLE = "MEGATRON_NCA_TRUST_CHECKPOINTS"
"""Environment variable: 1 lets a torch older than 2.10 load checkpoints."""
_SAFE_TORCH = (2, 10)

_DCP = "torch.distributed.checkpoint"
_KNOWN_CLASSES = {
    f"{_DCP}.metadata": {"Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata",
                         "ChunkStorageMetadata", "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING"},
    f"{_DCP}.filesystem": {"_StorageInfo", "_StoragePrefix"},
    f"{_DCP}.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},
}


def check_torch(origin: object) -> None:
    """Who wrote a checkpoint cannot be told from its files, so an old torch loads none unless told to trust all."""
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < _SAFE_TORCH and os.environ.get(TRUST_VARIABLE) != "1":
        raise CheckpointError(
            f"{origin}: torch = {torch.__version__}: before {'.'.join(map(str, _SAFE_TORCH))} a checkpoint made for it "
            f"can run code although weights_only=True. Cure: use a newer torch, or set {TRUST_VARIABLE}=1 where all "
            "checkpoints are your own."
        )


def load(file: Path | BinaryIO, origin: object, known: Iterable[object] = (), values: bool = True) -> object:
    """What torch.save wrote to `file`, tensors on the CPU; `origin` names it in messages.

    Tensors and plain data are let through, and objects of the classes in `known`, as torch.serialization.safe_globals
    takes them. Without `values`, tensors are torch's FakeTensor, and their storages know where in `file` they lie.
    Raises CheckpointError for anything else and for a damaged file; FileNotFoundError.
    """
    check_torch(origin)
    try:
        with _only(known), contextlib.nullcontext() if values else FakeTensorMode():
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # what torch.load raises on damaged bytes is not of one kind
        raise CheckpointError(f"{origin}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Refused or damaged: torch says both in an UnpicklingError."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and (name := re.search(r"(?:GLOBAL|class) '?([\w.]+)", text)):
        return (f"holds more than tensors and plain data ({name[1]}), which could run code; it was not loaded. "
                "Cure: use only files that hold weights, from a program that you know.")
    return f"is damaged or no file of torch.save ({type(error).__name__}: {text[:200]}). Cure: use another copy of it."


@contextlib.contextmanager
def _only(known: Iterable[object]) -> Iterator[None]:
    """weights_only=True lets `known` pass and nothing else; megatron.core adds a list of its own when imported."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(known))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def read_metadata(folder: Path) -> Metadata:
    """The table of a torch_dist checkpoint. Raises CheckpointError."""
    path = folder / METADATA_FILE
    check_torch(folder)
    try:
        with open(path, "rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except FileNotFoundError as error:
        what = f"is not a whole checkpoint ({METADATA_FILE} is missing)" if folder.is_dir() else "is not there"
        raise CheckpointError(f"{folder}: {what}. Cure: give the folder of one iteration, such as "
                              ".../checkpoints/iter_0000100, or of a series of them.") from error
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path}: is damaged or not of torch's checkpoint format ({type(error).__name__}: "
                              f"{str(error)[:200]}). Cure: use another checkpoint.") from error
    if not (isinstance(metadata, Metadata) and all(
            isinstance(getattr(metadata, name, None), dict) for name in ("state_dict_metadata", "storage_data"))):
        raise CheckpointError(f"{path}: holds no table of tensors. Cure: use another checkpoint.")
    return metadata


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write the table of a torch_dist checkpoint. Raises OSError."""
    with open(folder / METADATA_FILE, "wb") as file:
        pickle.dump(metadata, file)


def without_numbers(tensor: torch.Tensor) -> bytes:
    """The pickle of a tensor in an archive of torch.save, whose numbers are its record `data/0`."""
    file = io.BytesIO()
    _TensorPickler(file, protocol=2).dump(tensor.detach())
    return file.getvalue()


class _TensorPickler(pickle.Pickler):
    def persistent_id(self, value: object) -> tuple | None:
        if isinstance(value, torch.storage.TypedStorage):
            return "storage", getattr(torch, value._pickle_storage_type()), "0", "cpu", value._size()
        return None


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the classes of torch's checkpoint metadata and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _KNOWN_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(f"{METADATA_FILE}: names {module}.{name}, which is no part of a checkpoint's table and "
                              "could run code; it was not loaded. "
                              "Cure: use only checkpoints that Megatron or this project wrote.")
