"""The texts of batch scripts against committed records, and names that a shell or sbatch might take for code.

After a change that is meant: WRITE_RECORDS=1 pytest tests/slurm/test_scripts.py, and read the difference.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_nca import plan
from megatron_nca.cluster import script
from megatron_nca.cluster.jobs import jobs
from megatron_nca.cluster.profile import Cluster, load_cluster
from megatron_nca.cluster.script import Place
from megatron_nca.config.recipe import load_recipe, recipe_from_dict
from megatron_nca.config.schema import build
from megatron_nca.errors import ConfigError
from megatron_nca.run_dir import RunFolder

ROOT = Path(__file__).parents[2]
RECORDS = Path(__file__).parent / "records"
PROFILES = sorted((ROOT / "slurm" / "clusters").glob("*.yaml"))
STRANGE = """a b'c"d$HOME `id` $(touch pwned) %j #x ü;&|"""
CASES = {
    "local_training": ("local", "005-nca.nca", 0),
    "local_report": ("local", "008-report", 0),
    "gpu_training": ("gpu", "004-scratch.text", 0),
    "offline_of_a_series": ("offline", "005-nca.nca", 2),
    "offline_shards": ("offline", "001-data.automata.train.shards", 0),
    "strange_names": ("strange", "007-nca__.text", 0),
}


def place(name: str = "demo", run: str = "/scratch/runs/demo") -> Place:
    return Place(run=Path(run), working=Path("/scratch/clone"), python="/scratch/clone/.venv/bin/python", name=name)


def texts(case: str) -> str:
    profile, name, element = CASES[case]
    values = load_recipe(ROOT / "launch/recipes/demo.yaml", ["seeds=[0, 1, 2]"] if "report" not in case else [])
    where = place()
    if profile == "strange":
        cluster = build(Cluster, {"name": "x", "time": "1h", "node": {"devices": 2},
                                  "environment": {"GREETING": STRANGE}})  # fmt: skip
        where = place(STRANGE, f"/scratch/{STRANGE}")
        values = recipe_with_strange_names()
    else:
        cluster = load_cluster(ROOT / f"slurm/clusters/{profile}.yaml")
    if "shards" in name:
        values = load_recipe(ROOT / "launch/recipes/demo.yaml", ["datasets.automata.sequences=50000"])
    found = {job.name: job for job in jobs(values, plan.steps(values, RunFolder(where.run)), cluster)}
    return script.text(found[name], cluster, where, element)


def recipe_with_strange_names():
    values = yaml.safe_load((ROOT / "launch/recipes/demo.yaml").read_text())
    values["arms"]["nca ü"] = values["arms"].pop("nca")
    return recipe_from_dict({**values, "name": STRANGE})


@pytest.mark.parametrize("case", CASES)
def test_scripts_are_those_of_the_records(case):
    path = RECORDS / f"{case}.sh"
    if os.environ.get("WRITE_RECORDS"):
        path.write_text(texts(case))
    assert texts(case) == path.read_text()


