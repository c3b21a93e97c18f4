"""Inside a job: its tasks one after the other, each by srun, and what becomes of the job when they have ended."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from megatron_nca import files, plan
from megatron_nca.cluster import attempts, launch, queue, record
from megatron_nca.cluster.attempts import Attempt, End
from megatron_nca.cluster.jobs import Task
from megatron_nca.cluster.profile import load_cluster
from megatron_nca.config.recipe import load_recipe
from megatron_nca.errors import NOT_FINISHED, ConfigError, LaunchError
from megatron_nca.plan import Step
from megatron_nca.run_dir import PhaseFolder, RunFolder

START_SECONDS = 10.0
"""Kept of the time limit for srun to start ranks and for this process to end."""
WAIT = 0.3
"""Of the time between Slurm's warning and the limit: kept to requeue the job, whatever its step does."""
PATIENCE_SECONDS, PAUSE_SECONDS = 600.0, 5.0
"""For a controller that does not answer, because it is restarted: how long, and how often it is asked."""


class Worker:
    """One start of a job, or of one element of an array."""

    def __init__(self, run: RunFolder, name: str, of_series: int) -> None:
        """Raises ConfigError, DataError."""
        self.run, self.folder = run, run.slurm
        self.cluster = load_cluster(self.folder.cluster)
        submission = record.read(self.folder)
        if submission is None:
            raise ConfigError(f"{self.folder.jobs}: is not there. Cure: submit the plan anew.")
        self.submission, self.job, self.of_series = submission.name, submission.job(name), of_series
        self.element = int(os.environ.get("SLURM_ARRAY_TASK_ID", 0)) if self.job.is_array else 0
        self.label = f"{name}[{self.element}]" if self.job.is_array else name
        self.tasks = self.job.elements[self.element]
        recipe = load_recipe(run.recipe)
        self.steps = {step.name: step for step in plan.steps(recipe, run)}
        self.number = os.environ["SLURM_JOB_ID"]
        self.signal: str | None = None
        self.limit = math.inf
        """When the job's time is over, in seconds since the epoch."""
        self._child: subprocess.Popen | None = None
        self._trains = False

    def work(self) -> int:
        """Run what is not whole. Returns the exit code of the batch script."""
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._hear)
        lock = files.try_lock(self.run.lock, shared=True)
        if lock is None:
            return self._act(End("fail", f"another `megatron-nca run` is at work in {self.run.path}"), 2)
        start = attempts.progress(self.tasks, self.steps)
        self.attempt = Attempt.begin(self.folder.attempts(self.job.name, self.element), self.submission, start)
        if start[0] == len(self.tasks):
            return self._act(End("done", "was whole"), 0)
        if self.attempt.before >= self.cluster.tries:
            return self._act(End("fail", f"{self.attempt.before} attempts have made no progress"), 1)
        self.limit = _patiently(lambda: queue.ends_at(self.number)) or math.inf
        where = os.environ.get("SLURM_JOB_NODELIST", "")
        self._say(f"attempt {self.attempt.number} begins as job {self.number} on {where}, {_in_words(start)}")
        unfit = self._unfit_nodes() if self.job.trains else {}
        if unfit:
            return self._avoid(unfit)
        code = self._run_tasks()
        now = attempts.progress(self.tasks, self.steps)
        end = attempts.decide(
            code, signal=self.signal, is_current=self.attempt.is_current(), tries=self.cluster.tries,
            without_progress=self.attempt.without_progress(now),
            last=self.cluster.resume_by == "series" and self.of_series in (0, self.cluster.series))  # fmt: skip
        return self._act(End(end.action, f"{end.reason} ({_in_words(now)})"), code)

    # ------------------------------------------------------------------ the work

    def _run_tasks(self) -> int:
        for task in self.tasks:
            step = self.steps[task.step]
            if step.whole and not task.is_share:
                continue
            if self.signal is not None or not self.attempt.is_current():
                return NOT_FINISHED
            if step.trains:
                code = self._train(step, task)
            else:
                code = self._srun(self._command(task, step, ()), dict(os.environ))
            if code:
                print(f"{step.name}: ended with exit code {code}", flush=True)
                return code
            if not task.is_share and not step.whole:
                print(f"{step.name}: ended with exit code 0 but left no whole {step.done}", flush=True)
                return 1
        return 0

    def _train(self, step: Step, task: Task) -> int:
        """Its exit code, by what it has recorded: srun gives the highest of its ranks, which it may have killed."""
        folder = PhaseFolder(step.done.parent)
        before = {path: _age(path) for path in (folder.stopped, folder.failed)}
        self._meet = (_patiently(lambda: queue.first_address(os.environ["SLURM_JOB_NODELIST"])),
                      launch.free_port(int(self.number)))  # fmt: skip
        environment = {**os.environ, "MASTER_ADDR": self._meet[0], "MASTER_PORT": str(self._meet[1])}
        number = files.take_number(folder.attempts, f"job {self.number}, attempt {self.attempt.number}\n")
        environment[launch.ATTEMPT] = str(number)
        environment.setdefault("OMP_NUM_THREADS", str(self.cluster.node.cpus_per_device))
        if self.cluster.launcher == "srun":
            environment[launch.LAUNCHER] = "slurm"
        left = self.limit - time.time() - START_SECONDS
        more = () if math.isinf(left) else ("--time-limit", f"{max(0.0, left):.0f}")
        self._trains = True
        try:
            code = self._srun(self._command(task, step, more), environment)
        finally:
            self._trains = False
        if code and _age(folder.stopped) not in (0, before[folder.stopped]):
            return NOT_FINISHED
        if code and _age(folder.failed) not in (0, before[folder.failed]):
            return _exit_code_in(folder.failed) or code
        return code

    def _command(self, task: Task, step: Step, more: tuple[str, ...]) -> list[str]:
        meet = self._meet if step.trains else ("", 0)
        return launch.command(self.job, task, step, self.cluster, self.run.path, more=more, meet=meet)

    def _srun(self, command: list[str], environment: dict[str, str]) -> int:
        print(f"    {shlex.join(command)}", flush=True)
        # srun would take these for its own: the batch script's shape is not that of the step.
        for name in ("SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK", "SLURM_NTASKS", "SLURM_NPROCS"):
            environment.pop(name, None)
        environment["SRUN_CPUS_PER_TASK"] = _value_of(command, "--cpus-per-task")
        self._child = subprocess.Popen(command, env=environment)
        if self.signal is not None:
            self._forward()
        while True:
            try:
                return self._child.wait(timeout=1)
            except subprocess.TimeoutExpired:
                kept = max(5.0, WAIT * self.cluster.warn_seconds)
                late = self.signal == "SIGUSR2" and time.time() > self.limit - kept
                # Out of time, or this node was given up, and the job runs elsewhere. Its ranks end with the job.
                if late or not self.attempt.is_current():
                    self._child.kill()

    def _hear(self, number: int, _frame: object) -> None:
        self.signal = signal.Signals(number).name
        if self._child is not None and self._child.poll() is None:
            self._forward()

    def _forward(self) -> None:
        """To the step: SIGUSR2 to a training, which srun passes on as it is; nothing else can stop in good order."""
        self._child.send_signal(signal.SIGUSR2 if self._trains else signal.SIGTERM)

    # ------------------------------------------------------------------ nodes

    def _unfit_nodes(self) -> dict[str, str]:
        """Node of this job -> what is wrong with it."""
        nodes = self.cluster.nodes(self.job.ranks)
        words = [*launch.srun(self.cluster, nodes, nodes, 1), self.cluster.python or sys.executable]
        words += ["-m", "megatron_nca", "job", str(self.run.path), self.job.name, "--check-node"]
        result = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
        found = {}
        for line in result.stdout.splitlines():
            try:
                values = json.loads(line)
                found[values["node"]] = "; ".join(values["problems"])
            except (ValueError, KeyError, TypeError):
                print(line, flush=True)
        if not found:  # srun itself has failed, which says nothing of one node
            return {}
        return {node: why for node, why in found.items() if why}

    def _avoid(self, unfit: dict[str, str]) -> int:
        listed = "; ".join(f"{node}: {why}" for node, why in unfit.items())
        without = self.attempt.before + 1
        if without >= self.cluster.tries:
            return self._act(End("fail", f"unfit nodes ({listed}) at {without} attempts"), 1)
        if self.cluster.resume_by == "series":
            last = self.of_series in (0, self.cluster.series)
            return self._act(End("fail" if last else "again", f"unfit nodes ({listed})"), 1)
        self._say(f"goes elsewhere, for nodes are unfit: {listed}")
        _patiently(lambda: queue.requeue_elsewhere(self.number, list(unfit)))
        return self._wait_for_the_end()

    # ------------------------------------------------------------------ the end

    def _act(self, end: End, code: int) -> int:
        self._say(f"{end.action}: {end.reason}")
        if end.action in ("done", "fail"):
            path = self.folder.end(self.job.name, self.element)
            attempts.record_end(path, {"submission": self.submission, "action": end.action, "reason": end.reason})
            return 0 if end.action == "done" else code or 1
        if end.action == "leave":
            return code or NOT_FINISHED
        if self.cluster.resume_by == "series":
            return 0  # so that the next of the series begins, and what waits for its last one still may
        self.signal = None
        try:
            if _patiently(lambda: queue.restarts(self.number)) > int(os.environ.get("SLURM_RESTART_COUNT", 0)):
                return self._act(End("leave", "Slurm has requeued it without this node"), code)
            _patiently(lambda: queue.requeue(self.number))
        except LaunchError as error:
            return self._act(End("fail", f"{end.reason}, and it cannot be requeued: {error}"), code)
        return self._wait_for_the_end()

    def _wait_for_the_end(self) -> int:
        """Slurm ends a job that it requeues; an exit of its own could come first, and be taken for the job's."""
        deadline = time.monotonic() + 60
        while self.signal != "SIGTERM" and time.monotonic() < deadline:
            time.sleep(0.1)
        return NOT_FINISHED

    def _say(self, text: str) -> None:
        attempts.say(self.folder.progress, self.label, text)


def _patiently(ask: Callable) -> object:
    """The answer of a controller, which may be down for a while. Raises LaunchError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except LaunchError as error:
            if time.monotonic() > deadline or "contact" not in str(error).lower():
                raise
            print(f"{error}; asking again", flush=True)
            time.sleep(PAUSE_SECONDS)


def _age(path: Path) -> int:
    """When it was written, in nanoseconds; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _exit_code_in(path: Path) -> int:
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["exit code"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _value_of(command: list[str], option: str) -> str:
    return next(word.split("=", 1)[1] for word in command if word.startswith(f"{option}="))


def _in_words(progress: attempts.Progress) -> str:
    whole, iteration, parts = progress
    words = [f"{whole} steps whole", f"iteration {iteration}" if iteration else "", f"{parts} parts" if parts else ""]
    return ", ".join(word for word in words if word)
