"""Safetensors files, read and written in pieces of tensors: 8 bytes with the length of a JSON header, it, the numbers.

By hand rather than by the library, whose reader maps the whole file into memory and whose writer wants all tensors in
memory at once. What the library refuses (Rust, `safetensors/src/tensor.rs`) is refused here, and a test holds each to
the other's files.
"""

import contextlib
import io
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_nca.errors import CheckpointError
from megatron_nca.files import EarlySync

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
          "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
NAMES = {code: name for name, code in CODES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: `start` in bytes from the file's begin. `dtype` is torch's name, or the file's own code."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    def read(self) -> torch.Tensor:
        """The tensor, on the CPU. Raises CheckpointError."""
        result = torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        self.read_into(result)
        return result

    def read_into(self, target: torch.Tensor, first: int = 0) -> None:
        """Fill `target`, contiguous and of this type, with the numbers from the `first`-th on.

        Raises CheckpointError.
        """
        assert target.is_contiguous() and str(target.dtype) == f"torch.{self.dtype}", f"{self.name}: {target.dtype}"
        buffer = bytes_of(target)
        place = self.start + first * target.element_size()
        assert place + len(buffer) <= self.start + self.nbytes, f"{self.name}: {target.shape} from {first} on"
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(place)
                done = 0
                while done < len(buffer) and (count := file.readinto(buffer[done:])):
                    done += count
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror or error}). "
                                  "Cure: check the disk, or use another copy.") from error
        if done < len(buffer):
            raise CheckpointError(f"{self.path}: became shorter while it was read. Cure: use another copy.")


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def read_header(path: Path) -> dict[str, Entry]:
    """All tensors of a file by name. Raises CheckpointError for one that is damaged or not of this format."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(_LENGTH.size)
            if len(start) < _LENGTH.size:
                raise ValueError(f"it has {size} bytes")
            length = _LENGTH.unpack(start)[0]
            if length > min(_MAX_HEADER_BYTES, size - _LENGTH.size):
                raise ValueError(f"its header would have {length:,} bytes, the file has {size:,}")
            text = file.read(length)
        if not text.startswith(b"{"):
            raise ValueError("its header is no JSON object")
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
        return _entries(path, header, _LENGTH.size + length, size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}). "
                              "Cure: give a whole copy of the folder.") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file: {str(error)[:300]}. "
                              "Cure: give a whole copy of the folder.") from error


def _without_repeats(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"its header names {next(name for name in names if names.count(name) > 1)} twice")
    return result


def _entries(path: Path, header: dict, begin: int, size: int) -> dict[str, Entry]:
    """Checked as the library does: sizes fit shapes, and the tensors cover the file without a gap or an overlap."""
    header.pop("__metadata__", None)
    entries, spans = {}, []
    for name, values in header.items():
        if not isinstance(values, dict) or set(values) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"what its header says of {name} is not dtype, shape and data_offsets")
        dtype, shape, offsets = values["dtype"], values["shape"], values["data_offsets"]
        if dtype not in _SIZES:
            raise ValueError(f"{name} is of the unknown type {dtype!r}")
        if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
            raise ValueError(f"shape or offsets of {name} are no lists of sizes")
        first, last = offsets
        if last - first != math.prod(shape) * _SIZES[dtype]:
            raise ValueError(f"{name} of shape {tuple(shape)} and type {dtype} has {last - first:,} bytes")
        spans.append((first, last, name))
        entries[name] = Entry(path, name, NAMES.get(dtype, dtype), tuple(shape), begin + first, last - first)
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            raise ValueError(f"{name} begins at byte {first:,} where {end:,} is due: tensors overlap or leave a gap")
        end = last
    if begin + end != size:
        raise ValueError(f"its tensors end at byte {begin + end:,}, the file at {size:,}: it is truncated or longer")
    return entries


def _counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def write(path: Path, table: Mapping[str, tuple[tuple[int, ...], str]],
          blocks: Iterable[tuple[str, int, torch.Tensor]]) -> None:
    """Write a file of the tensors named in `table` (shape and torch's name of the type).

    Numbers come in any order as (name, which number of that tensor is the first, flat numbers) and are let go of once
    they are written. Making the file durable is the caller's. Raises OSError.
    """
    header, left, end = {"__metadata__": {"format": "pt"}}, {}, 0
    for name, (shape, dtype) in table.items():
        left[name] = math.prod(shape)
        first, end = end, end + left[name] * _SIZES[CODES[dtype]]
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + _LENGTH.size) % 64)
    with open(path, "wb", buffering=0) as file, contextlib.closing(EarlySync(file.fileno())) as early:
        _write_all(file, memoryview(_LENGTH.pack(len(text)) + text), 0)
        for name, first, block in blocks:
            assert str(block.dtype) == f"torch.{table[name][1]}", f"{name}: {block.dtype}"
            place = header[name]["data_offsets"][0] + first * block.element_size()
            _write_all(file, bytes_of(block), _LENGTH.size + len(text) + place)
            early.wrote(block.nbytes)
            left[name] -= block.numel()
    assert not any(left.values()), f"numbers of {[name for name, count in left.items() if count]} are missing"


def _write_all(file: io.FileIO, data: memoryview, place: int) -> None:
    """At `place` in bytes, wherever that is."""
    while data:
        done = os.pwrite(file.fileno(), data, place)
        data, place = data[done:], place + done
