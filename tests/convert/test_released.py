"""Files of the paper's released code: read with their own logits, written so that it reads them, refused if unclear."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_checkpoints import assert_same, random_checkpoint

from megatron_nca.__main__ import main
from megatron_nca.config.model import ModelConfig
from megatron_nca.config.recipe import OptimizerConfig, Phase
from megatron_nca.convert import megatron, released
from megatron_nca.errors import CheckpointError
from megatron_nca.mcore.engine import Engine, read_ranks

GOLDEN = Path(__file__).parent.parent / "golden"
SHAPE = ModelConfig(num_layers=3, hidden_size=32, num_heads=4, ffn_hidden_size=128, vocab_size=200)


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Of the Megatron model that training would make of the checkpoint, (B, S, vocabulary)."""
    model = megatron.read(folder).model
    phase = Phase(dataset="text", iterations=1, global_batch_size=2, micro_batch_size=2, precision="fp32",
                  optimizer=OptimizerConfig(lr=1e-3))  # fmt: skip
    engine = Engine(model, phase, read_ranks(), seed=0)
    try:
        engine.load(folder)
        with torch.no_grad():
            return engine.chunks[0](tokens, None, None)[..., : model.vocab_size]
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["language", "nca"])
def test_logits_are_the_released_codes_own(name: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    golden = np.load(GOLDEN / "released_logits.npz")
    words = ["convert", "format", "megatron-nca", "--from", GOLDEN / f"released_{name}.pth", "--to", tmp_path / "ours"]
    words += ["--num-heads", "4", "--verify", *(["--drop-head-bias"] if name == "nca" else [])]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "rope_base 10000, norm_epsilon 1e-06, sequence_length 1024: taken from the released code" in said
    assert "left aside: optimizer state: 1 entry" in said
    ours = logits(tmp_path / "ours", torch.from_numpy(golden[f"{name}_tokens"].astype(np.int64)))
    expected = torch.from_numpy(golden[f"{name}_logits"])
    if name == "nca":
        assert "bias of the head, up to" in said
        state = torch.load(GOLDEN / "released_nca.pth", weights_only=False)["model"]
        expected = expected - state["output_proj.bias"]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_there_and_back_is_the_identity(tied: bool, tmp_path: Path):
    source = random_checkpoint(ModelConfig(**{**vars(SHAPE), "tied_embeddings": tied}), zero_padding=True)
    released.write(tmp_path / "there", source)
    assert_same(source, released.read(tmp_path / "there"))
    assert [path.name for path in tmp_path.rglob("*.pth")] == ["model_40.pth"]


def test_what_is_written_is_what_the_released_code_looks_for(tmp_path: Path):
    """Its own file, read and written, has the same tensors under the same keys for plain torch.load."""
    path = GOLDEN / "released_language.pth"
    released.write(tmp_path / "back", released.read(path, num_heads=4))
    before = torch.load(path, weights_only=False)["model"]
    after = torch.load(tmp_path / "back" / "model_2.pth", weights_only=True)["model"]
    assert sorted(after) == sorted(before)
    assert all(torch.equal(after[name], before[name]) and after[name].is_contiguous() for name in before)


def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path):
    content = torch.load(GOLDEN / "released_language.pth", weights_only=False)
    content["model"] = {f"_orig_mod.module.{name}": tensor for name, tensor in content["model"].items()}
    torch.save(content, tmp_path / "f.pth")
    assert_same(released.read(GOLDEN / "released_language.pth", num_heads=4),
                    released.read(tmp_path / "f.pth", num_heads=4))  # fmt: skip


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.mark,)


def damage_extra(state: dict, content: dict) -> str:
    state["layers.0.lora.weight"] = torch.ones(1)
    return r"layers\.0\.lora\.weight is not a tensor of this model"


def damage_missing(state: dict, content: dict) -> str:
    del state["layers.1.mlp.up_proj.weight"]
    return r"layers\.1\.mlp\.up_proj\.weight is missing"


def damage_shape(state: dict, content: dict) -> str:
    state["norm.weight"] = torch.ones(15)
    return r"norm\.weight has shape \(15,\), expected \(16,\)"


def damage_types(state: dict, content: dict) -> str:
    state["layers.0.self_attn.k_proj.weight"] = state["layers.0.self_attn.k_proj.weight"].half()
    return "are of different types"


def damage_type(state: dict, content: dict) -> str:
    state["norm.weight"] = state["norm.weight"].double()
    return "stored as float64"


def damage_code(state: dict, content: dict) -> str:
    content["optimizer"] = Bomb(content["mark"])
    return r"holds more than tensors and plain data \(posix\.mkdir\)"


def damage_no_model(state: dict, content: dict) -> str:
    del content["model"]
    return "no tensors under the key 'model'"


@pytest.mark.parametrize("damage", [value for name, value in sorted(globals().items()) if name.startswith("damage_")])
def test_what_is_no_such_file_is_refused_with_its_reason(damage: Callable, tmp_path: Path):
    content = torch.load(GOLDEN / "released_language.pth", weights_only=False)
    content["mark"] = str(tmp_path / "mark")
    message = damage(content["model"], content)
    torch.save(content, tmp_path / "f.pth")
    with pytest.raises(CheckpointError, match=message):
        released.read(tmp_path / "f.pth", num_heads=4)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nca", {"num_heads": 4}, "its head has a bias .* Cure: --drop-head-bias"),
        ("language", {}, "does not say how many heads .* Cure: give --num-heads"),
        ("language", {"num_heads": 3}, "num_heads = 3: does not divide"),
    ],
)
def test_what_the_file_leaves_open_is_asked_for(name: str, options: dict, message: str):
    with pytest.raises(CheckpointError, match=message):
        released.read(GOLDEN / f"released_{name}.pth", **options)


def test_a_flipped_bit_is_found_when_it_is_read(tmp_path: Path):
    checkpoint = released.read(GOLDEN / "released_language.pth", num_heads=4)
    weight = checkpoint.tensor("layers.1.mlp.fc2.weight").read().numpy().tobytes()
    data = (GOLDEN / "released_language.pth").read_bytes()
    place = data.index(weight)
    (tmp_path / "f.pth").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    changed = released.read(tmp_path / "f.pth", num_heads=4)
    changed.tensor("layers.0.mlp.fc2.weight").read()
    with pytest.raises(CheckpointError, match="does not agree with its sum"):
        changed.tensor("layers.1.mlp.fc2.weight").read()
    (tmp_path / "f.pth").write_bytes(data[:-1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        released.read(tmp_path / "f.pth", num_heads=4)


def test_a_shape_that_the_released_code_cannot_build_is_not_written(tmp_path: Path):
    message = "query_groups is 2, there always 4; ffn_hidden_size is 48, there always 128"
    with pytest.raises(CheckpointError, match=message):
        released.write(tmp_path / "there", random_checkpoint())
    assert not list(tmp_path.iterdir())
