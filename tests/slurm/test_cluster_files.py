"""Cluster files that are refused, and recipes that do not fit a cluster."""

import copy
from pathlib import Path

import plans
import pytest
import yaml

from megatron_nca.cluster import submission
from megatron_nca.cluster.profile import Cluster, load_cluster
from megatron_nca.cluster.script import Place
from megatron_nca.config.recipe import load_recipe, recipe_from_dict
from megatron_nca.config.schema import build
from megatron_nca.errors import ConfigError
from megatron_nca.run_dir import RunFolder

ROOT = Path(__file__).parents[2]
GOOD = {"name": "x", "time": "1h", "node": {"devices": 8, "device": "h100", "request": "gres"}}


def changed(**changes: object) -> dict:
    """`a__b` is a setting of a mapping of the file."""
    values = copy.deepcopy(GOOD)
    for key, value in changes.items():
        node, _, leaf = key.rpartition("__")
        (values.setdefault(node, {}) if node else values)[leaf] = value
    return values


@pytest.mark.parametrize("path", sorted((ROOT / "slurm" / "clusters").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_that_come_with_it(path):
    assert load_cluster(path).name == path.stem


REFUSED = {
    "partitoin": ({"partitoin": "gpu"}, "partitoin: unknown setting. Did you mean 'partition'?"),
    "in node": ({"node__devises": 4}, "node.devises: unknown setting. Did you mean 'devices'?"),
    "no time": ({"time": "soon"}, "'soon' is no duration"),
    "time of the clock": ({"time": 85800}, "time = 85800: expected str, got int. Cure: put it in quotes."),
    "zero time": ({"time": "0s"}, "no time at all"),
    "data time": ({"data_time": "x"}, "data_time"),
    "warn": ({"warn": "40m"}, "more than half"),
    "type": ({"tries": "three"}, "tries = 'three': expected int"),
    "devices": ({"node__devices": 0}, "node.devices = 0"),
    "cpus": ({"node__cpus_per_device": 0}, "node.cpus_per_device = 0"),
    "device": ({"node__device": "h10"}, "Did you mean 'h100'?"),
    "request": ({"node__request": "none"}, "does not go with device 'h100'"),
    "choice": ({"node__request": "gpu"}, "not one of 'gpus-per-node', 'gres', 'none'"),
    "gpu type": ({"node__gpu_type": "a b"}, "take apart"),
    "memory": ({"node__memory": "64 G"}, "take apart"),
    "disk": ({"node__disk": "tmp"}, "not the absolute path"),
    "disk size": ({"node__disk_gb": 5}, "no size of a folder"),
    "copies": ({"node__copy_data": True}, "there is no disk to copy to"),
    "no number on disk": ({"node__disk": "/tmp", "node__disk_gb": float("nan")}, "node.disk_gb = nan"),
    "no number of storage": ({"storage_gb": float("nan")}, "storage_gb = nan"),
    "time without end": ({"time": "99999999999d"}, "is more than a year"),
    "python": ({"python": ""}, "python = ''"),
    "storage": ({"storage_gb": 0}, "storage_gb = 0"),
    "partition": ({"partition": "gpu;rm -rf /"}, "take apart"),
    "account": ({"account": "$(id)"}, "take apart"),
    "qos": ({"qos": ""}, "take apart"),
    "option": ({"options": {"time": "9"}}, "no free option"),
    "option name": ({"options": {"Mail Type": "END"}}, "no free option"),
    "option without a value": ({"options": {"exclusive": True}}, "Cure: put it in quotes, or write nothing"),
    "option value": ({"options": {"constraint": "a b"}}, "take apart"),
    "module": ({"modules": ["cuda; id"]}, "take apart"),
    "container": ({"container": {"runtime": "pyxi", "image": "x"}}, "not one of 'pyxis', 'apptainer'"),
    "image": ({"container": {"runtime": "pyxis", "image": " "}}, "container.image"),
    "mount": ({"container": {"runtime": "pyxis", "image": "x", "mounts": ["data"]}}, "HOST:INSIDE"),
    "secret": ({"environment": {"WANDB_API_KEY": "abc"}}, "pass_environment: [WANDB_API_KEY]"),
    "token": ({"environment": {"HF_TOKEN": "abc"}}, "pass_environment: [HF_TOKEN]"),
    "variable": ({"environment": {"A B": "x"}}, "no name of a variable"),
    "lines": ({"environment": {"A": "x\ny"}}, "more than one line"),
    "passed": ({"pass_environment": ["A=b"]}, "no name of a variable"),
    "series": ({"series": 0}, "series = 0"),
    "tries": ({"tries": 0}, "tries = 0"),
    "array": ({"array_limit": 0}, "array_limit = 0"),
    "at once": ({"array_at_once": 0}, "array_at_once = 0"),
    "nodes": ({"max_nodes": 0}, "max_nodes = 0"),
    "resume": ({"resume_by": "hope"}, "not one of 'requeue', 'series'"),
    "launcher": ({"launcher": "mpirun"}, "not one of 'srun', 'torchrun'"),
    "shards": ({"generation": {"shards": 0}}, "generation.shards = 0"),
    "bank": ({"generation": {"banks": {"a": "here"}}}, "relative path"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, tmp_path):
    changes, message = REFUSED[case]
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(changed(**changes)))
    with pytest.raises(ConfigError) as error:
        load_cluster(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_a_secret_is_not_repeated_in_the_message(tmp_path):
    with pytest.raises(ConfigError) as error:
        build(Cluster, changed(environment={"MY_SECRET": "abcdef"}))
    assert "abcdef" not in str(error.value)


def planned(recipe: object, cluster: dict, run: Path) -> submission.Planned:
    place = Place(run=run, working=run, python="python3", name="x")
    return submission.planned(recipe, build(Cluster, cluster), RunFolder(run), place)


def test_ranks_that_do_not_fill_nodes(tmp_path):
    recipe = recipe_from_dict(plans.recipe_values())
    with pytest.raises(ConfigError, match=r"phases.nca: node.devices = 3: does not divide the 4 ranks"):
        planned(recipe, {**plans.CLUSTER, "node": {"devices": 3}}, tmp_path)
    with pytest.raises(ConfigError, match=r"phases.nca: max_nodes = 1: 4 ranks need 2 nodes"):
        planned(recipe, {**plans.CLUSTER, "max_nodes": 1}, tmp_path)


def test_a_model_that_does_not_fit_its_device(tmp_path):
    recipe = load_recipe(ROOT / "launch/recipes/released_openwebtext.yaml", ["phases.text.micro_batch_size=64",
                                                                            "phases.text.global_batch_size=512"])
    with pytest.raises(ConfigError, match=r"phases.text.parallel = .* a rank needs .* GB, and NVIDIA H100 SXM has 80"):
        planned(recipe, changed(), tmp_path)


def test_a_run_that_is_larger_than_its_storage(tmp_path):
    recipe = recipe_from_dict(plans.recipe_values())
    with pytest.raises(ConfigError, match=r"storage_gb = 1e-05: the run takes up to .* GB"):
        planned(recipe, {**plans.CLUSTER, "storage_gb": 1e-5}, tmp_path)
    planned(recipe, {**plans.CLUSTER, "storage_gb": 1}, tmp_path)


def test_a_bank_of_no_dataset(tmp_path):
    cluster = {**plans.CLUSTER, "generation": {"banks": {"automat": "/bank"}}}
    with pytest.raises(ConfigError, match="Did you mean 'automata'"):
        planned(recipe_from_dict(plans.recipe_values()), cluster, tmp_path)


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_a_run_folder_that_no_container_can_mount(tmp_path, runtime):
    recipe, cluster = recipe_from_dict(plans.recipe_values()), {"runtime": runtime, "image": "/x.sif"}
    for name in ("lr=1,2", "12:30"):
        planned(recipe, plans.CLUSTER, tmp_path / name)
        with pytest.raises(ConfigError, match=f"--run-dir = '.*{name}': has a comma or a colon.* Cure: choose another"):
            planned(recipe, {**plans.CLUSTER, "container": cluster}, tmp_path / name)
