"""What a night brings: time limits, killed steps, dead nodes, a controller that is restarted. Long."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import plans
import pytest

from megatron_nca.cluster import launch

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _leave_nothing(slurm):
    """A test that fails may leave jobs and ranks to the next."""
    yield
    slurm.clear()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Number of iterations -> lines of a training of so many that nothing happened to."""
    known = {}

    def lines(values: dict) -> list[dict]:
        key = json.dumps(values, sort_keys=True)
        if key not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            plans.call("run", plans.write(folder / "recipe.yaml", values), "--run-dir", folder / "run")
            known[key] = plans.metrics(folder / "run")
        return known[key]

    return lines


@pytest.fixture(scope="module")
def iterations_in(tmp_path_factory):
    """Seconds -> as many iterations as two ranks make in them on this machine, as it is now."""
    folder = tmp_path_factory.mktemp("probe")
    plans.call("run", plans.write(folder / "recipe.yaml", plans.one_phase(60, 1000)), "--run-dir", folder / "run")
    lines = map(json.loads, (folder / "run/arms/nca/seed0/nca/metrics.jsonl").read_text().splitlines())
    median = statistics.median(line["iteration-time"] for line in lines if line["type"] == "train")
    return lambda seconds: round(seconds / median)


@pytest.fixture(scope="module")
def plan_with_a_loss(iterations_in):
    """Slurm needs up to a minute to miss a node, and training must not be over before."""
    return plans.one_phase(iterations_in(120), 50)


def stops(log: str) -> list[int]:
    """Iterations after which attempts ended."""
    return [int(number) for number in re.findall(r"again: .*iteration (\d+)", log)]


def test_a_phase_longer_than_its_time_limit(slurm, tmp_path, undisturbed, iterations_in):
    values = plans.one_phase(iterations_in(330), 1000)
    cluster = {"time": "2m", "warn": "15s", "node": {"devices": 1}, "tries": 10}
    run = slurm.submit(tmp_path, values, cluster)
    log = slurm.finish(run, 1500)
    found = stops(log)
    assert len(set(found)) >= 3 and found == sorted(found), log
    assert log.count("again: time is up, all is saved") >= len(found), log
    assert plans.metrics(run) == undisturbed(values)
    text = "".join(path.read_text() for path in (run / "slurm" / "logs").glob("*nca.nca*"))
    resumed = [int(number) for number in re.findall(r"resumed at iteration (\d+)", text)]
    assert set(resumed) <= set(found), "each attempt saved what it had made, so nothing is done twice"
    assert "TIME LIMIT" not in text


def test_a_step_killed_a_node_lost_and_the_controller_restarted(slurm, tmp_path, undisturbed, plan_with_a_loss):
    """One after the other, to one training. Ranks on the lost node live on."""
    run = slurm.submit(tmp_path, plan_with_a_loss, {"node": {"devices": 1}, "tries": 5})
    plans.wait(lambda: plans.iteration(run) >= 60, 600, "a save and more", lambda: slurm.account(run))
    number = slurm.job("nca.nca")
    assert slurm.kill_step(number)
    log, trained = run / "slurm" / "progress.txt", run / "arms/nca/seed0/nca/train.log"
    plans.wait(lambda: "attempt 2 begins" in log.read_text(), 600, "second attempt", lambda: slurm.account(run))

    plans.wait(lambda: trained.read_text().count("resumed at iteration") == 1, 600, "second training",
               lambda: slurm.account(run))  # fmt: skip
    reached = plans.iteration(run)
    plans.wait(lambda: plans.iteration(run) >= reached + 50, 600, "resumed training", lambda: slurm.account(run))
    nodes = next(entry[3] for entry in slurm.queue() if entry[0] == number)
    last = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    lost = last.stdout.split()[-1]
    slurm.daemon("stop", lost)
    try:
        plans.wait(lambda: "attempt 3 begins" in log.read_text(), 600, "third attempt", lambda: slurm.account(run))
        plans.wait(lambda: trained.read_text().count("resumed at iteration") == 2, 600, "third training",
                   lambda: slurm.account(run))  # fmt: skip
        slurm.daemon("stop", "ctld")
        reached = plans.iteration(run)
        plans.wait(lambda: plans.iteration(run) >= reached + 20, 600, "training without a controller")
        slurm.daemon("start", "ctld")
        log = slurm.finish(run, 1200)
    finally:
        slurm.daemon("start", lost)
    assert "005" not in log and "fail" not in log.replace("failed", ""), log
    assert plans.metrics(run) == undisturbed(plan_with_a_loss)


def test_the_first_node_is_lost(slurm, tmp_path, undisturbed, plan_with_a_loss):
    """The one with the batch script and rank 0, which go on there: they must neither publish nor requeue."""
    run = slurm.submit(tmp_path, plan_with_a_loss, {"node": {"devices": 1}, "tries": 5})
    plans.wait(lambda: plans.iteration(run) >= 25, 600, "training", lambda: slurm.account(run))
    before = set(plans.ranks(run))
    number = slurm.job("nca.nca")
    nodes = next(entry[3] for entry in slurm.queue() if entry[0] == number)
    first = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    lost = first.stdout.split()[0]
    slurm.daemon("stop", lost)
    try:
        log = slurm.finish(run, 1200)
    finally:
        slurm.daemon("start", lost)
    assert before and "attempt 2 begins" in log, log
    assert plans.metrics(run) == undisturbed(plan_with_a_loss)
    attempts = sorted(path.name for path in (run / "arms/nca/seed0/nca/attempts").iterdir())
    assert attempts[:2] == ["1", "2"]


