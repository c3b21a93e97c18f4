"""How fast filtered automata data reach the disk, against the paper's released code.

    python benchmarks/generation.py                      our figure beside a recorded one of the released code
    python benchmarks/generation.py --official CHECKOUT --official-python PYTHON
        both, back to back; PYTHON is an interpreter with jax, flax, torch, einops, matplotlib and joblib
    python benchmarks/generation.py --write HARDWARE     also keep the table in benchmarks/results/

Filtered tokens: every candidate is drawn and scored, only accepted ones give a sequence, which counts as 1,024 tokens.
Ours is the whole verb's work: draw, roll out, compress, roll out afresh, check, write, hash, fsync, rename.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron_nca import ops
from megatron_nca.config.law import preset, replace
from megatron_nca.nca import simulate
from megatron_nca.sources.nca import NcaSource, generate

LAW = replace(preset("released"), num_rules=None)
RECORDED = {"rules_per_second": 443.0, "filtered_tokens_per_second": 0.124e6}
RECORDED_WHERE = "released code at bdd1c71, JAX on two quiet cores of an AMD EPYC (Zen 5), November 2026"
OFFICIAL = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import jax
from utils.nca import compute_rule_gzip_batch, generate_nca_dataset
from utils.tokenizers import NCA_Tokenizer
count, law = int(sys.argv[2]), dict(grid=12, d_state=10, identity_bias=0.0, temperature=1e-4, dT=1, start_step=10)
tokenizer = NCA_Tokenizer(2, num_colors=10)
for attempt, _ in enumerate(sys.stdin):
    keys = jax.random.split(jax.random.PRNGKey(attempt), count)
    begin, processor = time.perf_counter(), time.process_time()
    scores = compute_rule_gzip_batch(keys, tokenizer, n_steps=10, mode="gzip", **law)
    accepted = keys[(scores > 0.5) & (scores < 1.0)]
    middle = time.perf_counter()
    sims = generate_nca_dataset(keys[0], num_sims=len(accepted), num_rules=len(accepted), rule_seeds=accepted,
                                num_examples=27, **law)
    tokenizer.encode_task(sims)
    end, processor = time.perf_counter(), time.process_time() - processor
    print(json.dumps({"rules_per_second": count / (middle - begin),
                      "filtered_tokens_per_second": 1024 * len(accepted) / (end - begin),
                      "tokens_per_processor_second": 1024 * len(accepted) / processor}), flush=True)
"""


