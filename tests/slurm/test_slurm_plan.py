"""A plan on the real cluster: the same floats as here, what is refused meanwhile, guards, arrays."""

import os
import shutil
import subprocess
from pathlib import Path

import plans
import pytest

SECRET = "7d41c0ffee"
STRANGE = """it's a "$HOME" `id` %j ü"""


@pytest.fixture(scope="module")
def chain(slurm, tmp_path_factory):
    """A plan of two phases, the first TP2 PP2 over two nodes, the second warned of its end once, in the middle.

    The run folder has a name that must not be run.
    """
    folder = tmp_path_factory.mktemp("chain")
    values = plans.recipe_values()
    values["phases"]["text"] |= {"iterations": 200, "parallel": {}, "save_interval": 100, "validation_interval": 50}
    run = slurm.submit(folder, values, run=folder / STRANGE)
    seen = {"run": plans.call("run", run / "recipe.yaml", "--run-dir", run, check=False)}
    seen["resubmit"] = plans.call("resubmit", run, check=False)
    plans.wait(lambda: plans.iteration(run) >= 1, 600, "training", lambda: slurm.account(run))
    seen["nodes"] = next(entry[3] for entry in slurm.queue() if entry[1].endswith("nca.nca"))
    seen["status"] = plans.call("status", run).stdout
    plans.wait(lambda: plans.iteration(run, "text") >= 1, 600, "second phase", lambda: slurm.account(run))
    subprocess.run(["scancel", "--batch", "--signal=USR2", slurm.job("nca.text")], check=True)
    return run, slurm.finish(run, 600), seen


@pytest.mark.long
def test_losses_are_those_of_a_run_here(chain, tmp_path):
    run, log, seen = chain
    assert seen["nodes"] in ("n[1-2]", "n[2-3]", "n[1,3]")
    plans.call("run", run / "recipe.yaml", "--run-dir", tmp_path / "here")
    for phase in ("nca", "text"):
        assert plans.metrics(run, phase) == plans.metrics(tmp_path / "here", phase)
    assert len(plans.metrics(run, "nca")) == 6 + 3 and len(plans.metrics(run, "text")) == 200 + 5
    assert (run / "report" / "report.md").is_file()
    assert log.count("done: ") == 7, log


@pytest.mark.long
def test_a_warned_job_saves_and_goes_on(chain):
    run, log, _ = chain
    assert "004-nca.text: again: time is up, all is saved" in log
    assert "004-nca.text: attempt 2 begins" in log
    assert sorted(os.listdir(run / "arms/nca/seed0/text/attempts")) == ["1", "2"]
    assert not (run / "arms/nca/seed0/text/stopped.json").exists()


@pytest.mark.long
def test_a_live_plan_is_not_walked_by_another(chain):
    for verb in ("run", "resubmit"):
        result = chain[2][verb]
        assert result.returncode == 2 and "a plan on Slurm is at work here" in result.stderr, result.stderr


@pytest.mark.long
def test_status_tells_of_a_training_at_work(chain):
    text = chain[2]["status"]
    assert "to do    nca nca seed0: train: iteration" in text and "tokens/s" in text
    assert "003-nca.nca" in text and "running on n[" in text and "pending (Dependency)" in text


@pytest.mark.long
def test_status_and_logs_afterwards(chain):
    run = chain[0]
    text = plans.call("status", run).stdout
    assert "9 of 9 steps are whole" in text and text.count(": done") >= 5
    assert "resumed at iteration" in plans.call("logs", run, "004-nca.text").stdout
    assert plans.call("resubmit", run).stdout.endswith("all is whole, nothing to submit\n")
    assert "all 9 steps are done" in plans.call("run", run / "recipe.yaml", "--run-dir", run).stdout


