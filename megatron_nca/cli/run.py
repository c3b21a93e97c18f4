"""`megatron-nca run`: walk a recipe's plan here, skipping what is whole."""

import argparse
import contextlib
import dataclasses
import math
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_nca import plan
from megatron_nca.account.parameters import parameters
from megatron_nca.cli.arguments import accept_overrides_anywhere, add_time_limit, add_watchdog, run_dir
from megatron_nca.cluster import record
from megatron_nca.config.recipe import Recipe, load_recipe
from megatron_nca.errors import NOT_FINISHED, ConfigError, LaunchError, StepFailed
from megatron_nca.files import size_text, try_lock
from megatron_nca.plan import Step
from megatron_nca.run_dir import RunFolder
from megatron_nca.train import boards

EXAMPLES = """examples:
  megatron-nca run launch/recipes/demo.yaml --run-dir runs/demo
  megatron-nca run launch/recipes/demo.yaml --run-dir runs/short phases.text.iterations=50 seeds='[0, 1]'
  megatron-nca run launch/recipes/released_openwebtext.yaml --run-dir runs/owt --dry-run
  megatron-nca run launch/recipes/released_openwebtext.yaml --run-dir runs/owt --time-limit 23h50m

A run that was stopped goes on with the same command. Stopped by SIGTERM, SIGUSR2, Ctrl-C or its time limit while it
trains, it has saved all and ends with 75 (docs/exits.md). A phase alone, on machines of your choice: launch/local.sh.
"""

