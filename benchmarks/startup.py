"""What must cost nothing: `megatron-nca --help`, and opening a dataset.

    python benchmarks/startup.py

Limits that users were promised: help in under 0.3 s; opening reads the index and not the tokens. The dataset is 20 GB,
most of it a hole in the file, so that no disk needs to hold it.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from megatron_nca.data.indexed import DTYPES, HEADER, MAGIC, VERSION, IndexedReader

DOCUMENTS, LENGTH = 10_000, 1_000_000


def main() -> None:
    print("| what | median | worst of 10 |\n|---|---|---|")
    for words in (["--help"], ["generate", "--help"], ["train", "--help"], ["convert", "transfer", "--help"]):
        times = [_seconds_of_help(words) for _ in range(10)]
        print(f"| `megatron-nca {' '.join(words)}` | {statistics.median(times):.3f} s | {max(times):.3f} s |")
    with tempfile.TemporaryDirectory() as folder:
        _opening(Path(folder) / "large")


def _seconds_of_help(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "megatron_nca", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _opening(prefix: Path) -> None:
    size = _write(prefix)
    before, started = _bytes_read(), time.perf_counter()
    reader = IndexedReader(prefix)
    seconds, read = time.perf_counter() - started, _bytes_read() - before
    index = os.path.getsize(f"{prefix}.idx")
    assert len(reader) == DOCUMENTS and reader[DOCUMENTS - 1][-1] == 0
    print(f"\nOpening {size / 1e9:.0f} GB of tokens: {1e3 * seconds:.1f} ms, {read:,} bytes read by calls.")
    print(f"The index, {index:,} bytes, is memory-mapped and read through; no token is touched.")


def _write(prefix: Path) -> int:
    """A dataset whose .bin is a hole; returns its size in bytes."""
    itemsize = 2
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(DOCUMENTS * LENGTH * itemsize)
    code = next(code for code, dtype in DTYPES.items() if dtype == np.dtype("<u2"))
    with open(f"{prefix}.idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, code, DOCUMENTS, DOCUMENTS + 1))
        file.write(np.full(DOCUMENTS, LENGTH, "<i4").tobytes())
        file.write((np.arange(DOCUMENTS, dtype="<i8") * LENGTH * itemsize).tobytes())
        file.write(np.arange(DOCUMENTS + 1, dtype="<i8").tobytes())
    return DOCUMENTS * LENGTH * itemsize


def _bytes_read() -> int:
    """What this process has asked of files so far, cached or not."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


if __name__ == "__main__":
    main()