@pytest.mark.parametrize("case", CASES)
def test_scripts_are_bash_and_clean(case):
    path = RECORDS / f"{case}.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    # That nothing is expanded in single quotes is what they are for.
    found = subprocess.run(["shellcheck", "--exclude=SC2016", str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_shell_script_of_the_development_cluster_is_clean():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(["shellcheck", str(ROOT / "slurm/dev_cluster.sh")], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_strange_names_reach_the_job_as_data(tmp_path):
    """The script run by bash, with a Python that tells what it was given."""
    folder = tmp_path / STRANGE.replace("/", "_")
    folder.mkdir()
    spy = folder / "py'thon"
    spy.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$GREETING" "$@" > "$0.said"\n')
    spy.chmod(0o755)
    values = recipe_with_strange_names()
    settings = {"name": "x", "time": "1h", "node": {"devices": 2}, "environment": {"GREETING": STRANGE}}
    cluster = build(Cluster, settings)
    where = Place(run=folder, working=tmp_path, python=str(spy), name=STRANGE)
    job = jobs(values, plan.steps(values, RunFolder(folder)), cluster)[-1]
    file = tmp_path / "job.sh"
    file.write_text(script.text(job, cluster, where))
    subprocess.run(["bash", str(file)], cwd=tmp_path, check=True)
    said = Path(f"{spy}.said").read_text().splitlines()
    assert said == [STRANGE, "-m", "megatron_nca", "job", str(folder), job.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, "job.sh"])


def test_options_of_sbatch_with_a_value_and_without(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("{name: x, time: 1h, node: {devices: 2}, options: {constraint: h100, exclusive: }}")
    values = load_recipe(ROOT / "launch/recipes/demo.yaml")
    job = jobs(values, plan.steps(values, RunFolder(tmp_path)), load_cluster(path))[-1]
    assert script.options(job, load_cluster(path), place())[-2:] == ["--constraint=h100", "--exclusive"]


def test_a_folder_that_slurm_cannot_take_is_refused():
    cluster = load_cluster(ROOT / "slurm/clusters/local.yaml")
    values = load_recipe(ROOT / "launch/recipes/demo.yaml")
    for run in ("/scratch/back\\slash", "/scratch/two\nlines"):
        job = jobs(values, plan.steps(values, RunFolder(Path(run))), cluster)[-1]
        with pytest.raises(ConfigError, match="choose another folder"):
            script.text(job, cluster, place(run=run))


@pytest.mark.parametrize("words", [("up", "a b"), ("up", "x", "none"), ("up", "x", "0"), ("down", "x"), ("env", "x")],
                         ids=" ".join)
def test_a_cluster_that_cannot_be_is_refused_before_anything_is_started(tmp_path, words):
    command = ["bash", str(ROOT / "slurm/dev_cluster.sh"), *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and " Cure: " in ended.stderr and not list(tmp_path.iterdir()), ended.stderr


@pytest.mark.parametrize("words", [("start", "n9"), ("stop", "n9"), ("stop", "n"), ("start",)], ids=" ".join)
def test_a_daemon_that_a_cluster_does_not_have(tmp_path, words):
    (tmp_path / "slurm.conf").write_text("NodeName=n1 NodeHostname=here\n")
    command = ["bash", str(ROOT / "slurm/dev_cluster.sh"), words[0], str(tmp_path), *words[1:]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    name = "".join(words[1:])
    assert ended.returncode == 2 and f": DAEMON = '{name}': is none of this cluster. Cure: " in ended.stderr


def test_secrets_are_named_and_never_written(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-value")
    cluster = load_cluster(ROOT / "slurm/clusters/gpu.yaml")
    values = load_recipe(ROOT / "launch/recipes/demo.yaml")
    for job in jobs(values, plan.steps(values, RunFolder(Path("/scratch/x"))), cluster):
        text = script.text(job, cluster, place())
        assert "WANDB_API_KEY" in text and "s3cr3t" not in text


def test_a_sweep_of_a_thousand_is_planned_within_two_seconds(tmp_path):
    """As one array, and as a thousand jobs where there are no arrays; the whole command, without torch."""
    (tmp_path / "flat.yaml").write_text("name: flat\ntime: 1h\nnode: {devices: 2}\narray_limit: 1\n")
    words = ["launch/recipes/demo.yaml", "--run-dir", str(tmp_path / "run"), "--dry-run"]
    sweep = [f"seeds={list(range(1000))}", "arms={scratch: {steps: [{phase: text}]}}"]
    for profile, submissions in (("slurm/clusters/local.yaml", 5), (str(tmp_path / "flat.yaml"), 1006)):
        command = [sys.executable, "-X", "importtime", "slurm/submit.py", *words, "--cluster", profile, *sweep]
        began = os.times().children_user
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seconds = os.times().children_user - began
        assert result.returncode == 0, result.stderr
        assert f"{submissions} submissions, " in result.stdout
        assert " torch\n" not in result.stderr
        assert seconds < 2, f"{seconds:.1f} s of processor time"
    assert not (tmp_path / "run").exists()