GRACE_SECONDS = 600
"""Time that a stopped child has to write its checkpoint before it is killed; the same signal once more kills it."""
PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="YAML file, such as launch/recipes/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings of the recipe to change")
    parser.add_argument("--run-dir", type=run_dir, required=True, help="folder of everything that the run writes")
    add_time_limit(parser)
    add_watchdog(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the commands and totals; write nothing")
    accept_overrides_anywhere(parser)


def run(arguments: argparse.Namespace) -> int:
    deadline = math.inf if arguments.time_limit is None else time.time() + arguments.time_limit
    recipe = plan.resolve_paths(load_recipe(arguments.recipe, arguments.overrides))
    run_folder = RunFolder(arguments.run_dir)
    changed = plan.check_frozen(recipe, run_folder)
    steps = with_flags(plan.steps(recipe, run_folder), arguments)
    if arguments.dry_run:
        absent = [f"warning: {message}" for message in plan.absent(recipe)]
        print("\n".join([*plan.announce(changed, run_folder), *describe(steps), *totals(recipe), *absent]))
        return 0
    boards.check(recipe)  # before hours of work on data
    for warning in plan.check(recipe):
        print(f"warning: {warning}", flush=True)
    record.check_free(run_folder)
    with locked(run_folder) as lock:
        for line in plan.announce(plan.freeze(recipe, run_folder), run_folder):
            print(line, flush=True)
        plan.record_source(run_folder)
        plan.link_shared_phases(recipe, run_folder)
        return walk(steps, lock, deadline)


def with_flags(steps: tuple[Step, ...], arguments: argparse.Namespace) -> tuple[Step, ...]:
    """The steps; those that train with the flags that were given for them."""
    flags = () if arguments.watchdog is None else ("--watchdog", f"{arguments.watchdog:g}")
    return tuple(
        dataclasses.replace(step, command=(*step.command, *flags)) if step.trains else step for step in steps
    )


def describe(steps: tuple[Step, ...]) -> list[str]:
    """Numbered commands, quoted for a shell, each with whether it is done."""
    lines = []
    for number, step in enumerate(steps, 1):
        lines.append(f"[{number}/{len(steps)}] {step.name} ({'done' if step.whole else 'to do'})")
        lines.append(f"    {shlex.join(step.command)}")
    return lines


def totals(recipe: Recipe) -> list[str]:
    """Tokens, parameters and disk of a recipe, in words."""
    lines = ["", "totals:"]
    for name in recipe.phases:
        counted = parameters(recipe.model_config(name))
        ranks = recipe.phases[name].parallel.world_size
        tokens = plan.phase_tokens(recipe, name)
        shape = f"{counted.total:,} parameters, {counted.body:,} of them in layers and final norm"
        lines.append(f"  phase {name}: {tokens:,} tokens, {shape}, {ranks} process{'es' if ranks > 1 else ''}")
    data, checkpoints = plan.estimate_bytes(recipe)
    disk = f"about {size_text(data)} of generated data and up to {size_text(checkpoints)} of checkpoints"
    lines.append(f"  disk: {disk}")
    for name, dataset in recipe.datasets.items():
        if dataset.on_node is not None:
            size = size_text(plan.dataset_bytes(recipe, name))
            lines.append(f"  on each node: {size} of dataset {name} in {dataset.on_node.folder}")
    return lines


@contextlib.contextmanager
def locked(run_folder: RunFolder) -> Iterator[int]:
    """Hold the run folder's lock; the children inherit it, so it outlives a walker that is killed."""
    descriptor = try_lock(run_folder.lock)
    if descriptor is None:
        raise ConfigError(
            f"--run-dir = {str(run_folder.path)!r}: another `megatron-nca run`, a step it started, or a job of a "
            "plan on Slurm, is at work there. Cure: wait for it, stop it, or choose another folder."
        )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def walk(steps: tuple[Step, ...], lock: int, deadline: float = math.inf) -> int:
    """Run the steps that are not whole, in order, until `deadline`, in seconds since the epoch.

    Returns 0; NOT_FINISHED when a step stopped in good order, or time is up; 128 + N after signal N, if the step did
    not stop in good order.

    Raises LaunchError when a step ends with a user's error, StepFailed for any other failure, or a step that ends well
    without its done-record.
    """
    begin = time.monotonic()
    for number, step in enumerate(steps, 1):
        head = f"[{number}/{len(steps)}] {step.name}"
        if step.whole:
            print(f"{head} (already done)", flush=True)
            continue
        if time.time() >= deadline:
            print(f"{head}: not begun, the time limit has passed; the same command goes on from here", flush=True)
            return NOT_FINISHED
        if step.trains and deadline < math.inf:
            flags = ("--time-limit", f"{max(0.0, deadline - time.time()):.0f}")
            step = dataclasses.replace(step, command=(*step.command, *flags))
        print(f"{head}\n    {shlex.join(step.command)}", flush=True)
        start = time.monotonic()
        status, stopped_by = _run_child(step, lock, deadline)
        if status == NOT_FINISHED:
            print(f"{head}: not finished, all is saved; the same command goes on from here", flush=True)
            return NOT_FINISHED
        if stopped_by and time.time() >= deadline:
            print(f"{head}: ended by the time limit; the same command goes on from here", flush=True)
            return NOT_FINISHED
        if stopped_by:
            name = signal.Signals(stopped_by).name
            print(f"{head}: stopped by {name}; the same command goes on from here", flush=True)
            return 128 + stopped_by
        if status:
            kind = LaunchError if status == 2 else StepFailed
            raise kind(_failure(step, f"ended with {_in_words(status)}", status))
        if not step.whole:
            raise StepFailed(_failure(step, f"ended with exit code 0 but left no whole {step.done}"))
        print(f"{head}: done in {_duration(time.monotonic() - start)}", flush=True)
    print(f"all {len(steps)} steps are done ({_duration(time.monotonic() - begin)})", flush=True)
    return 0


def _run_child(step: Step, lock: int, deadline: float) -> tuple[int, int]:
    """Run one command on this terminal. Returns its status and the signal it was sent first, or 0.

    The child leads a process group of its own, so that a signal reaches it once, whether it was typed at the
    terminal or sent to this process, and so that nothing of the group is left behind.
    """
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, plan.cores() // step.world_size)))
    received: list[int] = []

    def forward(number: int, _frame: object) -> None:
        # The same signal once more means "now": the first one let the child write its checkpoint.
        _signal_group(child, signal.SIGKILL if number in received else number)
        received.append(number)

    # Until the handlers stand, a signal waits: it must not fall between the child's start and its being known.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    before = {}
    try:
        child = _start(step, environment, lock)
        before = {number: signal.signal(number, forward) for number in PASSED_ON}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        return _wait(child, received, deadline), received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)


def _start(step: Step, environment: dict[str, str], lock: int) -> subprocess.Popen:
    def unblock() -> None:  # a child inherits the mask
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)

    try:
        return subprocess.Popen(
            step.command, env=environment, start_new_session=True, pass_fds=(lock,), preexec_fn=unblock
        )
    except OSError as error:
        raise LaunchError(_failure(step, f"could not be started ({error.strerror})")) from error


def _wait(child: subprocess.Popen, received: list[int], time_limit: float) -> int:
    deadline = None
    while True:
        try:
            return child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if time.time() >= time_limit and not received:
                _signal_group(child, signal.SIGTERM)
                received.append(signal.SIGTERM)
            if received and deadline is None:
                deadline = time.monotonic() + GRACE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                _signal_group(child, signal.SIGKILL)
        finally:
            if child.returncode is not None:
                _signal_group(child, signal.SIGKILL)  # whatever a dead launcher left behind


def _signal_group(child: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _failure(step: Step, what: str, status: int = 1) -> str:
    log = f" Its log: {step.log}." if step.log else ""
    cure = "mend what it says above, then run" if status == 2 else "see what it says above; to go on from here, run"
    return f"step '{step.name}' {what}.{log} Cure: {cure} the same command again."


def _in_words(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)} min {rest:.0f} s" if minutes else f"{rest:.1f} s"
