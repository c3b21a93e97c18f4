"""A file of torch.save, opened: its plain data are in memory, its tensors are read from it when asked for."""

import bisect
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch

from megatron_nca import pickles
from megatron_nca.errors import CheckpointError

_PIECE = 1 << 24
"""Bytes read at once where nothing is kept of them."""


class TorchFile:
    """`content` is what was saved, with tensors that know their type and shape but hold no values.

    Raises CheckpointError for a file that is not there, is damaged, or holds more than tensors, plain data and objects
    of the classes in `known`.
    """

    def __init__(self, path: Path, known: Iterable[object] = ()) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{self.path}: is not there. Cure: give the path of a checkpoint.")
        if not zipfile.is_zipfile(self.path):
            raise CheckpointError(f"{self.path}: is damaged or was not written by torch.save of torch 1.6 or newer. "
                                  "Cure: use another copy, or save it anew with a newer torch.")
        self.content = pickles.load(self.path, self.path, known, values=False)
        try:
            with zipfile.ZipFile(self.path) as archive:
                self._records = sorted(archive.infolist(), key=lambda record: record.header_offset)
        except zipfile.BadZipFile as error:
            raise self._damaged(str(error)) from error
        self._starts = [record.header_offset for record in self._records]

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values of a tensor of `content`, compared with the file's sum of them. Raises CheckpointError."""
        start, record = self._place(tensor)
        data = self._bytes(start, record.file_size)
        if record.CRC and zlib.crc32(data.numpy()) != record.CRC:  # 0: written without sums
            raise self._damaged(f"{record.filename} does not agree with its sum")
        return data.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def read_part(self, tensor: torch.Tensor, first: int, count: int) -> torch.Tensor:
        """`count` elements from `first` on of a tensor of one contiguous axis; `check_sums` looks for damage."""
        assert tensor.ndim == 1 and tensor.is_contiguous() and first >= 0 and first + count <= tensor.numel()
        start, _ = self._place(tensor)
        width = tensor.dtype.itemsize
        return self._bytes(start + (tensor.storage_offset() + first) * width, count * width).view(tensor.dtype)

    def check_sums(self) -> None:
        """Read the whole file and compare each record with its sum. Raises CheckpointError."""
        with zipfile.ZipFile(self.path) as archive:
            for record in self._records:
                try:
                    with archive.open(record) as content:
                        while record.CRC and content.read(_PIECE):
                            pass
                except zipfile.BadZipFile as error:
                    raise self._damaged(str(error)) from error

    def _place(self, tensor: torch.Tensor) -> tuple[int, zipfile.ZipInfo]:
        """Where the storage of a tensor begins in the file, and its record."""
        storage = tensor.untyped_storage()
        start = storage._checkpoint_offset
        record = self._records[bisect.bisect_left(self._starts, start) - 1]
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != storage.nbytes():
            raise self._damaged(f"{record.filename} has {record.file_size} bytes, expected {storage.nbytes()}")
        return start, record

    def _bytes(self, start: int, count: int) -> torch.Tensor:
        data = torch.empty(count, dtype=torch.uint8)
        with open(self.path, "rb") as file:
            file.seek(start)
            if file.readinto(memoryview(data.numpy())) != count:
                raise self._damaged("it is cut short")
        return data

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: is damaged ({reason}). Cure: use another copy of it.")
