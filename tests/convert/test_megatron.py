"""The spoke for this project's checkpoints: names, what is ignored, what is refused."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from sample_checkpoints import CONFIG, random_checkpoint, values, write_random

from megatron_nca.config.run_config import RunConfig
from megatron_nca.config.schema import to_dict
from megatron_nca.convert import megatron
from megatron_nca.errors import CheckpointError
from megatron_nca.mcore.torch_dist import TorchDistReader


def stored(folder: Path) -> dict[str, torch.Tensor]:
    reader = TorchDistReader(folder)
    return {key: reader.read(key) for key in reader.table}


def save_as(folder: Path, state: dict, model: object = CONFIG) -> Path:
    """A checkpoint with the tensors `state`, as torch writes it."""
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    (folder / "common.pt").touch()
    (folder / "metadata.json").touch()
    (folder / "run_config.yaml").write_text(yaml.safe_dump(to_dict(RunConfig(model=model, iteration=7))))
    return folder


def test_keys_and_shapes_are_those_of_the_contract(trained: Path):
    table = TorchDistReader(trained).table
    assert {key: shape for key, (shape, _) in table.items()} == {
        "embedding.word_embeddings.weight": (256, 32),
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (3, 32),
        "decoder.layers.self_attention.linear_qkv.weight": (3, 64, 32),
        "decoder.layers.self_attention.linear_proj.weight": (3, 32, 32),
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": (3, 32),
        "decoder.layers.mlp.linear_fc1.weight": (3, 96, 32),
        "decoder.layers.mlp.linear_fc2.weight": (3, 32, 48),
        "decoder.final_layernorm.weight": (32,),
        "output_layer.weight": (256, 32),
    }
    assert {dtype for _, dtype in table.values()} == {"float32"}


def test_there_and_back_is_the_identity(tmp_path: Path, trained: Path):
    expected = values(random_checkpoint())
    first = megatron.read(trained)
    assert (first.model, first.iteration, first.ignored) == (CONFIG, 40, ())
    megatron.write(tmp_path / "again", first, RunConfig(model=CONFIG, iteration=40))
    again = values(megatron.read(tmp_path / "again"))
    assert again.keys() == expected.keys()
    assert all((again[name] == expected[name]).all() for name in expected)
    for path in trained.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_layer_norm_of_qkv_is_the_attention_norm(trained: Path):
    key = "decoder.layers.self_attention.linear_qkv.layer_norm_weight"
    assert (stored(trained)[key][2].numpy() == values(random_checkpoint())["layers.2.attention_norm.weight"]).all()


def test_optimizer_random_and_extra_state_are_left_aside(tmp_path: Path, trained: Path):
    state = stored(trained)
    state["optimizer.state.exp_avg.output_layer.weight"] = torch.zeros(3)
    state["optimizer.step"] = torch.zeros(1)
    state["rng_state/shard_0_1"] = b"bytes"
    state["decoder.layers.self_attention.core_attention._extra_state/shard_0_1"] = b"bytes"
    checkpoint = megatron.read(save_as(tmp_path / "c", state))
    assert {item.key: item.reason for item in checkpoint.ignored} == {
        "optimizer.state.exp_avg.output_layer.weight": "optimizer state",
        "optimizer.step": "optimizer state",
        "rng_state/shard_0_1": "random states",
        "decoder.layers.self_attention.core_attention._extra_state/shard_0_1": "extra state",
    }


@pytest.mark.parametrize(
    "key",
    [
        "decoder.layers.self_attention.linear_qkv.bias",
        "decoder.layers.0.mlp.linear_fc1.weight",
        "embedding.position_embeddings.weight",
        "head",
    ],
)
def test_an_unexplained_key_is_refused(tmp_path: Path, trained: Path, key: str):
    with pytest.raises(CheckpointError, match=f"1 keys that are no part of this model: {key}"):
        megatron.read(save_as(tmp_path / "c", {**stored(trained), key: torch.zeros(3, 4)}))


def test_a_missing_tensor_is_named(tmp_path: Path, trained: Path):
    state = stored(trained)
    del state["decoder.layers.mlp.linear_fc2.weight"], state["decoder.final_layernorm.weight"]
    with pytest.raises(CheckpointError, match=r"final_norm.weight is missing.*layers.2.mlp.fc2.weight is missing"):
        megatron.read(save_as(tmp_path / "c", state))


def test_another_shape_is_named(tmp_path: Path, trained: Path):
    state = stored(trained)
    state["output_layer.weight"] = torch.zeros(128, 32)
    state["decoder.layers.mlp.linear_fc1.layer_norm_weight"] = torch.zeros(4, 32)
    with pytest.raises(CheckpointError) as caught:
        megatron.read(save_as(tmp_path / "c", state))
    assert "head.weight has shape (128, 32), expected (256, 32)" in str(caught.value)
    assert "layers.3.mlp_norm.weight is not a tensor of this model" in str(caught.value)


def test_another_type_is_named(tmp_path: Path, trained: Path):
    state = {**stored(trained), "output_layer.weight": torch.zeros(256, 32, dtype=torch.int32)}
    with pytest.raises(CheckpointError, match=r"head.weight is stored as int32, expected one of float32"):
        megatron.read(save_as(tmp_path / "c", state))


@pytest.mark.parametrize("prefix", ["optimizer.state.param.", "optimizer.state.fp32_param."])
def test_main_weights_are_taken_where_weights_are_rounded(tmp_path: Path, trained: Path, prefix: str):
    full = stored(trained)
    state = {key: tensor.bfloat16() for key, tensor in full.items()}
    key = "decoder.layers.mlp.linear_fc2.weight"
    state[prefix + key] = full[key]
    checkpoint = megatron.read(save_as(tmp_path / "c", state))
    fc2, proj = checkpoint.tensor("layers.1.mlp.fc2.weight"), checkpoint.tensor("layers.1.attention.proj.weight")
    assert torch.equal(fc2.read(), full[key][1])
    assert fc2.note == "stored as bfloat16; its fp32 main weight was taken from the optimizer state"
    rounded = full["decoder.layers.self_attention.linear_proj.weight"][1].bfloat16()
    assert torch.equal(proj.read(), rounded)
    assert (fc2.dtype, proj.dtype, proj.read().dtype) == ("float32", "bfloat16", torch.bfloat16)
    assert proj.note == "stored as bfloat16, without an fp32 main weight"


def test_main_weights_are_not_taken_where_weights_are_whole(tmp_path: Path, trained: Path):
    full = stored(trained)
    state = {**full, "optimizer.state.param.output_layer.weight": torch.zeros(256, 32)}
    head = megatron.read(save_as(tmp_path / "c", state)).tensor("head.weight")
    assert head.note is None
    assert torch.equal(head.read(), full["output_layer.weight"])


def test_a_series_gives_its_newest_whole_iteration(tmp_path: Path):
    for iteration in (100, 200, 1000):
        write_random(tmp_path / f"iter_{iteration:07d}")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1000")
    assert megatron.find_checkpoint(tmp_path) == (
        tmp_path / "iter_0001000",
        f"{tmp_path}: takes iteration 1000, the newest whole one.",
    )
    (tmp_path / "iter_0001000" / ".metadata").unlink()
    folder, note = megatron.find_checkpoint(tmp_path)
    assert folder == tmp_path / "iter_0000200"
    assert note.endswith("takes iteration 200, the newest whole one; not whole: 1000.")


def test_a_single_checkpoint_is_itself(trained: Path):
    assert megatron.find_checkpoint(trained) == (trained, None)


def spoil_missing(folder: Path) -> None:
    shutil.rmtree(folder)


def spoil_table(folder: Path) -> None:
    (folder / ".metadata").unlink()


def spoil_into_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def spoil_into_empty_series(folder: Path) -> None:
    (folder / ".metadata").unlink()
    (folder / "latest_checkpointed_iteration.txt").write_text("5")


@pytest.mark.parametrize("spoil", [value for name, value in sorted(globals().items()) if name.startswith("spoil_")])
def test_what_is_no_checkpoint_is_refused(trained: Path, spoil: Callable):
    spoil(trained)
    with pytest.raises(CheckpointError, match="Cure"):
        megatron.find_checkpoint(trained)


def test_without_run_config_it_is_refused(trained: Path):
    (trained / "run_config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"run_config.yaml is missing"):
        megatron.read(trained)


def test_malicious_objects_are_never_read(tmp_path: Path, trained: Path):
    """Byte entries can hold any pickle; opening, reading and converting leave them alone."""
    from sample_checkpoints import Bomb

    mark = tmp_path / "mark"
    state = {**stored(trained), "rng_state/shard_0_1": pickle.dumps(Bomb(mark))}
    folder = save_as(tmp_path / "c", state)
    values(megatron.read(folder))
    assert not mark.exists()
