"""Training that is told to stop saves and ends with 75, and goes on with the same floats."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
from launching import REPOSITORY, TIMES, command, execute, read_metrics, recipe_values

from megatron_nca import file_list
from megatron_nca.errors import NOT_FINISHED

PHASE = "pp2"
ITERATIONS = 60


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two pipeline stages from beginning to end, walked by `run`."""
    run = tmp_path_factory.mktemp("stopping") / "unbroken"
    execute(command("run", recipe(run.parent), "--run-dir", run))
    return run


def recipe(folder: Path, iterations: int = ITERATIONS) -> Path:
    values = recipe_values(iterations=iterations, async_save=True, attention_dropout=0.1)
    values["model"]["num_layers"] = 2
    values["phases"] = {PHASE: {**values["phases"][PHASE], "save_interval": 40}}
    values["arms"] = {PHASE: {"steps": [{"phase": PHASE}]}}
    values["control"] = PHASE
    path = folder / f"recipe{iterations}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def started(run: Path, beginning: Path) -> Path:
    """A run folder in which all but the training is done already, as in `beginning`."""
    phase = folder(run)
    phase.mkdir(parents=True)
    (run / "data").symlink_to(beginning / "data")
    (phase / "initial").symlink_to(folder(beginning) / "initial")
    return run


def folder(run: Path) -> Path:
    return run / f"arms/{PHASE}/seed0/{PHASE}"


def launch(run: Path) -> subprocess.Popen:
    words = command("run", recipe(run.parent), "--run-dir", run)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)  # fmt: skip


def wait_for_iteration(run: Path, iteration: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    path = folder(run) / "metrics.jsonl"
    while not (path.exists() and f'"train", "iteration": {iteration},' in path.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.005)


def ranks(process: subprocess.Popen) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    return sorted((child for child in found if "RANK" in child.environ()), key=lambda rank: rank.environ()["RANK"])


def stopped(run: Path, process: subprocess.Popen, reason: str) -> dict:
    """The record of a training that `run` began and that stopped in good order."""
    said, _ = process.communicate(timeout=240)
    assert "all is saved; the same command goes on from here" in said
    return checked(run, process.returncode, said, reason)


def checked(run: Path, code: int, said: str, reason: str) -> dict:
    assert code == NOT_FINISHED, said
    assert said.count(f"stopped by {reason} after iteration") == 1 and "Traceback" not in said
    record = json.loads((folder(run) / "stopped.json").read_text())
    assert record["stopped by"] == reason and 0 < record["iteration"] < record["iterations"]
    assert record["checkpoint"] == f"checkpoints/iter_{record['iteration']:07d}"
    assert file_list.flaws(folder(run) / record["checkpoint"], (0, 1)) == []
    assert not list(folder(run).glob("checkpoints/.*")), "nothing half-written stays"
    return record


def test_stopped_twice_and_the_same_floats(unbroken: Path) -> None:
    """By SIGUSR2 to `run`, then by SIGTERM to a rank that is neither the first nor alone in its knowledge."""
    run = started(unbroken.parent / "stopped", unbroken)
    process = launch(run)
    wait_for_iteration(run, 13, process)
    process.send_signal(signal.SIGUSR2)
    first = stopped(run, process, "SIGUSR2")["iteration"]

    process = launch(run)
    wait_for_iteration(run, first + 13, process)
    assert not (folder(run) / "stopped.json").exists(), "a training that goes on is no stopped one"
    ranks(process)[1].terminate()
    second = stopped(run, process, "SIGTERM")["iteration"]
    assert first + 13 <= second

    said, _ = launch(run).communicate(timeout=240)
    assert f"resumed at iteration {second}," in said
    assert (folder(run) / "done.json").exists() and not (folder(run) / "stopped.json").exists()
    for kind in ("train", "validation"):
        lines = [[{key: value for key, value in line.items() if key not in TIMES}
                  for line in read_metrics(where, PHASE, PHASE, kind)] for where in (run, unbroken)]  # fmt: skip
        assert lines[0] == lines[1]


def test_a_time_limit_is_met(unbroken: Path) -> None:
    """One rank, a training that would take an hour, and a limit that follows from how fast Megatron starts here."""
    starting = modified(folder(unbroken) / "initial/account.json") - modified(unbroken / "data/nca/validation.json")
    limit = 3 * starting + 15
    run = started(unbroken.parent / "limited", unbroken)
    words = ["train", recipe(run.parent, 100_000), "--phase", PHASE, "--run-dir", run, "--time-limit", f"{limit:.1f}s"]
    begun = time.monotonic()
    result = execute(command(*words, f"phases.{PHASE}.parallel.pipeline=1"), check=False)
    taken = time.monotonic() - begun
    record = checked(run, result.returncode, result.stdout + result.stderr, "time limit")
    print(f"limit {limit:.1f} s, taken {taken:.1f} s, iteration {record['iteration']}")
    assert limit - 20 < taken < limit


def modified(path: Path) -> float:
    return path.stat().st_mtime
