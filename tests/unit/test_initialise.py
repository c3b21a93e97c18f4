"""The laws of the initial tensors, and that they depend on seed, name and position only."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_nca.config.components import COMPONENTS
from megatron_nca.config.model import ModelConfig
from megatron_nca.initialise import LAYER_TENSORS, TensorSpec, initial_tensor, tensor_table

CONFIG = ModelConfig(num_layers=3, hidden_size=64, num_heads=4, num_query_groups=2, ffn_hidden_size=96, vocab_size=300)


def specs(config: ModelConfig) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in tensor_table(config)}


def test_table_has_every_tensor_once_with_its_shape():
    table = specs(CONFIG)
    assert len(table) == len(tensor_table(CONFIG)) == 3 + 3 * len(LAYER_TENSORS)
    assert {spec.component for spec in table.values()} == set(COMPONENTS)
    assert table["embedding.weight"].shape == table["head.weight"].shape == (384, 64)
    assert table["layers.2.attention.qkv.weight"].shape == (64 + 2 * 2 * 16, 64)
    assert table["layers.2.mlp.fc1.weight"].shape == (192, 64)
    assert table["layers.2.mlp.fc2.weight"].shape == (64, 96)
    assert table["layers.1.attention_norm.weight"].component == "norms"
    assert table["layers.1.attention.proj.weight"].layer == 1
    assert table["final_norm.weight"].layer is None


def test_normal_law():
    spec = specs(dataclasses.replace(CONFIG, hidden_size=256))["layers.0.mlp.fc1.weight"]
    values = initial_tensor(spec, 3).astype(np.float64).ravel() / CONFIG.init_std
    count = values.size
    assert abs(values.mean()) < 5 / math.sqrt(count)
    assert abs(values.std() - 1) < 5 / math.sqrt(2 * count)
    assert abs((values**3).mean()) < 5 * math.sqrt(15 / count)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert abs((np.abs(values) > 1.959964).mean() - 0.05) < 5 * math.sqrt(0.0475 / count)
    for lag in (1, 2, 256):
        assert abs((values[:-lag] * values[lag:]).mean()) < 5 / math.sqrt(count)


def test_uniform_law_of_the_head():
    spec = specs(CONFIG)["head.weight"]
    bound = 64**-0.5
    values = initial_tensor(spec, 3)[:300].astype(np.float64)
    assert abs(values).max() <= bound
    assert abs(values).max() > 0.999 * bound
    assert abs(values.mean()) < 5 * bound / math.sqrt(3 * values.size)
    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_norms_are_one():
    assert all((initial_tensor(spec, 1) == 1).all() for spec in tensor_table(CONFIG) if "norm" in spec.component)


@pytest.mark.parametrize(
    ("setting", "name", "std"),
    [
        ({"embedding_init_std": 0.5}, "embedding.weight", 0.5),
        ({"head_init": "normal", "init_std": 0.03}, "head.weight", 0.03),
        ({"init_std": 0.03}, "layers.1.attention.qkv.weight", 0.03),
        ({"scaled_residual_init": True}, "layers.1.attention.qkv.weight", 0.02),
        ({"scaled_residual_init": True}, "layers.1.attention.proj.weight", 0.02 / math.sqrt(6)),
        ({"scaled_residual_init": True}, "layers.1.mlp.fc2.weight", 0.02 / math.sqrt(6)),
    ],
)
def test_settings_reach_their_tensor(setting: dict, name: str, std: float):
    values = initial_tensor(specs(dataclasses.replace(CONFIG, **setting))[name], 0)
    assert values[:300].std() == pytest.approx(std, rel=0.05)


def test_padding_rows_are_zero_and_all_others_are_not():
    for name in ("embedding.weight", "head.weight"):
        values = initial_tensor(specs(CONFIG)[name], 5)
        assert (values[300:] == 0).all()
        assert (values[:300] != 0).all(axis=1).all()


@settings(max_examples=25, deadline=None)
@given(
    one=st.integers(2, 700), other=st.integers(2, 700), hidden=st.sampled_from([2, 6, 30]), seed=st.integers(0, 2**63)
)
def test_rows_do_not_depend_on_the_vocabulary(one: int, other: int, hidden: int, seed: int):
    shape = dataclasses.replace(CONFIG, hidden_size=hidden, num_heads=1, num_query_groups=None)
    for name in ("embedding.weight", "head.weight"):
        first, second = (
            initial_tensor(specs(dataclasses.replace(shape, vocab_size=v))[name], seed) for v in (one, other)
        )
        common = min(one, other)
        assert (first[:common] == second[:common]).all()


def test_layers_do_not_depend_on_their_number():
    deep, shallow = specs(dataclasses.replace(CONFIG, num_layers=7)), specs(CONFIG)
    for name in shallow:
        assert (initial_tensor(deep[name], 9) == initial_tensor(shallow[name], 9)).all()


def test_a_tensor_longer_than_a_block_continues_its_stream(monkeypatch: pytest.MonkeyPatch):
    spec = specs(CONFIG)["layers.0.mlp.fc1.weight"]
    whole = initial_tensor(spec, 2)
    monkeypatch.setattr("megatron_nca.initialise._BLOCK", 98)
    assert (initial_tensor(spec, 2) == whole).all()


def test_an_odd_number_of_elements_is_a_prefix():
    spec = specs(CONFIG)["layers.0.mlp.fc1.weight"]
    odd = initial_tensor(dataclasses.replace(spec, shape=(3, 5)), 2)
    assert (odd.ravel() == initial_tensor(spec, 2).ravel()[:15]).all()


def test_seeds_and_names_give_other_streams():
    table = specs(CONFIG)
    qkv = [initial_tensor(table[f"layers.{layer}.attention.qkv.weight"], seed) for layer in range(3) for seed in (0, 1)]
    digests = {hashlib.sha256(values.tobytes()).hexdigest() for values in qkv}
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("embedding.weight", "d4c51a39c0dff70a"),
        ("layers.1.attention.qkv.weight", "c9f5ae45defd2023"),
        ("head.weight", "eeec8e2b8fae6005"),
    ],
)
def test_known_answers(name: str, digest: str):
    """Rounded to 20 bits, so that the last bit of a machine's log or cos does not matter."""
    values = np.round(initial_tensor(specs(CONFIG)[name], 7).astype(np.float64) * 2**16).astype("<i8")
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == digest


def test_first_numbers_by_hand():
    """The documented arithmetic, step by step in Python's own floats."""
    spec = specs(CONFIG)["layers.0.attention.proj.weight"]
    digest = hashlib.sha256(b"megatron_nca initial tensor\n11\nlayers.0.attention.proj.weight").digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")]
    raw = [int(word) for word in np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(4)]
    expected = []
    for first, second in (raw[:2], raw[2:]):
        radius, angle = math.sqrt(-2 * math.log(((first >> 11) + 1) / 2**53)), 2 * math.pi * (second >> 11) / 2**53
        expected += [0.02 * radius * math.cos(angle), 0.02 * radius * math.sin(angle)]
    assert initial_tensor(spec, 11).ravel()[:4] == pytest.approx(expected, rel=1e-6)