@pytest.mark.parametrize("frozen", [False, True], ids=["at work", "frozen meanwhile"])
def test_all_ranks_live_on_where_a_node_is_given_up(slurm, tmp_path, undisturbed, plan_with_a_loss, frozen):
    """The node's slurmd is gone, and no rank of it lacks another. They go on, or were stopped and wake beside the
    second attempt; from its begin on they publish nothing."""
    run = slurm.submit(tmp_path, plan_with_a_loss, {"tries": 5})
    plans.wait(lambda: plans.iteration(run) >= 60, 600, "training", lambda: slurm.account(run))
    lost = next(entry[3] for entry in slurm.queue() if entry[1].endswith("nca.nca"))
    old = plans.ranks(run)
    assert len(old) == 2 and lost in ("n1", "n2", "n3")
    slurm.daemon("stop", lost)
    phase, before, looks = run / "arms/nca/seed0/nca", plans.iteration(run), []

    def has_begun() -> bool:
        """The second attempt."""
        looks.append(set(plans.ranks(run)))
        return (phase / "attempts" / "2").exists()

    def published() -> list[str]:
        return sorted(path.name for path in (phase / "checkpoints").glob("*"))

    try:
        if frozen:
            plans.send_all(old, signal.SIGSTOP)
            before = plans.iteration(run)
        plans.wait(has_begun, 600, "second attempt", lambda: slurm.account(run))
        assert looks[-2] >= set(old), "they lived on until then"
        assert frozen == (plans.iteration(run) == before)
        if frozen:
            plans.wait(lambda: len(plans.ranks(run)) == 4, 300, "ranks of the second attempt")
        there = published()
        plans.send_all(old, signal.SIGCONT)
        plans.wait(lambda: len(set(old) & set(plans.ranks(run))) < 2, 60, "end of the first rank")
        assert published() == there
        plans.wait(lambda: not set(old) & set(plans.ranks(run)), 60, "end of the other")
        log = slurm.finish(run, 1200)
    finally:
        plans.send_all(old, signal.SIGKILL)
        slurm.daemon("start", lost)
    assert "attempt 3" not in log and log.count("nca.nca: done") == 1, log
    resumed = re.findall(r"resumed at iteration (\d+)", (phase / "train.log").read_text())
    assert len(resumed) == 1, "there were two attempts, and the second began where the first had last published"
    assert plans.metrics(run) == undisturbed(plan_with_a_loss)


def stopped_after(run: Path, iteration: int, commands: list[tuple[list[str], dict[str, str]]]) -> None:
    """Start them at the same time, and stop the first one when training has come so far; all save and say so."""
    begun = [subprocess.Popen(words, cwd=plans.ROOT, env={**os.environ, **more}) for words, more in commands]
    plans.wait(lambda: plans.iteration(run) >= iteration, 600, "training")
    begun[0].terminate()
    assert [process.wait(timeout=300) for process in begun] == [75] * len(begun)


def test_here_by_torchrun_on_two_machines_and_on_slurm_by_turns(slurm, tmp_path, undisturbed):
    """One run folder: begun on Slurm, cancelled, gone on with here, by launch/local.sh as two nodes, and on Slurm."""
    values = plans.one_phase(300, 50)
    run = slurm.submit(tmp_path, values, {"node": {"devices": 1}})
    plans.wait(lambda: plans.iteration(run) >= 30, 600, "training on Slurm", lambda: slurm.account(run))
    plans.call("cancel", run)
    slurm.finish(run)
    first = plans.iteration(run)
    words = [sys.executable, "-m", "megatron_nca", "run", str(run / "recipe.yaml"), "--run-dir", str(run)]
    stopped_after(run, first + 20, [(words, {})])
    second = plans.iteration(run)
    words = ["bash", "launch/local.sh", str(run / "recipe.yaml"), "--phase", "nca", "--run-dir", str(run)]
    port = str(launch.free_port(1))
    place = {"PYTHON": sys.executable, "NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    stopped_after(run, second + 20, [(words, {**place, "NODE_RANK": str(number)}) for number in range(2)])
    third = plans.iteration(run)
    assert 30 <= first < second < third < 300
    plans.call("resubmit", run)
    slurm.finish(run, 1200)
    assert plans.metrics(run) == undisturbed(values)


def test_torchrun_on_each_node_and_a_series_in_place_of_requeues(slurm, tmp_path, undisturbed):
    values = plans.one_phase(200, 50)
    cluster = {"launcher": "torchrun", "resume_by": "series", "series": 3, "node": {"devices": 1}}
    run = slurm.submit(tmp_path, values, cluster)
    plans.wait(lambda: plans.iteration(run) >= 10, 600, "training", lambda: slurm.account(run))
    warned = next(entry[0] for entry in slurm.queue() if entry[1].endswith("nca.nca") and entry[2] == "RUNNING")
    subprocess.run(["scancel", "--batch", "--signal=USR2", warned], check=True)
    log = slurm.finish(run, 1200)
    assert "002-nca.nca: again: time is up, all is saved" in log and "002-nca.nca: done: was whole" in log, log
    assert (run / "report" / "report.md").is_file(), log
    text = "".join(path.read_text() for path in (run / "slurm" / "logs").glob("*nca.nca*"))
    assert "torchrun --nnodes 2 --nproc-per-node 1" in text
    assert plans.metrics(run) == undisturbed(values)
