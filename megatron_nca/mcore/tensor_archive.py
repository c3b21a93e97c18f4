"""One tensor as torch.save writes it, a zip archive, but as fast as the disk: to a stream, its sum taken by zlib.

torch.save takes the CRC-32 of the numbers at a fraction of zlib's speed, and torch.load compares none. What is written
here, torch.load reads; what torch.save writes, is read and compared here.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import torch

from megatron_nca import pickles

_BLOCK = 1 << 20
"""Bytes at once: what is read, summed and written while it is in a processor's cache."""
_SMALL = 1 << 20
"""Records of an archive up to this size are no numbers worth a second thought."""
_PICKLE_BYTES = 1000
"""More than what is said of any plain tensor takes."""
_LOCAL_HEADER = struct.Struct("<26xHH")
"""Before the bytes of a record: their name and an extra field follow it, of these lengths."""


def write(shape: torch.Size, dtype: torch.dtype, blocks: Iterator[torch.Tensor], file: BinaryIO) -> None:
    """Append the archive of a tensor to a stream: nothing is sought or read.

    As many of `blocks` are taken as its numbers fill, in their order. Raises OSError.
    """
    with zipfile.ZipFile(_Stream(file), "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), _pickle(shape, dtype))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), "little")
        numbers = zipfile.ZipInfo("archive/data/0")
        numbers.file_size = left = math.prod(shape) * dtype.itemsize
        with archive.open(numbers, "w") as record:
            while left:
                block = next(blocks)
                left -= block.nbytes
                assert block.dtype == dtype and left >= 0, f"{block.dtype} {tuple(block.shape)} for {dtype} {shape}"
                _write_in_parts(_bytes_of(block), record)
                del block  # before the next is read
        archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")


def _write_in_parts(data: memoryview, file: BinaryIO) -> None:
    for first in range(0, len(data), _BLOCK):
        file.write(data[first:first + _BLOCK])


def _pickle(shape: torch.Size, dtype: torch.dtype) -> bytes:
    """What torch.save says of a tensor that owns all of its storage; none of its memory is touched."""
    return pickles.without_numbers(torch.empty(shape, dtype=dtype))


def in_blocks(file: BinaryIO, start: int, length: int, shape: torch.Size,
              dtype: torch.dtype) -> Iterator[torch.Tensor] | None:
    """The numbers of the archive that `read` reads, in pieces, the last one once their sum has been compared.

    None unless the archive says of its tensor what `write` says of a tensor of `shape` and `dtype`. Raises
    zipfile.BadZipFile.
    """
    part = _Part(file, start, length)
    with zipfile.ZipFile(part) as archive:
        records = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        said = {name: archive.read(entry) for name, entry in records.items() if entry.file_size < _PICKLE_BYTES}
        numbers, size = records.get("data/0"), math.prod(shape) * dtype.itemsize
        if (said.get("data.pkl"), said.get("byteorder")) != (_pickle(shape, dtype), b"little"):
            return None
        if numbers is None or numbers.file_size != size or numbers.compress_type != zipfile.ZIP_STORED or not size:
            return None
    part.seek(numbers.header_offset)
    name_and_extra = sum(_LOCAL_HEADER.unpack(part.read(_LOCAL_HEADER.size)))
    part.seek(part.tell() + name_and_extra)
    return _numbers(part, numbers, dtype)


def _numbers(part: "_Part", entry: zipfile.ZipInfo, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    left, found = entry.file_size, 0
    while left:
        block = torch.empty(min(_BLOCK, left) // dtype.itemsize, dtype=dtype)
        data = _bytes_of(block)
        if part.readinto(data) < len(data):
            raise zipfile.BadZipFile(f"{entry.filename!r} is cut short")
        left, found = left - len(data), zlib.crc32(data, found)
        if not left and entry.CRC and found != entry.CRC:  # 0 was written where sums were turned off
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {entry.filename!r}")
        yield block


def read(file: BinaryIO, start: int, length: int, origin: object) -> object:
    """What torch.save or `write` put into `length` bytes of a file, opened unbuffered, from `start` on.

    Read by `pickles.load`, where `origin` names it; every sum is compared. Raises zipfile.BadZipFile, CheckpointError.
    """
    part = _Part(file, start, length)
    with zipfile.ZipFile(part) as archive:
        records = [entry for entry in archive.infolist() if entry.CRC]  # 0 was written where sums were turned off
        large = [entry for entry in records if entry.file_size > _SMALL]
        for entry in records:
            if len(large) > 1 or entry not in large:
                with archive.open(entry) as content:
                    while content.read(_SMALL):
                        pass
        part.seek(0)
        result = pickles.load(part, origin)
        if len(large) == 1:
            _compare(result, large[0])
    return result


def _compare(result: object, entry: zipfile.ZipInfo) -> None:
    """Of the numbers as they were loaded, so that they are read once."""
    numbers = memoryview(b"")
    if isinstance(result, torch.Tensor):
        numbers = _bytes_of(torch.empty(0, dtype=torch.uint8).set_(result.untyped_storage()))
    found = 0
    for first in range(0, len(numbers), _BLOCK):
        found = zlib.crc32(numbers[first:first + _BLOCK], found)
    if len(numbers) != entry.file_size or found != entry.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {entry.filename!r}")


def _bytes_of(values: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(values.view(-1).view(torch.uint8).numpy())


class _Stream(io.RawIOBase):
    """An archive of its own within a longer file: zipfile then counts from 0 and writes sums behind the numbers."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:
        return self._file.write(data)


class _Part(io.RawIOBase):
    """`length` bytes of a file from `start` on, as a file of its own, so that a chunk need not be copied to be read."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        """All of `buffer` that there is: torch takes a short count for the end."""
        view = memoryview(buffer).cast("B")
        view = view[:max(0, min(len(view), self._length - self._position))]
        self._file.seek(self._start + self._position)
        done = 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        self._position += done
        return done

    def read(self, size: int = -1) -> bytes:
        size = self._length - self._position if size is None or size < 0 else size
        data = bytearray(max(0, min(size, self._length - self._position)))
        return bytes(data[:self.readinto(data)])
