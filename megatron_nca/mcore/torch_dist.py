"""Megatron's torch_dist checkpoints, read and written tensor by tensor with torch alone.

No model, no process group and no megatron import, so that converters run anywhere with the memory of one tensor. A
checkpoint is `.metadata` (a pickle: which chunk of which tensor lies where), `__*_*.distcp` (chunks one after the
other, each as torch.save writes it), `common.pt` and `metadata.json`. Both are read by `pickles.py`: a foreign
checkpoint cannot run code here.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_nca import pickles
from megatron_nca.errors import CheckpointError
from megatron_nca.files import HashedFile, ahead
from megatron_nca.mcore import tensor_archive
from megatron_nca.pickles import METADATA_FILE, read_metadata

_DATA_FILE = "__0_0.distcp"
_HASH_LAG = 4
"""Writes of at most a megabyte: numbers, which nobody changes."""
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1,
           "common_backend": "torch", "common_backend_version": 1}


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor and how to get it: `blocks()` gives its numbers in order, flat and contiguous, in pieces."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[torch.Tensor]]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor to write, as chunks that together cover it."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


class TorchDistReader:
    """One checkpoint, opened: its table is in memory, its tensors are not.

    Raises CheckpointError if the folder is no whole torch_dist checkpoint, also where a data file is missing or
    shorter than the table says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._metadata = read_metadata(self.folder)
        try:
            self._check_files()
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.folder / METADATA_FILE}: is not a table of tensors ({error}). "
                                  "Cure: use another checkpoint.") from error

    @property
    def table(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Of each tensor its shape and the name of its dtype, such as 'float32'."""
        return {key: (tuple(entry.size), str(entry.properties.dtype).removeprefix("torch."))
                for key, entry in self._metadata.state_dict_metadata.items()
                if isinstance(entry, TensorStorageMetadata)}

    @property
    def objects(self) -> tuple[str, ...]:
        """Keys of what is stored as pickled bytes rather than as tensors; they are never read."""
        return tuple(key for key, entry in self._metadata.state_dict_metadata.items()
                     if isinstance(entry, BytesStorageMetadata))

    def read(self, key: str, layer: int | None = None) -> torch.Tensor:
        """A tensor in its stored dtype, or the `layer`-th slice of its first axis; only the chunks needed are read.

        Raises CheckpointError if the chunks do not cover it exactly once or cannot be read.
        """
        entry = self._metadata.state_dict_metadata[key]
        first, size = _box(tuple(entry.size), layer)
        result, covered = None, 0
        for chunk in entry.chunks:
            low = [max(a, b) for a, b in zip(first, chunk.offsets, strict=True)]
            high = [min(a + n, b + m) for a, n, b, m in zip(first, size, chunk.offsets, chunk.sizes, strict=True)]
            if any(b <= a for a, b in zip(low, high, strict=True)):
                continue
            data = self._read_chunk(key, chunk)
            if tuple(chunk.offsets) == first and tuple(chunk.sizes) == size:
                result, covered = data, covered + data.numel()
                continue
            part = data[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, chunk.offsets, strict=True))]
            result = torch.empty(size, dtype=data.dtype) if result is None else result
            result[tuple(slice(a - f, b - f) for a, b, f in zip(low, high, first, strict=True))] = part
            covered += part.numel()
        if result is None or covered != math.prod(size):
            raise self._not_covered(key, covered, math.prod(size))
        return result if layer is None else result[0]

    def check_covered(self, key: str) -> None:
        """Raise CheckpointError if the chunks of a tensor hold more or fewer numbers than it has, as where its size is
        damaged: nobody should go through as many layers as that says."""
        entry = self._metadata.state_dict_metadata[key]
        covered = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
        if covered != math.prod(entry.size):
            raise self._not_covered(key, covered, math.prod(entry.size))

    def _not_covered(self, key: str, covered: int, size: int) -> CheckpointError:
        return CheckpointError(f"{self.folder}: the chunks of {key} cover {covered} of {size} elements. "
                               "Cure: use another checkpoint of the series.")

    def in_blocks(self, key: str, layer: int | None = None) -> Iterator[torch.Tensor]:
        """The numbers of `read(key, layer)` in order, flat: in pieces of some megabytes where one chunk is all of them
        and lies in its file as numbers do, else at once.

        The last piece comes once the sum of all has been compared. Raises CheckpointError.
        """
        entry = self._metadata.state_dict_metadata[key]
        first, size = _box(tuple(entry.size), layer)
        same = [chunk for chunk in entry.chunks if (tuple(chunk.offsets), tuple(chunk.sizes)) == (first, size)]
        blocks = None
        if len(same) == 1:
            with self._open_chunk(key, same[0]) as (file, start, length):
                blocks = tensor_archive.in_blocks(file, start, length, torch.Size(size), entry.properties.dtype)
                if blocks is not None:
                    yield from blocks
        if blocks is None:
            yield self.read(key, layer).contiguous().view(-1)

    @contextlib.contextmanager
    def _open_chunk(self, key: str, chunk: ChunkStorageMetadata) -> Iterator[tuple[BinaryIO, int, int]]:
        """The file of a chunk, where it begins there and how long it is; what fails then is said of the chunk."""
        place = self._metadata.storage_data[MetadataIndex(key, chunk.offsets)]
        path = self.folder / place.relative_path
        try:
            with open(path, "rb", buffering=0) as file:
                yield file, place.offset, place.length
        except Exception as error:  # what torch.load raises on damaged bytes is not of one kind
            raise CheckpointError(f"{path}: the chunk of {key} at byte {place.offset} is damaged "
                                  f"({str(error)[:200]}). Cure: use another checkpoint of the series.") from error

    def _read_chunk(self, key: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        with self._open_chunk(key, chunk) as (file, start, length):
            data = tensor_archive.read(file, start, length, file.name)
        if not isinstance(data, torch.Tensor) or data.shape != chunk.sizes:
            raise CheckpointError(f"{self.folder}: a chunk of {key} is not a tensor of shape {tuple(chunk.sizes)}. "
                                  "Cure: use another checkpoint of the series.")
        return data

    def _check_files(self) -> None:
        sizes: dict[str, int] = {}
        for key, entry in self._metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                continue
            _ = entry.properties.dtype
            for chunk in entry.chunks:
                if not len(chunk.offsets) == len(chunk.sizes) == len(entry.size):
                    raise ValueError(f"a chunk of {key} has not its axes")
                place = self._metadata.storage_data.get(MetadataIndex(key, chunk.offsets))
                if place is None or Path(place.relative_path).name != place.relative_path:
                    raise CheckpointError(f"{self.folder / METADATA_FILE}: names no file inside the checkpoint for "
                                          f"{key}. Cure: use another checkpoint of the series.")
                path = self.folder / place.relative_path
                size = sizes.setdefault(place.relative_path, path.stat().st_size if path.is_file() else -1)
                if size < place.offset + place.length:
                    needed = place.offset + place.length
                    state = "is missing" if size < 0 else f"is truncated: it has {size} bytes and needs {needed}"
                    raise CheckpointError(f"{path}: {state}. Cure: use another checkpoint of the series.")


def _box(shape: tuple[int, ...], layer: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and sizes of a whole tensor, or of one slice of its first axis."""
    if layer is None:
        return (0,) * len(shape), shape
    return (layer, *(0,) * (len(shape) - 1)), (1, *shape[1:])


@dataclass(frozen=True)
class StoredValues:
    """A tensor of a checkpoint, or a slice of its first axis, to be read as a whole (by a call) or in blocks."""

    reader: TorchDistReader
    key: str
    layer: int | None = None

    def __call__(self) -> torch.Tensor:
        return self.reader.read(self.key, self.layer)

    def in_blocks(self) -> Iterator[torch.Tensor]:
        return self.reader.in_blocks(self.key, self.layer)


def write_checkpoint(folder: Path, tensors: Iterable[StoredTensor], content_metadata: dict,
                     common: dict | None = None, empty_objects: Iterable[str] = ()) -> dict[str, dict]:
    """Write a checkpoint that `megatron.core.dist_checkpointing.load` reads at any layout.

    One block is in memory, and the next one, which is read meanwhile. `folder` is created; publishing it is the
    caller's. `common` is what else `common.pt` holds, `empty_objects` are keys of sharded objects that are None. The
    bytes depend on the tensors only. Returns records for `file_list.write`. Raises OSError from writing.
    """
    tensors, records = list(tensors), {}
    with contextlib.closing(ahead(in_step(tensors))) as values:
        for _ in writing(folder, tensors, values, content_metadata, records, common, empty_objects):
            pass
    return records


def in_step(tensors: Iterable[StoredTensor]) -> Iterator[torch.Tensor]:
    """Values for `writing` that are read when they are needed, none ahead."""
    for tensor in tensors:
        for chunk in tensor.chunks:
            yield from chunk.blocks()


def writing(folder: Path, tensors: Sequence[StoredTensor], values: Iterator[torch.Tensor], content_metadata: dict,
            records: dict[str, dict], common: dict | None = None,
            empty_objects: Iterable[str] = ()) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What `write_checkpoint` does, step by step: yields the key and the offsets of each chunk before it takes the
    chunk from `values`; enters what `file_list.write` should know into `records`."""
    folder.mkdir(parents=True)
    table, places = {}, {}
    with HashedFile(folder / _DATA_FILE, _HASH_LAG) as file:
        for tensor in tensors:
            chunks = [ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.shape)) for c in tensor.chunks]
            properties = TensorProperties(dtype=tensor.dtype)
            table[tensor.key] = TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
            for chunk in tensor.chunks:
                yield tensor.key, chunk.offsets
                start = file.tell()
                tensor_archive.write(torch.Size(chunk.shape), tensor.dtype, values, file)
                places[MetadataIndex(tensor.key, chunk.offsets)] = _StorageInfo(_DATA_FILE, start, file.tell() - start)
        for key in empty_objects:
            start = file.tell()
            _save([None], file)
            table[key] = BytesStorageMetadata()
            places[MetadataIndex(key)] = _StorageInfo(_DATA_FILE, start, file.tell() - start)
        records[_DATA_FILE] = file.record()
    with open(folder / "common.pt", "wb") as file:
        _save({**(common or {}), "content_metadata": content_metadata}, file)
    (folder / "metadata.json").write_text(json.dumps(_FORMAT), encoding="utf-8")
    pickles.write_metadata(folder, Metadata(table, storage_data=places, version="1.0.0"))


def _save(value: object, file: BinaryIO) -> None:
    """torch.save, but a full disk is the OSError it is: torch covers it with an error of its own archive writer."""
    try:
        torch.save(value, file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError):
                raise cause from None
            cause = cause.__context__
        raise