class Official:
    """The released code's own functions in their own order. The first call compiles and is not counted."""

    def __init__(self, checkout: Path, python: Path, candidates: int) -> None:
        self.where = f"--official-python {python}: the released code at {checkout} did not run, see above."
        command = [str(python), "-c", OFFICIAL, str(checkout), str(candidates)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.measure()

    def measure(self) -> dict:
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            sys.exit(self.where)
        line = self.process.stdout.readline()
        return json.loads(line) if line else sys.exit(self.where)


def ours(sequences: int, threads: int, seed: int) -> dict:
    """Wall and processor time of one dataset."""
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:  # a disk, not a tmpfs
        source = NcaSource(LAW, sequences, seed=seed, threads=threads)
        wall, processor = time.perf_counter(), time.process_time()
        generate(source, Path(folder) / "nca")
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    tokens = sequences * LAW.sequence_length
    return {
        "rules_per_second": source.examined / wall,
        "filtered_tokens_per_second": tokens / wall,
        "tokens_per_processor_second": tokens / processor,
    }


def parts(candidates: int = 4000, updates: int = 40) -> str:
    """Processor time of one thread for the parts of the work."""

    def microseconds(work: Callable[[], object], times: int) -> float:
        spent = []
        for _ in range(3):
            begin = time.process_time()
            work()
            spent.append(time.process_time() - begin)
        return 1e6 * min(spent) / times

    indices = np.arange(candidates)
    weights = simulate.draw(LAW, 0, indices)
    states = np.random.default_rng(0).integers(0, LAW.num_states, (candidates, LAW.height, LAW.width))
    accepted = indices[simulate.accept(LAW, 0, 0, candidates)]
    first = microseconds(lambda: simulate.rollout(weights, states, 0, LAW.temperature, 0), candidates)
    all_updates = microseconds(lambda: simulate.rollout(weights, states, updates, LAW.temperature, 0), candidates)
    draw = microseconds(lambda: simulate.draw(LAW, 0, indices), candidates)
    judge = microseconds(lambda: simulate.accept(LAW, 0, 0, candidates), candidates)
    sequence = microseconds(lambda: simulate.documents(LAW, 0, accepted, 0 * accepted), len(accepted))
    return (
        f"Microseconds of one thread: {draw:.1f} to draw a rule, {(all_updates - first) / updates:.2f} an update, "
        f"{judge:.1f} to judge a candidate, {sequence:.1f} to make a sequence."
    )


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def row(what: str, threads: int, result: dict) -> str:
    cells = [f"{result['filtered_tokens_per_second'] / 1e6:.3f} M"]
    processor = result.get("tokens_per_processor_second")
    cells.append("" if processor is None else f"{processor / 1e6:.3f} M")
    return f"| {what} | {threads} | {' | '.join(cells)} | {result['rules_per_second']:,.0f} |"


def verdict(mine: list[dict], theirs: list[dict], key: str) -> tuple[float, float]:
    """Ratio of the medians, and of the best."""
    both = [[result[key] for result in results] for results in (mine, theirs)]
    return statistics.median(both[0]) / statistics.median(both[1]), max(both[0]) / max(both[1])


def table(mine: list[dict], theirs: list[dict], threads: int, where: str, kernel: str) -> str:
    rows = [row(f"megatron_nca, round {number}", threads, result) for number, result in enumerate(mine, 1)]
    rows += [row(f"{where}, round {number}", 2, result) for number, result in enumerate(theirs, 1)]
    median, best = verdict(mine, theirs, "filtered_tokens_per_second")
    processor = "its processor time was not recorded."
    if "tokens_per_processor_second" in theirs[0]:
        of_medians, of_best = verdict(mine, theirs, "tokens_per_processor_second")
        processor = f"by processor time {of_medians:.0f} and {of_best:.0f} times."
    fastest = max(result["filtered_tokens_per_second"] for result in mine)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return "\n".join([
        "| what | threads | filtered tokens/s (wall) | per processor-second | rules scored/s |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Over the released code: **{median:.0f} times** by the medians, **{best:.0f} times** best against best; "
        f"{processor}",
        f"At the best rate the paper's 164 million tokens take {164e6 / fastest:.1f} s.",
        f"Machine: {processor_name()}, {os.cpu_count()} cores, kernel `{kernel}`, load average {load}.",
        parts(),
        f"Law: released, band 0.5 1.0, one rule per sequence. {datetime.date.today().isoformat()}.",
    ])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="ours and the released code take turns")
    parser.add_argument("--kernel", default="", choices=["", *ops.kernel_names()], help="ours; otherwise the fastest")
    parser.add_argument("--official", type=Path, help="checkout of the released code")
    parser.add_argument("--official-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--official-candidates", type=int, default=4000)
    parser.add_argument("--write", metavar="HARDWARE", help="keep the table as results/generation_HARDWARE_DATE.md")
    arguments = parser.parse_args()
    if arguments.kernel:
        for name in ("accept", "documents", "draw", "rollout"):
            setattr(simulate, name, functools.partial(getattr(simulate, name), kernel=arguments.kernel))
    mine, theirs, where = [], [RECORDED], f"recorded, not measured now: {RECORDED_WHERE}"
    official = None
    if arguments.official:
        official = Official(arguments.official, arguments.official_python, arguments.official_candidates)
        theirs, where = [], "released code (JAX on CPU)"
    for seed in range(arguments.rounds):
        mine.append(ours(arguments.sequences, arguments.threads, seed))
        if official:
            theirs.append(official.measure())
    text = table(mine, theirs, arguments.threads, where, arguments.kernel or ops.kernel_names()[0])
    print(text)
    if arguments.write:
        name = f"generation_{arguments.write}_{datetime.date.today().isoformat()}.md"
        target = Path(__file__).parent / "results" / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(f"# Generation of filtered data\n\n{text}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
