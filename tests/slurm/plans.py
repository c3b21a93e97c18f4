"""Small plans, and how tests submit, watch and disturb them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
TIMES = {
    "iteration-time", "tokens-per-second", "throughput", "mem-rss-bytes", "wall-time", "training-time", "data-time"
}  # fmt: skip
"""What differs between two runs in the lines of metrics.jsonl."""
LAW = {"num_states": 3, "height": 6, "width": 6, "sequence_length": 64, "band": [0.05, 1.0], "score_frames": 5}
CLUSTER = {"name": "test", "time": "30m", "warn": "20s", "node": {"devices": 2}}


def recipe_values(iterations: int = 6, **phase: object) -> dict:
    """Two phases that follow each other, over two nodes of two ranks."""
    optimizer = {"lr": 3e-3, "min_lr": 1e-4, "warmup_iterations": 2, "weight_decay": 0.1, "clip_grad": 1.0}
    phase = {
        "iterations": iterations, "global_batch_size": 4, "micro_batch_size": 2, "precision": "fp32",
        "validation_interval": 3, "validation_sequences": 4, "save_interval": 3, "optimizer": optimizer,
        "parallel": {"tensor": 2, "pipeline": 2}, **phase,
    }  # fmt: skip
    return {
        "name": "small",
        "control": "nca",
        "seeds": [0],
        "model": {
            "num_layers": 2, "hidden_size": 32, "num_heads": 4, "ffn_hidden_size": 64, "sequence_length": 64,
        },
        "datasets": {
            "automata": {"source": "nca", "law": LAW, "sequences": 4 * iterations, "validation_sequences": 4},
            "draws": {"source": "iid", "base": "automata"},
        },
        "phases": {"nca": {**phase, "dataset": "automata"}, "text": {**phase, "dataset": "draws"}},
        "arms": {"nca": {"steps": [{"phase": "nca"}, {"phase": "text", "start": {"carry": ["all"]}}]}},
    }  # fmt: skip


def one_phase(iterations: int, save_interval: int, **phase: object) -> dict:
    """The automata phase alone, on two nodes of one rank."""
    values = recipe_values(iterations, save_interval=save_interval, validation_interval=save_interval,
                           **{"parallel": {"tensor": 2}, **phase})  # fmt: skip
    del values["phases"]["text"], values["datasets"]["draws"]
    values["arms"]["nca"]["steps"] = values["arms"]["nca"]["steps"][:1]
    return values


def write(path: Path, values: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def call(*words: object, check: bool = True, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess:
    """A verb of the program."""
    command = [sys.executable, "-m", "megatron_nca", *map(str, words)]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
                            timeout=timeout)  # fmt: skip
    assert not check or result.returncode == 0, f"{words}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def metrics(run: Path, phase: str = "nca", arm: str = "nca") -> list[dict]:
    """The lines of a phase without times."""
    path = run / "arms" / arm / "seed0" / phase / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def iteration(run: Path, phase: str = "nca") -> int:
    return max((line["iteration"] for line in metrics_or_nothing(run, phase)), default=0)


def metrics_or_nothing(run: Path, phase: str) -> list[dict]:
    try:
        return metrics(run, phase)
    except ValueError:  # a line that is being written
        return []


def wait(until: Callable[[], object], seconds: float, what: str, tell: Callable[[], str] = str) -> object:
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, f"no {what} in {seconds} s\n{tell()}"
        time.sleep(0.2)
    return found


@dataclass
class Slurm:
    folder: Path

    def daemon(self, verb: str, name: str) -> None:
        """`stop` or `start` one: ctld, n1, n2, n3."""
        command = [str(ROOT / "slurm" / "dev_cluster.sh"), verb, str(self.folder), name]
        subprocess.run(command, check=True, timeout=60)

    def submit(self, folder: Path, recipe: dict, cluster: dict | None = None, run: Path | None = None) -> Path:
        """Through slurm/submit.py. Returns the run folder."""
        run = run or folder / "run"
        files = write(folder / "recipe.yaml", recipe), write(folder / "cluster.yaml", {**CLUSTER, **(cluster or {})})
        command = [sys.executable, "slurm/submit.py", str(files[0]), "--cluster", str(files[1]), "--run-dir", str(run)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stdout + result.stderr
        return run

    def queue(self) -> list[list[str]]:
        """Number, name, state and nodes of what waits or runs."""
        form = "--format=%i|%j|%T|%N"
        result = subprocess.run(["squeue", "--noheader", form], capture_output=True, text=True, check=True)
        return [line.split("|") for line in result.stdout.splitlines()]

    def job(self, name: str) -> str:
        """Number of the one job whose name ends so."""
        return next(entry[0] for entry in self.queue() if entry[1].endswith(name))

    def kill_step(self, job: str) -> bool:
        """Kill the step at work, not the job; whether there was one."""
        words = ["squeue", "--steps", f"--jobs={job}", "--noheader", "--format=%i"]
        steps = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        numbered = [step for step in steps if step.rsplit(".", 1)[1].isdecimal()]
        return any(subprocess.run(["scancel", "--signal=KILL", step]).returncode == 0 for step in numbered)

    def finish(self, run: Path, seconds: float = 300) -> str:
        """Wait until the queue holds nothing any more; what progress.txt says then."""
        wait(lambda: not self.queue(), seconds, "end of the plan", lambda: self.account(run))
        return (run / "slurm" / "progress.txt").read_text()

    def clear(self) -> None:
        """End what is left in the queue."""
        if self.queue():
            subprocess.run(["scancel", f"--user={os.getuid()}"], check=True)
            wait(lambda: not self.queue(), 120, "end of what was cancelled")

    def account(self, run: Path) -> str:
        """For a message: all that is known of a plan."""
        parts = [json.dumps(self.queue()), (run / "slurm" / "progress.txt").read_text()]
        parts += [f"== {path}\n{path.read_text()[-3000:]}" for path in sorted((run / "slurm" / "logs").iterdir())]
        return "\n".join(parts)


def ranks(run: Path) -> list[int]:
    """Process numbers of the ranks that train in a run folder, under srun."""
    result = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words and b"train" in words and b"srun" not in words[0]:
            result.append(int(path.parent.name))
    return result


def send_all(numbers: list[int], what: signal.Signals) -> None:
    """A signal to all that are still there."""
    for number in numbers:
        try:
            os.kill(number, what)
        except ProcessLookupError:
            continue
