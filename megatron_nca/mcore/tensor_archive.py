"""One tensor as torch.save writes it, a zip archive, but as fast as the disk: to a stream, its sum taken by zlib.

torch.save takes the CRC-32 of the numbers at a fraction of zlib's speed, and torch.load compares none. What is written
here, torch.load reads; what torch.save writes, is read and compared here.
"""

import io
import zipfile
import zlib
from typing import BinaryIO

import torch

from megatron_nca import pickles

_BLOCK = 1 << 23
_SMALL = 1 << 20
"""Bytes at once; records of an archive up to this size are no numbers worth a second thought."""


def write(tensor: torch.Tensor, file: BinaryIO) -> None:
    """Append an archive to a stream: nothing is sought or read. `tensor` is contiguous and owns all of its storage.

    Raises OSError.
    """
    with zipfile.ZipFile(_Stream(file), "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), pickles.without_numbers(tensor))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), "little")
        numbers = zipfile.ZipInfo("archive/data/0")
        numbers.file_size = tensor.nbytes
        with archive.open(numbers, "w") as record:
            data = _memory(tensor)
            for first in range(0, len(data), _BLOCK):
                record.write(data[first:first + _BLOCK])
        archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")


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
    numbers = _memory(result.untyped_storage()) if isinstance(result, torch.Tensor) else memoryview(b"")
    found = 0
    for first in range(0, len(numbers), _BLOCK):
        found = zlib.crc32(numbers[first:first + _BLOCK], found)
    if len(numbers) != entry.file_size or found != entry.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {entry.filename!r}")


def _memory(values: torch.Tensor | torch.UntypedStorage) -> memoryview:
    whole = torch.empty(0, dtype=torch.uint8).set_(values if isinstance(values, torch.UntypedStorage) else
                                                   values.untyped_storage())
    return memoryview(whole.numpy())


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
