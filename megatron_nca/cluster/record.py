"""What is kept of a plan on Slurm in its run folder: jobs, their numbers, how each ended."""

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_nca import files
from megatron_nca.cluster import queue
from megatron_nca.cluster.jobs import Job, Task
from megatron_nca.cluster.queue import Entry
from megatron_nca.errors import ConfigError, DataError, LaunchError, explain
from megatron_nca.run_dir import RunFolder, SlurmFolder


@dataclass(frozen=True)
class Submission:
    """The jobs of one call of `submit`."""

    name: str
    """No two have the same."""
    jobs: tuple[Job, ...]

    @classmethod
    def new(cls, jobs: tuple[Job, ...]) -> "Submission":
        return cls(f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}", jobs)

    def job(self, name: str) -> Job:
        """Raises ConfigError."""
        for job in self.jobs:
            if job.name == name:
                return job
        known = ", ".join(job.name for job in self.jobs)
        raise ConfigError(explain("job", name, "is none of this plan.", f"name one of {known}."))

    def write(self, folder: SlurmFolder) -> None:
        values = {"submission": self.name, "jobs": [asdict(job) for job in self.jobs]}
        files.write_text(folder.jobs, json.dumps(values) + "\n")


def read(folder: SlurmFolder) -> Submission | None:
    """The last submission; None if there was none. Raises DataError if its record cannot be read."""
    try:
        values = json.loads(folder.jobs.read_text(encoding="utf-8"))
        return Submission(values["submission"], tuple(_job(job) for job in values["jobs"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _shut(error, folder.jobs) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder.jobs}: cannot be read ({error}). Cure: cancel its jobs with scancel, then remove "
                        f"{folder.path}.") from error  # fmt: skip


def _job(values: dict) -> Job:
    elements = tuple(tuple(Task(t["step"], tuple(t["flags"])) for t in tasks) for tasks in values["elements"])
    names = {key: tuple(values[key]) for key in ("numbers", "after", "pairwise")}
    return Job(**{**values, **names, "elements": elements})


def note_id(folder: SlurmFolder, submission: Submission, job: str, number: str) -> None:
    """Keep the number that Slurm gave a job, before the next one is submitted. Raises DataError."""
    try:
        with open(folder.ids, "a", encoding="utf-8") as file:
            file.write(json.dumps({"submission": submission.name, "job": job, "id": number}) + "\n")
    except OSError as error:
        raise files.translate(error, folder.ids) from error


def ids(folder: SlurmFolder, submission: Submission) -> dict[str, list[str]]:
    """Job -> its numbers, of a series several in order. Raises DataError if their record cannot be read."""
    result: dict[str, list[str]] = {}
    try:
        for line in map(json.loads, folder.ids.read_text(encoding="utf-8").splitlines()):
            if line["submission"] == submission.name:
                result.setdefault(line["job"], []).append(line["id"])
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _shut(error, folder.ids) from error
    except (ValueError, KeyError, TypeError) as error:
        cure = f"cancel jobs with scancel, whose numbers {folder.progress} has too; then remove the line."
        raise DataError(f"{folder.ids}: a line of it cannot be read ({error}). Cure: {cure}") from error
    return result


def _shut(error: OSError, path: Path) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}). Cure: check the path and your rights.")


def ends(folder: SlurmFolder, submission: Submission, job: Job) -> dict[int, dict]:
    """Element -> how it ended, of those that are over: {"action", "reason"}."""
    result = {}
    for element in job.numbers:
        try:
            values = json.loads(folder.end(job.name, element).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        known = isinstance(values, dict) and values.keys() >= {"submission", "action", "reason"}
        if known and values["submission"] == submission.name:
            result[element] = values
    return result


def unfinished(folder: SlurmFolder, submission: Submission) -> list[Job]:
    """Jobs that, by what the run folder says, may still run: not over, and not after one that has failed."""
    failed: set[str] = set()
    result = []
    for job in submission.jobs:
        over = ends(folder, submission, job)
        if failed & {*job.after, *job.pairwise} or any(end["action"] != "done" for end in over.values()):
            failed.add(job.name)
        if len(over) < len(job.numbers) and not failed & {*job.after, *job.pairwise}:
            result.append(job)
    return result


def in_queue(entries: Iterable[Entry], numbers: dict[str, list[str]]) -> dict[str, list[Entry]]:
    """Job -> what the queue holds of it."""
    name_of = {number: job for job, of_job in numbers.items() for number in of_job}
    result: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.job in name_of:
            result.setdefault(name_of[entry.job], []).append(entry)
    return result


def check_free(run: RunFolder) -> None:
    """Raise ConfigError if a plan on Slurm lives in this run folder, or may live as far as can be known here."""
    submission = read(run.slurm)
    left = unfinished(run.slurm, submission) if submission else []
    if not left:
        return
    cancel = f"wait for it, or end it with `megatron-nca cancel {run.path}`."
    numbers = ids(run.slurm, submission)
    try:
        entries = in_queue(queue.ask_entries(), numbers)
    except LaunchError as error:
        names = ", ".join(job.name for job in left[:5])
        said = str(error).partition(" Cure:")[0]
        reason = f"a plan on Slurm has jobs left here ({names}), and whether they live cannot be asked: {said}"
        raise ConfigError(explain("run folder", str(run.path), reason, cancel)) from error
    live = {name: entry for name, found in entries.items() for entry in found if not entry.is_over}
    if live:
        name, entry = next(iter(live.items()))
        reason = f"a plan on Slurm is at work here: {len(live)} of its jobs are queued or running, such as {name} "
        reason += f"(job {entry.job}, {entry.state.lower()})."
        raise ConfigError(explain("run folder", str(run.path), reason, cancel))
