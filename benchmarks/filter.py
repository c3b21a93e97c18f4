"""What the complexity filter costs per candidate: zlib, the same sizes without it, and the decision alone.

    python benchmarks/filter.py

Processor time of one thread over the frames of 20,000 rules of the released law; the best of three. The sizes of all
three are compared on the way.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from megatron_nca import ops
from megatron_nca.config.law import NcaLaw
from megatron_nca.nca import simulate

LAW = NcaLaw(sequence_length=379)  # documents of just the ten frames that are scored
RULES = 20_000
BOUNDS = (720, 1440)
"""The band 0.5 1.0 in bytes."""
CLASSES = [(0, 200), (200, 400), (400, 600), (600, 700), (700, 760), (760, 1440)]


def microseconds(call: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> float:
    times = []
    for _ in range(3):
        begin = time.process_time()
        call(rows)
        times.append(time.process_time() - begin)
    return 1e6 * min(times) / len(rows)


def by_zlib(rows: np.ndarray) -> np.ndarray:
    return ops.gzip_sizes(rows.astype("<i4").view(np.uint8))


def decisions(rows: np.ndarray) -> np.ndarray:
    return ops.accept_tokens(rows, *BOUNDS)


def main() -> int:
    documents = simulate.documents(LAW, 9, np.arange(RULES), np.zeros(RULES, dtype=int), threads=2)
    frames = documents.reshape(RULES, LAW.num_frames, LAW.frame_tokens)[:, : LAW.score_frames, 1:-1]
    rows = np.ascontiguousarray(frames.reshape(RULES, -1))
    sizes, fast = by_zlib(rows), ops.token_gzip_sizes(rows)
    known = fast >= 0
    different = int((fast[known] != sizes[known]).sum())
    wrong = int((decisions(rows)[known] != ((BOUNDS[0] < sizes) & (sizes < BOUNDS[1]))[known]).sum())
    print(f"{different} of {RULES:,} sizes and {wrong} decisions differ; {(~known).sum()} left to zlib")
    print("| gzip bytes | share | zlib | size | decision |\n|---|---|---|---|---|")
    for low, high in [(0, 10_000), *CLASSES]:
        some = rows[(low <= sizes) & (sizes < high)]
        name = "all" if high == 10_000 else f"{low} to {high - 1}"
        cells = " | ".join(f"{microseconds(call, some):.1f}" for call in (by_zlib, ops.token_gzip_sizes, decisions))
        print(f"| {name} | {100 * len(some) / RULES:.1f} % | {cells} |")
    return int(different + wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
