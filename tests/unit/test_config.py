"""Settings: types, unknown keys, overrides, laws, shapes and layouts."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_nca.config import law as laws
from megatron_nca.config.law import NcaLaw, preset
from megatron_nca.config.model import ModelConfig, ModelShape
from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.config.run_config import RunConfig, load_run_config
from megatron_nca.config.schema import apply_overrides, build, read_yaml, to_dict, to_yaml
from megatron_nca.errors import CheckpointError, ConfigError

SHAPE = {"num_layers": 4, "hidden_size": 64, "num_heads": 4, "ffn_hidden_size": 128}


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    counts: tuple[int, ...] = ()
    pair: tuple[int, int] | None = None
    on: bool = False


def test_build_reads_nested_mappings_and_exponents_that_yaml_takes_for_text():
    outer = build(Outer, {"inner": {"rate": "1e-4"}, "counts": [1, 2], "pair": [3, 4]})
    assert outer == Outer(inner=Inner(rate=1e-4), counts=(1, 2), pair=(3, 4))
    assert build(Outer, to_dict(outer)) == outer


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"rate": 1.0, "lable": "x"}}, r"inner\.lable: unknown setting\. Did you mean 'label'\? Cure: "),
        ({"inner": {"rate": 1.0}, "label": "x"}, r"label: unknown setting\. Did you mean 'inner\.label'"),
        ({}, r"inner: this setting is required and was not given\. Cure: give a mapping, such as {rate: 1e-4}\."),
        ({"inner": {}}, r"inner\.rate: this setting is required and was not given\. Cure: give a number\."),
        ({"inner": {"rate": "fast"}}, r"inner\.rate = 'fast': expected float, got str\. Cure: give a number\."),
        ({"inner": {"rate": True}}, r"expected float, got bool"),
        ({"inner": {"rate": 1.0}, "counts": [1, 2.5]}, r"counts\[1\] = 2\.5: expected int"),
        ({"inner": {"rate": 1.0}, "counts": 3}, r"expected a list\. Cure: give a list, such as \[8\]\."),
        ({"inner": {"rate": 1.0}, "pair": [1]}, r"expected 2 values, got 1\. Cure: give a list, such as \[8, 8\]\."),
        ({"inner": {"rate": 1.0}, "on": 1}, "expected bool, got int"),
        ({"inner": 3}, r"inner: expected a mapping"),
        (None, "expected a mapping"),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Outer, values)


def test_overrides_change_a_copy():
    values = {"a": {"b": 1}}
    assert apply_overrides(values, ["a.b=2", "a.c=[1, x]", "d=1e-3"]) == {"a": {"b": 2, "c": [1, "x"]}, "d": "1e-3"}
    assert values == {"a": {"b": 1}}


def test_what_a_written_recipe_leaves_out_can_be_set():
    assert apply_overrides({"a": {"b": None}}, ["a.b.c=1"]) == {"a": {"b": {"c": 1}}}


@pytest.mark.parametrize(
    ("override", "message"), [("a.b", "KEY=VALUE"), ("a.b.c=1", "not a mapping"), ("a=[1", "not valid YAML"),
                            ("a={x: 1, x: 2}", "not valid YAML")]
)
def test_bad_overrides(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"a": {"b": 1}}, [override])


def test_yaml_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(path)
    path.write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(path)


def test_a_key_that_stands_twice_is_refused_and_one_that_is_merged_in_is_not(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}
    path.write_text("arms: {scratch: 1, nca: 2}\nseeds: [0]\narms: {attention: 3}\n")
    with pytest.raises(ConfigError, match=r"the key 'arms' is given twice \(line 3, column 1\)\. Cure"):
        read_yaml(path)


def test_the_released_law():
    law = preset("released")
    facts = (law.frame_tokens, law.num_frames, law.document_tokens, law.num_tokens, law.first_scored_token)
    assert facts == (38, 27, 1026, 10_002, 38)
    assert (law.vocab_size, law.start_token, law.end_token) == (64_000, 10_000, 10_001)
    # Targets 1..1024 of a document; the first scored one is token 38.
    assert law.sequence_length - (law.first_scored_token - 1) == 987


def test_the_papers_law_differs_where_the_ledger_says():
    released, paper = to_dict(preset("released")), to_dict(preset("paper"))
    assert {key for key in released if released[key] != paper[key]} == {
        "temperature",  # D03
        "initial_state",  # D03
        "allocated_vocab_size",  # D04
        "scored_positions",  # D06
        "num_rules",  # D09
        "channel_padding",  # D10
    }
    with pytest.raises(ConfigError, match="Did you mean 'released'"):
        preset("relesed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_states": 1}, r"law\.num_states = 1"),
        ({"height": 13}, "not a multiple of patch"),
        ({"num_states": 16, "patch": 4, "height": 12}, r"exceed 2\^20"),
        ({"sequence_length": 37}, "fewer than two frames"),
        ({"allocated_vocab_size": 10_001}, "below the 10002 tokens"),
        ({"band": [0.5, 0.5]}, "not an interval"),
        ({"temperature": 0.0}, "must be positive"),
        ({"num_rules": 0}, r"law\.num_rules = 0"),
    ],
)
def test_impossible_laws(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        build(NcaLaw, changes)
    assert "Cure: " in str(error.value)


@given(st.integers(2, 6), st.integers(1, 2), st.integers(2, 6), st.integers(60, 400))
def test_a_document_covers_the_sequence_and_its_target(num_states, patch, side, sequence_length):
    law = NcaLaw(
        num_states=num_states, patch=patch, height=side * patch, width=side * patch, sequence_length=sequence_length
    )
    assert law.document_tokens % law.frame_tokens == 0
    assert sequence_length + 1 <= law.document_tokens < sequence_length + 1 + law.frame_tokens
    assert law.num_tokens == num_states ** (patch * patch) + 2


def test_a_changed_law_is_checked_anew():
    assert laws.replace(NcaLaw(), num_states=2).num_tokens == 18
    with pytest.raises(ConfigError):
        laws.replace(NcaLaw(), num_states=17)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "at least 1"),
        ({"num_heads": 5}, "heads of an even size"),
        ({"hidden_size": 12}, "heads of an even size"),
        ({"num_query_groups": 3}, "does not divide num_heads"),
        ({"embedding_init_std": 0.0}, "must be positive"),
    ],
)
def test_impossible_shapes(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(ModelShape, {**SHAPE, **changes})


@pytest.mark.parametrize(("vocabulary", "padded"), [(2, 128), (128, 128), (129, 256), (10_002, 10_112)])
def test_the_vocabulary_is_padded_to_128_whatever_the_layout(vocabulary, padded):
    assert ModelShape(**SHAPE).with_vocabulary(vocabulary).padded_vocab_size == padded


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"tensor": 3}, "num_heads = 4"),
        ({"tensor": 4}, "num_query_groups = 2"),
        ({"pipeline": 3}, "num_layers = 4"),
        ({"tensor": 2, "sequence_parallel": True}, "sequence_length = 1023"),
    ],
)
def test_impossible_layouts(layout, message):
    model = ModelConfig(**SHAPE, num_query_groups=2, vocab_size=300, sequence_length=1023)
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(**layout).check_model(model)


def test_layouts_that_make_no_sense_alone():
    with pytest.raises(ConfigError, match="needs tensor > 1"):
        ParallelConfig(sequence_parallel=True)
    with pytest.raises(ConfigError, match="at least 1"):
        ParallelConfig(data=0)
    assert ParallelConfig(tensor=2, pipeline=3, data=4).world_size == 24


def test_run_config_round_trip_and_what_is_no_checkpoint(tmp_path):
    config = RunConfig(model=ModelConfig(**SHAPE, vocab_size=300), iteration=7, phase="text", seed=1)
    (tmp_path / "run_config.yaml").write_text(to_yaml(config))
    assert load_run_config(tmp_path) == config
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_run_config(tmp_path / "none")
    (tmp_path / "run_config.yaml").write_text("model: {\n")
    with pytest.raises(CheckpointError, match=r"^(?!.*yaml.*yaml).*not valid YAML.* Cure: "):
        load_run_config(tmp_path)
    (tmp_path / "run_config.yaml").write_text("model: {}\n")
    with pytest.raises(CheckpointError, match="required"):
        load_run_config(tmp_path)