@pytest.mark.long
def test_status_asks_the_controller_once_in_thirty_seconds(chain, tmp_path):
    run = chain[0]
    spy = tmp_path / "squeue"
    spy.write_text(f'#!/usr/bin/env bash\necho >> {tmp_path}/calls\nexec {shutil.which("squeue")} "$@"\n')
    spy.chmod(0o755)
    (run / "slurm" / "queue.json").unlink(missing_ok=True)
    for _ in range(3):
        plans.call("status", run, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (tmp_path / "calls").read_text() == "\n"


def test_what_always_crashes_ends_the_chain(slurm, tmp_path, monkeypatch):
    """Two tries of the first jobs, then it fails and what waits for it is cancelled; status says why.

    Meanwhile no other plan may begin in its folder. Jobs know a secret, and no file of the run does.
    """
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    faults = Path(__file__).parent / "faults"
    environment = {"FAULT": "generate:crash", "PYTHONPATH": f"{faults}:{plans.ROOT}"}
    cluster = {"environment": environment, "array_limit": 1, "tries": 2, "pass_environment": ["WANDB_API_KEY"]}
    values = plans.recipe_values()
    del values["datasets"]["draws"], values["phases"]["text"]
    values["arms"]["nca"]["steps"] = values["arms"]["nca"]["steps"][:1]
    run = slurm.submit(tmp_path, values, cluster)
    second = plans.call("resubmit", run, check=False)
    assert second.returncode == 2 and "a plan on Slurm is at work here" in second.stderr, second.stderr
    log = slurm.finish(run, 600)
    for name in ("001-data.automata.1", "002-data.automata.2"):
        assert log.count(f"{name}: attempt") == 2, log
    assert "fail: exit code 1, and 2 attempts have made no progress" in log
    assert "nca.nca: attempt" not in log and "report: attempt" not in log
    text = plans.call("status", run).stdout
    assert "fail: exit code 1, and 2 attempts have made no progress" in text
    assert "not run, for 001-data.automata.1 has ended so" in text
    written = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert any(f"a key of {len(SECRET)} letters".encode() in text for text in written.values()), "it was passed on"
    assert [name for name, text in written.items() if SECRET.encode() in text] == []


@pytest.mark.long
def test_an_array_of_eight_on_one_bank_with_two_killed(slurm, tmp_path):
    values = plans.one_phase(6, 3)
    values["datasets"]["automata"]["sequences"] = 4000
    bank = tmp_path / "bank"
    law = ["--num-states", 3, "--grid", 6, 6, "--score-frames", 5]
    plans.call("bank", "fill", bank, *law, "--candidates", 1, "--block", 256, "--threads", 1)
    settings = {"shards": 8, "from_sequences": 1000, "banks": {"automata": str(bank)}}
    run = slurm.submit(tmp_path, values, {"generation": settings, "node": {"devices": 1}})
    killed = set()

    def kill_two() -> bool:
        for number, name, state, _ in slurm.queue():
            works = "shards" in name and state == "RUNNING" and (run / "data/automata/train.parts").is_dir()
            if works and number not in killed and len(killed) < 2 and slurm.kill_step(number):
                killed.add(number)
        return len(killed) == 2

    plans.wait(kill_two, 300, "array", lambda: slurm.account(run))
    plans.wait(lambda: (run / "data/automata/train.json").is_file(), 200, "merge", lambda: slurm.account(run))
    plans.call("cancel", run)
    slurm.finish(run)
    alone = tmp_path / "alone"
    words = ["--recipe", run / "recipe.yaml", "--dataset", "automata", "--part", "train", "--run-dir", alone]
    plans.call("generate", *words)
    for end in ("bin", "idx", "json"):
        name = f"data/automata/train.{end}"
        assert (run / name).read_bytes() == (alone / name).read_bytes()
    log = (run / "slurm" / "progress.txt").read_text()
    assert log.count("attempt 2 begins") >= 1, log


@pytest.mark.long
def test_a_node_that_is_not_fit_is_left_out(slurm, tmp_path):
    """One node lacks the folder on its disk; on the other that trains the data are read from a copy there."""
    for node in ("n2", "n3"):
        (tmp_path / node).mkdir()
    values = plans.one_phase(3, 3, parallel={})
    cluster = {"node": {"devices": 1, "disk": f"{tmp_path}/$SLURMD_NODENAME", "copy_data": True}}
    run = slurm.submit(tmp_path, values, cluster)
    log = slurm.finish(run, 600)
    assert "goes elsewhere, for nodes are unfit: n1: " in log, log
    assert "002-nca.nca: attempt 2 begins as job" in log and "002-nca.nca: done" in log, log
    (copy,) = tmp_path.glob("n*/megatron_nca-*/dataset-*/train.bin")
    assert copy.read_bytes() == (run / "data/automata/train.bin").read_bytes()
    said = (run / "arms/nca/seed0/nca/train.log").read_text()
    assert f"data: read from copies in {copy.parents[1]} of each node" in said


