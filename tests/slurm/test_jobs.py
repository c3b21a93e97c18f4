"""The graph of jobs, the command lines of srun, and what becomes of a job that has ended."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import plans
import pytest

from megatron_nca import files, plan
from megatron_nca.cluster import attempts, launch, node, queue, record, status
from megatron_nca.cluster.attempts import Attempt, decide
from megatron_nca.cluster.jobs import jobs
from megatron_nca.cluster.profile import Cluster
from megatron_nca.cluster.record import Submission
from megatron_nca.cluster.submission import dependency
from megatron_nca.config.recipe import recipe_from_dict
from megatron_nca.config.schema import build
from megatron_nca.errors import DataError
from megatron_nca.run_dir import PhaseFolder, RunFolder, SlurmFolder

RUN = RunFolder(Path("/scratch/run"))


def graph(values: dict, run: RunFolder = RUN, **cluster: object) -> dict:
    recipe = recipe_from_dict(values)
    return {job.name: job for job in jobs(recipe, plan.steps(recipe, run), build(Cluster, plans.CLUSTER | cluster))}


def test_seeds_are_arrays_that_wait_element_by_element():
    found = graph({**plans.recipe_values(), "seeds": [0, 1, 2]})
    assert list(found) == ["001-data.automata", "002-data.draws", "003-nca.nca", "004-nca.text", "005-report"]
    text = found["004-nca.text"]
    assert text.pairwise == ("003-nca.nca",) and text.after == ("002-data.draws",)
    assert [tasks[1].step for tasks in text.elements] == [f"text nca seed{seed}: train" for seed in range(3)]
    assert found["005-report"].after == ("003-nca.nca", "004-nca.text") and not found["005-report"].pairwise
    numbers = {name: str(100 + i) for i, name in enumerate(found)}
    assert dependency(text, numbers) == "afterok:101,aftercorr:102"
    assert dependency(text, {"003-nca.nca": "7"}) == "aftercorr:7", "data that were whole are not waited for"


def test_arrays_respect_the_limit_of_the_cluster():
    found = graph({**plans.recipe_values(), "seeds": list(range(5))}, array_limit=2)
    names = [name for name in found if "nca.text" in name]
    assert [len(found[name].elements) for name in names] == [2, 2, 1]
    assert found[names[0]].pairwise == (next(name for name in found if name.endswith("nca.nca.1")),)


def test_controls_are_branches_that_share_their_first_phase_and_join_in_the_report():
    values = plans.recipe_values()
    steps = values["arms"]["nca"]["steps"]
    values["arms"] |= {"half": {"steps": [steps[0], {"phase": "text", "start": {"carry": ["attention"]}}]}}
    found = graph(values)
    assert [name[4:] for name in found] == ["data.automata", "data.draws", "nca.nca", "nca.text", "half.text", "report"]
    assert found["005-half.text"].after == ("002-data.draws", "003-nca.nca")


def test_large_datasets_are_made_by_shards_and_joined():
    settings = {"shards": 4, "from_sequences": 20, "banks": {"automata": "/bank"}}
    found = graph(plans.recipe_values(), generation=settings)
    shards, merge = found["001-data.automata.train.shards"], found["002-data.automata.train"]
    bank = ("--bank", "/bank", "--extend-bank")
    assert [tasks[0].flags for tasks in shards.elements] == [(*bank, "--shard", f"{i}/4") for i in range(4)]
    assert merge.after == (shards.name,) and merge.elements[0][0].flags == (*bank, "--merge")
    assert found["003-data.automata"].elements[0][0].step == "data automata validation: generate"
    assert set(found["004-data.draws"].after) == {shards.name, merge.name, "003-data.automata"}


def test_what_is_whole_is_left_out_and_names_stay(tmp_path):
    run = RunFolder(tmp_path)
    values = {**plans.recipe_values(), "seeds": [0, 1]}
    for name in ("initial/account.json", "done.json"):
        path = run.phase("nca", 0, "nca").path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    found = graph(values, run)
    assert found["003-nca.nca"].numbers == (1,) and found["004-nca.text"].numbers == (0, 1)


def test_command_lines():
    values = plans.recipe_values()
    recipe = recipe_from_dict(values)
    steps = {step.name: step for step in plan.steps(recipe, RUN)}

    def line(**cluster: object) -> list[str]:
        job = graph(values, **cluster)["003-nca.nca"]
        settings = build(Cluster, plans.CLUSTER | cluster)
        task = job.elements[0][-1]
        return launch.command(job, task, steps[task.step], settings, RUN.path, more=("--x",), meet=("host", 12345))

    one_rank = {name: {**phase, "parallel": {}} for name, phase in values["phases"].items()}
    small = graph({**values, "phases": one_rank})["003-nca.nca"]
    step = steps[small.elements[0][0].step]
    settings = build(Cluster, plans.CLUSTER)
    transfer = launch.command(small, small.elements[0][0], step, settings, RUN.path, meet=("", 0))
    assert "--cpus-per-task=1" in transfer, "no more than the allocation of a training of one rank has"
    plain = line()
    assert plain[:5] == ["srun", "--export=ALL", "--nodes=2", "--ntasks=4", "--ntasks-per-node=2"]
    assert plain[plain.index("-m") + 2 :][0] == "train" and plain[-1] == "--x" and "torchrun" not in plain
    other = " ".join(line(launcher="torchrun"))
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1" in other and 'PET_NODE_RANK="$SLURM_NODEID" exec "$@"' in other
    meeting = "--nnodes 2 --nproc-per-node 2 --master-addr host --master-port 12345"
    assert f"torchrun {meeting} -m megatron_nca train" in other
    copied = line(node={"devices": 2, "disk": "$SLURM_TMPDIR", "copy_data": True})
    assert copied[-2:] == ["--copy-data-to", f"$SLURM_TMPDIR/megatron_nca-{os.getuid()}"]
    pyxis = line(container={"runtime": "pyxis", "image": "nvcr.io/x:1", "mounts": ["/a:/b"]})
    root = plan.DATA_TOOLS.parent
    assert f"--container-mounts=/scratch/run:/scratch/run,{root}:{root},/a:/b" in pyxis
    assert pyxis[pyxis.index("-m") - 1] == "python3"
    apptainer = line(container={"runtime": "apptainer", "image": "/x.sif"})
    assert apptainer[apptainer.index("apptainer") :][:2] == ["apptainer", "exec"] and "--nv" not in apptainer


ENDS = [
    ({"code": 0}, "done"),
    ({"code": 75}, "again"),
    ({"code": 75, "signal": "SIGUSR2"}, "again"),
    ({"code": 137, "signal": "SIGUSR2"}, "again"),
    ({"code": 1}, "again"),
    ({"code": 2}, "fail"),
    ({"code": 2, "signal": "SIGUSR2"}, "again"),
    ({"code": 1, "without_progress": 3}, "fail"),
    ({"code": 75, "without_progress": 3}, "fail"),
    ({"code": 75, "signal": "SIGTERM"}, "leave"),
    ({"code": 0, "signal": "SIGTERM"}, "done"),
    ({"code": 0, "is_current": False}, "leave"),
    ({"code": 75, "last": True}, "fail"),
]


@pytest.mark.parametrize(("what", "action"), ENDS)
def test_what_becomes_of_a_job(what, action):
    values = {"signal": None, "is_current": True, "without_progress": 0, "tries": 3, **what}
    assert decide(values.pop("code"), **values).action == action


def test_a_node_without_apptainer_is_unfit_where_it_is_the_runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for runtime, problems in (("apptainer", ["apptainer is not in its PATH"]), ("pyxis", [])):
        cluster = build(Cluster, plans.CLUSTER | {"container": {"runtime": runtime, "image": "/x.sif"}})
        assert node.problems(cluster, SlurmFolder(tmp_path)) == problems
    (tmp_path / "apptainer").touch(0o755)
    cluster = build(Cluster, plans.CLUSTER | {"container": {"runtime": "apptainer", "image": "/x.sif"}})
    assert node.problems(cluster, SlurmFolder(tmp_path)) == []


def test_attempts_without_progress_are_counted_within_a_submission(tmp_path):
    begin = [Attempt.begin(tmp_path, "first", (1, iteration, 0)) for iteration in (0, 0, 10, 10, 10)]
    assert [attempt.number for attempt in begin] == [1, 2, 3, 4, 5]
    assert [attempt.before for attempt in begin] == [0, 1, 0, 1, 2]
    assert begin[-1].without_progress((1, 10, 0)) == 3 and begin[-1].without_progress((1, 11, 0)) == 0
    assert [attempt.is_current() for attempt in begin] == [False] * 4 + [True]
    assert Attempt.begin(tmp_path, "second", (1, 10, 0)).before == 0


def test_two_processes_never_get_one_number(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: files.take_number(tmp_path, "x"), range(40)))
    assert sorted(numbers) == list(range(1, 41))


def test_progress_counts_steps_iterations_and_parts(tmp_path):
    run = RunFolder(tmp_path)
    values = plans.recipe_values()
    recipe = recipe_from_dict(values)
    steps = {step.name: step for step in plan.steps(recipe, run)}
    found = graph(values, run)
    (run.phase("nca", 0, "nca").checkpoints.iteration(30)).mkdir(parents=True)
    parts = run.dataset("automata").path / "train.parts"
    parts.mkdir(parents=True)
    (parts / "rules-0.npy").touch()
    assert attempts.progress(found["003-nca.nca"].elements[0], steps) == (0, 30, 0)
    assert attempts.progress(found["001-data.automata"].elements[0], steps) == (0, 0, 1)


def test_what_may_still_run_by_the_records_alone(tmp_path):
    folder = RunFolder(tmp_path).slurm
    submission = Submission.new(tuple(graph(plans.recipe_values()).values()))
    submission.write(folder)
    assert record.read(folder) == submission

    def end(job: str, element: int, action: str) -> None:
        attempts.record_end(folder.end(job, element), {"submission": submission.name, "action": action, "reason": "x"})

    assert len(record.unfinished(folder, submission)) == 5
    end("001-data.automata", 0, "done")
    assert len(record.unfinished(folder, submission)) == 5, "its other element may run"
    end("001-data.automata", 1, "done")
    end("002-data.draws", 0, "done")
    end("002-data.draws", 1, "done")
    end("003-nca.nca", 0, "fail")
    assert record.unfinished(folder, submission) == [], "what waits for it is cancelled by Slurm"


def test_what_asks_slurm_outlives_the_signal_that_slurm_sends_to_a_job_it_requeues(tmp_path, monkeypatch):
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\nkill -TERM $$\necho $* >> {tmp_path}/asked\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    queue.requeue_elsewhere("7", ["n1"])
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[1:] == ["requeuehold 7", "update JobId=7 ExcNodeList=n1", "release 7"], "else it is held for ever"


def test_records_that_are_torn_are_one_message_or_passed_over(tmp_path):
    folder = RunFolder(tmp_path).slurm
    submission = Submission.new(tuple(graph(plans.recipe_values(), RunFolder(tmp_path)).values()))
    submission.write(folder)
    job = submission.jobs[0]
    for text in ("[1]", json.dumps({"submission": submission.name})):
        files.write_text(folder.end(job.name, 0), text)
        assert record.ends(folder, submission, job) == {}
    folder.ids.write_text('{"submission": "' + submission.name)
    with pytest.raises(DataError, match=r"ids.jsonl: a line of it cannot be read .* Cure: cancel jobs with scancel"):
        record.ids(folder, submission)


def test_status_passes_over_lines_that_lack_numbers(tmp_path):
    line = {"type": "train", "iteration": 3, "lm loss": 2.5, "iteration-time": 0.0, "tokens-per-second": 0.0}
    folder = PhaseFolder(tmp_path)
    folder.metrics.write_text("\n".join(map(json.dumps, [line, {"type": "train"}, {**line, "lm loss": None}])) + "\n{")
    assert str(status.training(folder, 9)) == "iteration 3 of 9, loss 2.5000"
