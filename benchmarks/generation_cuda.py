"""How fast a GPU makes filtered automata data.

    python benchmarks/generation_cuda.py                     the table
    python benchmarks/generation_cuda.py --write HARDWARE    also keep it in benchmarks/results/

Filtered tokens: every candidate is drawn, rolled out and weighed, only accepted ones give a sequence, which counts as
1,024 tokens. Two figures: the search, up to documents in pinned memory of the host, and the whole verb, up to a dataset
on disk, checked and hashed. The first datasets are compared with the CPU's, byte for byte, before anything is timed.
"""

import argparse
import datetime
import os
import sys
import tempfile
import time
from pathlib import Path

from megatron_nca import ops
from megatron_nca.config.law import preset, replace
from megatron_nca.errors import LaunchError
from megatron_nca.nca import complexity, simulate
from megatron_nca.sources.nca import NcaSource, generate

LAW = replace(preset("released"), num_rules=None)
TARGET = 1e9
"""Filtered tokens per second of the search on an H200, as a first step; arithmetic would allow 3 to 5 times that."""
CHECKED = 2_000
"""Sequences whose dataset is first made on both devices."""


def dataset(folder: Path, sequences: int, device: str, threads: int) -> tuple[dict[str, bytes], float]:
    """The files of a dataset of the law, and the seconds they took."""
    source = NcaSource(LAW, sequences, seed=0, threads=threads, device=device)
    begin = time.perf_counter()
    generate(source, folder / "nca")
    seconds = time.perf_counter() - begin
    return {ending: (folder / f"nca.{ending}").read_bytes() for ending in ("bin", "idx", "json")}, seconds


def search(seconds: float, threads: int, seed: int) -> dict:
    """Of batches that end between the third and `seconds` later."""
    batches = simulate.search(LAW, seed, complexity.official_band(LAW), 2**32, threads=threads)
    for _ in range(3):
        next(batches)
    begin, accepted, examined = time.perf_counter(), 0, 0
    while time.perf_counter() - begin < seconds:
        count, numbers, _ = next(batches)
        accepted, examined = accepted + len(numbers), examined + count
    took = time.perf_counter() - begin
    return {"tokens": accepted * LAW.sequence_length / took, "rules": examined / took}


def verb(sequences: int, threads: int) -> float:
    """Filtered tokens per second of a whole dataset, on the disk this file lies on."""
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        _, seconds = dataset(Path(folder), sequences, "cuda", threads)
    return sequences * LAW.sequence_length / seconds


def table(searches: list[dict], verbs: list[float], name: str, threads: int) -> str:
    rows = [
        f"| search, run {number} | {result['tokens'] / 1e6:,.1f} M | {result['rules'] / 1e6:.2f} M |"
        for number, result in enumerate(searches, 1)
    ]
    rows += [f"| whole verb, run {number} | {tokens / 1e6:,.1f} M | |" for number, tokens in enumerate(verbs, 1)]
    best = max(result["tokens"] for result in searches)
    verdict = "at least" if best >= TARGET else "BELOW"
    return "\n".join(
        [
            "| what | filtered tokens/s | rules weighed/s |",
            "|---|---|---|",
            *rows,
            "",
            f"Best search: {best / 1e9:.2f} billion filtered tokens/s ({verdict} {TARGET / 1e9:.0f}, the target).",
            f"{name}, {threads} host threads of {os.cpu_count()}. Law: released, band 0.5 1.0, one rule per sequence.",
            f"The first {CHECKED:,} sequences have the same bytes from both. {datetime.date.today().isoformat()}.",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each search (default %(default)s)")
    parser.add_argument("--sequences", type=int, default=1_000_000, help="of each dataset (default %(default)s, 2 GB)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", metavar="HARDWARE", help="keep it as results/generation_cuda_HARDWARE_DATE.md")
    arguments = parser.parse_args()
    try:
        name = ops.on("cuda").device_name()
    except LaunchError as error:
        print(f"Nothing was measured. {error}")
        return 0
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        if dataset(Path(one), CHECKED, "cuda", 1)[0] != dataset(Path(other), CHECKED, "cpu", arguments.threads)[0]:
            print("The GPU's dataset differs from the CPU's: nothing was measured.", file=sys.stderr)
            return 1
    searches = [search(arguments.seconds, arguments.threads, seed) for seed in range(arguments.repeats)]
    verbs = [verb(arguments.sequences, arguments.threads) for _ in range(arguments.repeats)]
    text = table(searches, verbs, name, arguments.threads)
    print(text)
    if arguments.write:
        today = datetime.date.today().isoformat()
        target = Path(__file__).parent / "results" / f"generation_cuda_{arguments.write}_{today}.md"
        target.write_text(f"# Generation of filtered data on a GPU\n\n{text}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
