"""The only one who speaks to Slurm: each function is one of its commands."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from megatron_nca.errors import LaunchError, MegatronNcaError
from megatron_nca.files import write_text

ASK_SECONDS = 30.0
"""Least time between two questions about the queue, of all commands that look at one run folder."""
FIELDS = "%F|%K|%T|%r|%L|%N"
OVER = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")

UNREACHABLE = re.compile("configuration source|Unable to contact|Connection refused|Socket timed out")
"""Of what Slurm's programs say where there is no Slurm, or it is down."""


@dataclass(frozen=True)
class Entry:
    """A job, or an element of an array, in the queue."""

    job: str
    """The number that sbatch gave; of an array, that of all elements."""
    element: int | None
    """None: a job that is no array."""
    state: str
    reason: str
    left: str
    """Of its time limit, as Slurm writes it."""
    nodes: str

    @property
    def is_over(self) -> bool:
        return self.state in OVER


def submit(script: Path, after: str, options: tuple[str, ...] = ()) -> str:
    """The number of a new job. `after`: its dependency, or nothing. Raises LaunchError."""
    words = ["--parsable", *options]
    if after:
        words += [f"--dependency={after}", "--kill-on-invalid-dep=yes"]
    return _ask("sbatch", *words, str(script)).strip().split(";")[0]


def test(script: Path) -> None:
    """Let the controller check a script: account, partition, limits. Raises LaunchError with its words."""
    _ask("sbatch", "--test-only", str(script))


def configured(key: str) -> str | None:
    """A setting of the controller, such as MaxArraySize."""
    found = re.search(rf"^{key}\s*=\s*(.*)$", _ask("scontrol", "show", "config"), re.MULTILINE)
    return found.group(1).strip() if found else None


def entries(cache: Path) -> tuple[Entry, ...]:
    """All jobs of this user, at most ASK_SECONDS old. Raises LaunchError where Slurm does not answer."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(cache.read_text(encoding="utf-8"))
        if 0 <= time.time() - known["asked"] < ASK_SECONDS:
            if known["error"]:
                raise LaunchError(known["error"])
            return tuple(Entry(**entry) for entry in known["entries"])
    found, error = (), None
    try:
        found = ask_entries()
    except LaunchError as failure:
        error = failure
    with contextlib.suppress(MegatronNcaError):  # a run folder that is read-only can be looked at
        values = {"asked": time.time(), "error": error and str(error), "entries": [asdict(entry) for entry in found]}
        write_text(cache, json.dumps(values) + "\n")
    if error:
        raise error
    return found


def ask_entries() -> tuple[Entry, ...]:
    """The same, now."""
    words = ("--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--format={FIELDS}")
    result = []
    for line in _ask("squeue", *words).splitlines():
        job, element, state, reason, left, nodes = line.split("|")
        result.append(Entry(job, int(element) if element.isdecimal() else None, state, reason, left, nodes))
    return tuple(result)


def cancel(jobs: list[str]) -> None:
    """Raises LaunchError."""
    _ask("scancel", *jobs)


def requeue(job: str) -> None:
    """Raises LaunchError."""
    _ask("scontrol", "requeue", job)


def requeue_elsewhere(job: str, nodes: list[str]) -> None:
    """Requeue a job and let it go to none of these nodes again. Raises LaunchError.

    What a job is not to run on can be changed while it waits only, so it is held in between; this process is told to
    end meanwhile, and has until KillWait to finish.
    """
    excluded = _field(_ask("scontrol", "show", "job", "--oneliner", job), "ExcNodeList")
    all_nodes = ",".join([*([] if excluded in (None, "(null)") else [excluded]), *nodes])
    _ask("scontrol", "requeuehold", job)
    try:
        _ask("scontrol", "update", f"JobId={job}", f"ExcNodeList={all_nodes}")
    finally:
        _ask("scontrol", "release", job)


def restarts(job: str) -> int:
    """How often a job was requeued. Raises LaunchError."""
    return int(_field(_ask("scontrol", "show", "job", "--oneliner", job), "Restarts") or 0)


def ends_at(job: str) -> float | None:
    """When a running job's time is over, in seconds since the epoch; None if it has no limit. Raises LaunchError."""
    text = _field(_ask("scontrol", "show", "job", "--oneliner", job), "EndTime")
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None


def first_address(nodes: str) -> str:
    """How the first of some nodes is reached from the others. Raises LaunchError."""
    name = _ask("scontrol", "show", "hostnames", nodes).split()[0]
    return _field(_ask("scontrol", "show", "node", "--oneliner", name), "NodeAddr") or name


def _outlive() -> None:
    """Slurm ends all processes of a job that it requeues, and what asks it to may be one of them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _field(line: str, name: str) -> str | None:
    found = re.search(rf"(?:^|\s){name}=(\S*)", line)
    return found.group(1) if found else None


def _ask(*words: str) -> str:
    """The output of one of Slurm's programs. Raises LaunchError with its own words."""
    try:
        result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, preexec_fn=_outlive)
    except FileNotFoundError as error:
        cure = "go to a machine of the cluster, or load its module."
        raise LaunchError(f"{words[0]}: is not installed here. Cure: {cure}") from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{words[0]}: no answer in 120 s. Cure: look with sinfo whether Slurm is up.") from error
    if result.returncode:
        said = result.stderr.strip() or result.stdout.strip() or f"exit code {result.returncode}"
        if UNREACHABLE.search(said):
            cure = "go to a machine of the cluster, or look with sinfo whether Slurm is up."
            raise LaunchError(f"{words[0]}: Slurm does not answer ({said.splitlines()[-1]}). Cure: {cure}")
        raise LaunchError(f"{' '.join(words[:2])}: {said}")
    return result.stdout
