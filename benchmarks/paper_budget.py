"""How long the paper's 164 million tokens take, from the command to the files: start of Python, search, all writing.

    python benchmarks/paper_budget.py                 both numbers of rules by turns, five rounds
    python benchmarks/paper_budget.py --rounds 2 --num-rules 16000 --threads 4

Both are the released law and differ in what the released code does and the paper's text says of rules (docs/parity.md,
D09): 16,000, each started about ten times, or a new one for each sequence. Every dataset is removed once it is timed.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SEQUENCES = 160_160  # of 1,024 tokens: 164 million
RULES = {"16000": "16,000 rules, about ten starts each", "none": "a rule per sequence"}


def measure(num_rules: str, threads: int, seed: int) -> tuple[float, float]:
    """Wall and processor seconds of one command."""
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:  # a disk, not a tmpfs
        how = f"--num-rules {num_rules} --sequences {SEQUENCES} --threads {threads} --seed {seed} --output".split()
        before, begin = _processor_seconds(), time.perf_counter()
        command = [sys.executable, "-m", "megatron_nca", "generate", *how, f"{folder}/nca"]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begin, _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    times = {num_rules: [] for num_rules in arguments.num_rules}
    for seed in range(arguments.rounds):
        for num_rules in times:
            times[num_rules].append(measure(num_rules, arguments.threads, seed))
    print("| --num-rules | | seconds of each round | median | processor seconds, median |\n|---|---|---|---|---|")
    for num_rules, measured in times.items():
        walls, processor = zip(*measured, strict=True)
        rounds = ", ".join(f"{wall:.2f}" for wall in walls)
        middle, used = statistics.median(walls), statistics.median(processor)
        print(f"| {num_rules} | {RULES[num_rules]} | {rounds} | {middle:.2f} | {used:.1f} |")
    print(f"\n{arguments.threads} threads, {os.cpu_count()} cores, load average at the end {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
