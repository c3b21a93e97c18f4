"""Attempts at a job: their numbers, how far each found the work, and what is done when one ends."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_nca import files
from megatron_nca.cluster.jobs import Task
from megatron_nca.errors import NOT_FINISHED, MegatronNcaError
from megatron_nca.plan import Step
from megatron_nca.run_dir import CheckpointFolder

Progress = tuple[int, int, int]
"""Whole tasks, the iteration of the newest checkpoint, parts of datasets: whatever grows is progress."""


def progress(tasks: tuple[Task, ...], steps: dict[str, Step]) -> Progress:
    """How far the work of a job is."""
    iterations = parts = 0
    for task in tasks:
        step = steps[task.step]
        if step.trains:
            iterations += newest_iteration(step.done.parent)
        elif step.dataset:
            parts += len(list(step.done.parent.glob(f"{step.done.stem}.parts/*.npy")))
    return sum(steps[task.step].whole for task in tasks), iterations, parts


def newest_iteration(phase: Path) -> int:
    """Of the checkpoints in a phase's folder, whole or not; 0 if there is none."""
    found = (path.name.removeprefix("iter_") for path in CheckpointFolder(phase / "checkpoints").path.glob("iter_*"))
    return max((int(number) for number in found if number.isdecimal()), default=0)


@dataclass(frozen=True)
class Attempt:
    """One start of a job; the highest number alone may act for it."""

    folder: Path
    number: int
    start: Progress
    before: int
    """Attempts of this submission just before it that began where it begins."""

    @classmethod
    def begin(cls, folder: Path, submission: str, start: Progress) -> "Attempt":
        """Take the next number. Raises DataError where the folder cannot be written."""
        stale = 0
        for number in range(files.highest_number(folder), 0, -1):
            if _read(folder / str(number)) != {"submission": submission, "progress": list(start)}:
                break
            stale += 1
        record = {"submission": submission, "progress": start, "job": os.environ.get("SLURM_JOB_ID"),
                  "node": os.environ.get("SLURMD_NODENAME"), "began": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        return cls(folder, files.take_number(folder, json.dumps(record) + "\n"), start, stale)

    def is_current(self) -> bool:
        """Whether no other attempt has begun since; one that a dead node has left behind is not."""
        try:
            return files.highest_number(self.folder) <= self.number
        except OSError:
            return True  # nothing is known of another

    def without_progress(self, now: Progress) -> int:
        """Attempts in a row that have come no further, this one included."""
        return 0 if now > self.start else self.before + 1


def _read(path: Path) -> dict | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {key: record[key] for key in ("submission", "progress")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class End:
    """What a job does when its work has ended."""

    action: Literal["done", "again", "leave", "fail"]
    """again: requeue, or leave it to the next of the series; leave: Slurm has ended it, and knows what comes."""
    reason: str


def decide(
    code: int, *, signal: str | None, is_current: bool, without_progress: int, tries: int, last: bool = False
) -> End:
    """`code` is the exit code of the work, `signal` what Slurm has sent (SIGUSR2: the time limit comes; SIGTERM: the
    job is cancelled or pre-empted), `last`: of a series, whose next job would go on."""
    if not is_current:
        return End("leave", "another attempt has taken over")
    if code == 0:
        return End("done", "whole")
    if signal == "SIGTERM":
        return End("leave", "ended by Slurm: cancelled, pre-empted or its node taken away")
    what = "time is up, all is saved" if code == NOT_FINISHED else "time is up" if signal else f"exit code {code}"
    if code == 2 and signal is None:
        wrong = "a setting or a file is wrong, or a program is missing"  # the code of srun itself for the latter
        return End("fail", f"{wrong} (exit code 2), so another attempt would end alike")
    if without_progress >= tries:
        return End("fail", f"{what}, and {without_progress} attempts have made no progress")
    if last:
        return End("fail", f"{what}, and no job follows that could go on")
    return End("again", what)


def say(path: Path, job: str, text: str) -> None:
    """One line of progress.txt. A full disk must not end a job that is about to say so."""
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {job}: {text}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        print(f"warning: {path}: {error.strerror}", flush=True)
    print(line, end="", flush=True)


def record_end(path: Path, values: dict) -> None:
    """How a job has ended for good."""
    try:
        files.write_text(path, json.dumps(values) + "\n")
    except MegatronNcaError as error:
        print(f"warning: {error}", flush=True)
