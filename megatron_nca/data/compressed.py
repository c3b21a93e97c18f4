"""Files of lines that are compressed, .gz and .zst, as a stream."""

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO

from megatron_nca.data.tool import needed_for

COMPRESSED = (".gz", ".zst")
TORN = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading a file that is cut off or damaged raises."""
_BLOCK = 1 << 20
_LARGEST_WINDOW = 1 << 31
"""Of a .zst file (zstd --long=31), in bytes of memory; the library's own limit is 2^27."""


def decompressed(path: Path) -> BinaryIO:
    """Raises OSError, and DataError without the package for .zst."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else io.BufferedReader(_Zstandard(path), _BLOCK)


class _Zstandard(io.RawIOBase):
    """A .zst file decompressed. The library's own reader takes a file that is cut off for one that has ended."""

    def __init__(self, path: Path) -> None:
        with needed_for(str(path)):
            import zstandard
        self._begin = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj
        self._damaged = zstandard.ZstdError
        self._file, self._frame, self._left = open(path, "rb"), None, b""  # noqa: SIM115 - closed by close

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._left:
            block = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            block = block or self._file.read(_BLOCK)
            if not block:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("it ends within a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._begin()
            try:
                self._left = self._frame.decompress(block)
            except self._damaged as error:
                raise EOFError(str(error)) from error
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
