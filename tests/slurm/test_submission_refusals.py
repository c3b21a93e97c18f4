"""What `submit` refuses before the first job is in the queue."""

import collections
import os
import shutil

import plans
import pytest

from megatron_nca import files
from megatron_nca.__main__ import main
from megatron_nca.cluster import record, submission
from megatron_nca.cluster.profile import Cluster
from megatron_nca.cluster.record import Submission
from megatron_nca.cluster.script import Place
from megatron_nca.cluster.submission import Planned
from megatron_nca.config.recipe import recipe_from_dict
from megatron_nca.config.schema import build, to_yaml
from megatron_nca.errors import ConfigError, DataError, LaunchError
from megatron_nca.run_dir import RunFolder


def planned(tmp_path, seeds: int = 1, **cluster: object) -> Planned:
    recipe = recipe_from_dict({**plans.one_phase(6, 3), "seeds": list(range(seeds))})
    place = Place(run=tmp_path / "run", working=tmp_path, python="python3", name="x")
    return submission.planned(recipe, build(Cluster, {**plans.CLUSTER, **cluster}), RunFolder(place.run), place)


@pytest.mark.parametrize("setting", [{"partition": "nowhere"}, {"options": {"constraint": "h100"}}], ids=str)
def test_what_the_controller_does_not_have(slurm, tmp_path, setting):
    wanted = planned(tmp_path, **setting)
    before = slurm.queue()
    with pytest.raises(LaunchError, match=r"(?s)Slurm refuses jobs of 1 ranks: .* Cure: change the cluster file"):
        submission.submit(wanted, print)
    assert slurm.queue() == before and not wanted.run.slurm.jobs.exists()


def test_an_array_that_is_larger_than_the_cluster_takes(slurm, tmp_path):
    with pytest.raises(ConfigError, match=r"array_limit = 5000: this cluster takes 1001. Cure: set array_limit: 1001"):
        submission.submit(planned(tmp_path, seeds=1002, array_limit=5000), print)


def test_a_variable_that_is_to_be_passed_and_is_not_set_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm there
    said = []
    with pytest.raises(LaunchError, match="is not installed here"):
        submission.submit(planned(tmp_path, pass_environment=["HOME", "NOT_SET_HERE"]), said.append)
    assert said[-1] == "warning: pass_environment: NOT_SET_HERE is not set here, so jobs will not see it."


def test_too_little_space(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(DataError, match=r"--run-dir = .*run': needs .* [GM]B, and in .* 0.0 kB are free. Cure: "):
        submission.submit(planned(tmp_path), print)


def test_a_bank_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"generation.banks.automata = .*: there is no bank"):
        submission.submit(planned(tmp_path, generation={"banks": {"automata": str(tmp_path)}}), print)


def test_a_folder_in_which_another_is_at_work(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "_check_arrays", lambda _: None)  # asks the controller
    wanted = planned(tmp_path)
    for lock, verb in ((wanted.run.slurm.lock, "submit"), (wanted.run.lock, "run")):
        descriptor = files.try_lock(lock)
        with pytest.raises(ConfigError, match=f"another `megatron-nca {verb}` is at work there"):
            submission.submit(wanted, print)
        os.close(descriptor)


SAID = {
    "no cluster": "scontrol: error: fetch_config: DNS SRV lookup failed\n"
                  "scontrol: fatal: Could not establish a configuration source",
    "down": "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)",
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_a_machine_from_which_slurm_does_not_answer(tmp_path, monkeypatch, said):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    (programs / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(LaunchError, match=r"^scontrol: Slurm does not answer \(.*\)\. Cure: go to a machine"):
        submission.submit(planned(tmp_path), print)
    assert not (tmp_path / "run").exists()


def test_logs_of_no_lines(tmp_path, capsys):
    assert main(["logs", str(tmp_path), "--lines", "0"]) == 2
    assert "--lines = 0: must be at least 1." in capsys.readouterr().err


def test_resubmitting_a_run_that_was_never_submitted(tmp_path, capsys):
    run = planned(tmp_path).run
    run.path.mkdir()
    run.recipe.write_text(to_yaml(planned(tmp_path).recipe))
    assert main(["resubmit", str(run.path)]) == 2
    said = capsys.readouterr().err
    assert f"RUN = '{run.path}': was never submitted to a cluster. Cure: `megatron-nca submit {run.recipe}" in said


def test_a_folder_whose_plan_may_live_where_slurm_cannot_be_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue there
    wanted = planned(tmp_path)
    Submission.new(wanted.jobs).write(wanted.run.slurm)
    with pytest.raises(ConfigError, match=r"a plan on Slurm has jobs left here .*, and whether they live cannot be"):
        record.check_free(wanted.run)


def test_a_job_whose_number_cannot_be_kept_is_not_left_in_the_queue(slurm, tmp_path):
    wanted = planned(tmp_path)
    wanted.run.slurm.ids.mkdir(parents=True)  # no line can be added to it, as on a full disk
    with pytest.raises(DataError, match=r"ids.jsonl: cannot be written .* Cure: "):
        submission.submit(wanted, print)
    plans.wait(lambda: not slurm.queue(), 60, "end of the job")
    assert not wanted.run.slurm.jobs.exists()
