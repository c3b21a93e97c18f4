"""Megatron itself, at several layouts, reads what is written here and writes what is read here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sample_checkpoints import CONFIG, random_checkpoint, values, write_random

from megatron_nca.__main__ import main
from megatron_nca.convert import megatron
from megatron_nca.initialise import initial_tensor, tensor_table
from megatron_nca.mcore.torch_dist import TorchDistReader

WORKER = Path(__file__).with_name("megatron_worker.py")
PARAMETERS = {
    "embedding.weight": "embedding.word_embeddings.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "attention.qkv.weight": "self_attention.linear_qkv.weight",
    "attention.proj.weight": "self_attention.linear_proj.weight",
    "mlp_norm.weight": "pre_mlp_layernorm.weight",
    "mlp.fc1.weight": "mlp.linear_fc1.weight",
    "mlp.fc2.weight": "mlp.linear_fc2.weight",
    "final_norm.weight": "decoder.final_layernorm.weight",
    "head.weight": "output_layer.weight",
}
"""Canonical name (within a layer) -> name of the parameter in the running model with the local layer spec."""


def parameter(name: str) -> str:
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        return f"decoder.layers.{layer}.{PARAMETERS[rest]}"
    return PARAMETERS[name]


def launch(folder: Path, ranks: int, jobs: list[dict]) -> None:
    path = folder / f"jobs{ranks}.json"
    path.write_text(json.dumps(jobs, default=str))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(WORKER), str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written here -> stepped and saved by Megatron at two layouts -> transferred here -> loaded by Megatron."""
    folder = tmp_path_factory.mktemp("interop")
    written = write_random(folder / "written")
    # a step of 1e-30 changes no weight; Megatron saves no optimizer that has not stepped
    two_ranks = [
        {"layout": {"tensor": 2}, "precision": "bf16", "load": written, "steps": 2, "save": folder / "tp2"},
        {
            "layout": {"tensor": 2},
            "precision": "fp32",
            "load": written,
            "steps": 1,
            "lr": 1e-30,
            "save": folder / "unchanged",
        },
    ]
    launch(folder, 2, two_ranks)
    words = ["--carry", "attention", "--vocab-size", "300", "--seed", "3"]
    assert main(["convert", "transfer", "--from", str(folder / "tp2"), "--to", str(folder / "next"), *words]) == 0
    one_rank = [
        {"layout": {}, "precision": "fp32", "load": written, "dump": folder / "written.npz"},
        {"layout": {}, "precision": "fp32", "load": folder / "tp2", "dump": folder / "tp2.npz"},
        {"layout": {}, "precision": "fp32", "load": folder / "next", "dump": folder / "next.npz"},
        {"layout": {}, "precision": "fp32", "load": folder / "next", "steps": 1, "save": folder / "trained"},
    ]
    launch(folder, 1, one_rank)
    return folder


def test_megatron_loads_what_is_written(folder: Path):
    loaded, expected = np.load(folder / "written.npz"), values(random_checkpoint())
    assert set(loaded) == {parameter(name) for name in expected}
    for name, array in expected.items():
        assert (loaded[parameter(name)] == array).all(), name


def test_there_and_back_through_two_tensor_parallel_ranks(folder: Path):
    saved, expected = megatron.read(folder / "unchanged"), values(random_checkpoint())
    assert len(list((folder / "unchanged").glob("__*.distcp"))) > 1
    result = values(saved)
    assert result.keys() == expected.keys()
    assert all((result[name] == expected[name]).all() for name in expected)
    assert {item.reason for item in saved.ignored} <= {"optimizer state", "what common.pt holds in older checkpoints"}


def test_main_weights_of_bf16_training_are_found(folder: Path):
    """What is read is what Megatron itself trains on: the fp32 weights, of which the model holds roundings."""
    reader, checkpoint = TorchDistReader(folder / "tp2"), megatron.read(folder / "tp2")
    assert reader.table["output_layer.weight"] == ((256, 32), "bfloat16")
    for tensor in checkpoint.tensors:
        assert "fp32 main weight was taken" in tensor.note
    head = checkpoint.tensor("head.weight").read().numpy()
    rounded = reader.read("output_layer.weight")
    assert (head != rounded.float().numpy()).any()
    assert (np.abs(head - rounded.float().numpy()) <= 2.0**-8 * np.abs(head)).all()


def test_attention_only_into_another_layout(folder: Path):
    """From tensor-parallel bf16 to one process in fp32: attention carried to the bit, all else its law's start."""
    source, loaded = values(megatron.read(folder / "tp2")), np.load(folder / "next.npz")
    table = tensor_table(CONFIG.with_vocabulary(300))
    assert set(loaded) == {parameter(spec.name) for spec in table}
    for spec in table:
        expected = source[spec.name] if spec.component == "attention" else initial_tensor(spec, 3)
        assert loaded[parameter(spec.name)].tobytes() == expected.tobytes(), spec.name


def test_training_goes_on_from_it(folder: Path):
    before, after = values(megatron.read(folder / "next")), values(megatron.read(folder / "trained"))
    assert all(np.isfinite(after[name]).all() for name in after)
    assert all((after[name] != before[name]).any() for name in before)
