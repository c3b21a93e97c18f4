"""How far a run is: by its own files, and by what Slurm's queue holds of it; no accounting is needed."""

import json
from dataclasses import dataclass
from pathlib import Path

from megatron_nca.cluster import queue, record
from megatron_nca.cluster.queue import Entry
from megatron_nca.cluster.record import Submission
from megatron_nca.errors import LaunchError
from megatron_nca.plan import Step
from megatron_nca.run_dir import PhaseFolder, RunFolder

TAIL_BYTES = 65_536
RECENT = 20
"""Iterations that the rate is the mean of."""


@dataclass(frozen=True)
class Training:
    """Where a phase's own files say it is."""

    iteration: int
    iterations: int
    loss: float | None
    rate: float | None
    """Tokens a second."""
    seconds_left: float | None
    """To the last iteration at this rate."""

    def __str__(self) -> str:
        words = [f"iteration {self.iteration} of {self.iterations}"]
        words += [f"loss {self.loss:.4f}"] if self.loss is not None else []
        words += [f"{self.rate:,.0f} tokens/s"] if self.rate is not None else []
        words += [f"{in_words(self.seconds_left)} to go"] if self.seconds_left else []
        return ", ".join(words)


def training(folder: PhaseFolder, iterations: int) -> Training:
    """By the end of metrics.jsonl, of which a line may be torn, or lack a number."""
    lines = [line for line in _tail(folder.metrics) if line.get("type") == "train" and _has_numbers(line)]
    if not lines:
        return Training(0, iterations, None, None, None)
    last, recent = lines[-1], lines[-RECENT:]
    seconds = sum(line["iteration-time"] for line in recent)
    tokens = sum(line["tokens-per-second"] * line["iteration-time"] for line in recent)
    left = (iterations - last["iteration"]) * seconds / len(recent)
    return Training(last["iteration"], iterations, last["lm loss"], tokens / seconds if seconds else None, left)


def _has_numbers(line: dict) -> bool:
    names = ("iteration", "lm loss", "iteration-time", "tokens-per-second")
    return all(isinstance(line.get(name), (int, float)) for name in names)


def _tail(path: Path) -> list[dict]:
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    result = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        result += [values] if isinstance(values, dict) else []
    return result


def of_steps(steps: tuple[Step, ...], iterations: dict[str, int]) -> list[str]:
    """One line for each step: whole or not, and how far a training is. `iterations`: of each phase."""
    lines = []
    for step in steps:
        if step.whole:
            lines.append(f"  whole    {step.name}")
            continue
        line = f"  to do    {step.name}"
        if step.trains:
            folder = PhaseFolder(step.done.parent)
            line += f": {training(folder, iterations[str(step.unit[2])])}"
            line += "".join(f"\n             {words}" for words in last_words(folder))
        lines.append(line)
    return lines


def last_words(folder: PhaseFolder) -> list[str]:
    """Why the last training ended, if it has said so."""
    result = []
    for path, key, what in ((folder.failed, "message", "failed"), (folder.stopped, "stopped by", "stopped by")):
        try:
            result.append(f"{what}: {json.loads(path.read_text(encoding='utf-8'))[key]}")
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return result


def of_jobs(run: RunFolder, submission: Submission) -> list[str]:
    """One line for each job of the last submission, and before them what is wrong with the queue."""
    numbers = record.ids(run.slurm, submission)
    try:
        found, lines = record.in_queue(queue.entries(run.slurm.queue), numbers), []
    except LaunchError as error:
        found, lines = None, [f"  (the queue cannot be asked: {error})"]
    failed: dict[str, str] = {}
    for job in submission.jobs:
        if not job.numbers:
            continue
        ends = record.ends(run.slurm, submission, job)
        bad = [end for end in ends.values() if end["action"] != "done"]
        before = next((failed[name] for name in (*job.after, *job.pairwise) if name in failed), None)
        if bad:
            failed[job.name], state = job.name, f"{bad[0]['action']}: {bad[0]['reason']}"
        elif len(ends) == len(job.numbers):
            state = "done"
        elif before:
            failed[job.name], state = before, f"not run, for {before} has ended so"
        elif found is None:
            state = "not known"
        else:
            state = _queued(found.get(job.name, []))
        many = f" {len(ends)} of {len(job.numbers)} over;" if job.is_array and len(ends) < len(job.numbers) else ""
        lines.append(f"  {job.name} ({', '.join(numbers.get(job.name, ['not submitted']))}):{many} {state}")
    return lines


def _queued(entries: list[Entry]) -> str:
    live = [entry for entry in entries if not entry.is_over]
    if not live:
        over = {entry.state.lower() for entry in entries}
        how = f" ({', '.join(sorted(over))})" if over else ""
        return f"gone from the queue{how}; `megatron-nca logs` may say why, resubmit goes on"
    words = []
    for entry in live[:3]:
        where = f" on {entry.nodes}" if entry.nodes else ""
        why = f" ({entry.reason})" if entry.reason not in ("None", "") else ""
        left = f", {entry.left} left of its time limit" if entry.state == "RUNNING" else ""
        words.append(f"{entry.state.lower()}{why}{where}{left}")
    return "; ".join(dict.fromkeys(words)) + (f"; {len(live) - 3} more" if len(live) > 3 else "")


def in_words(seconds: float) -> str:
    """`1 h 5 min` and the like."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
