"""Recipes: what is refused, what is shared, and that those in the repository load."""

import math
import re
from pathlib import Path

import pytest

from megatron_nca.config.dataset import BYTE_FALLBACK
from megatron_nca.config.recipe import Recipe, load_recipe, recipe_from_dict
from megatron_nca.config.schema import to_dict, to_yaml
from megatron_nca.data import tokenizer
from megatron_nca.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "launch" / "recipes").glob("*.yaml"))


def load(name: str) -> Recipe:
    return load_recipe(next(path for path in RECIPES if path.stem == name))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_of_the_repository_loads_and_survives_writing(path, tmp_path):
    recipe = load_recipe(path)
    copy = tmp_path / "recipe.yaml"
    copy.write_text(to_yaml(recipe))
    assert load_recipe(copy) == recipe
    assert recipe.arms[recipe.control].steps[-1].phase == "text"


def test_the_demo_splits_the_model_and_says_that_its_law_is_small():
    recipe = load("demo")
    assert any(phase.parallel.tensor >= 2 for phase in recipe.phases.values())
    assert "SMALL LAW" in recipe.description


@pytest.mark.parametrize("name", ["released_openwebtext", "paper_openwebtext"])
def test_the_papers_model_and_budget(name):
    recipe = load(name)
    nca, text = recipe.phases["nca"], recipe.phases["text"]
    assert nca.iterations * nca.global_batch_size * 1024 == 163_840_000
    assert text.global_batch_size * 1024 == 524_288
    assert 9.02e9 < text.iterations * 524_288 < 9.04e9
    assert recipe.model_config("nca").vocab_size == (64_000 if name.startswith("released") else 10_002)
    assert {phase.parallel.world_size for phase in recipe.phases.values()} == {8}


def test_the_released_schedule_stops_at_the_end_of_its_warm_up():
    optimizer = load("released_openwebtext").phases["nca"].optimizer
    assert (optimizer.warmup_iterations, optimizer.decay_iterations) == (5000, 50_000)
    assert load("released_openwebtext").phases["text"].optimizer.clip_grad == 1 / 32
    assert load("paper_openwebtext").phases["text"].optimizer.clip_grad == 1.0


def test_the_pieces_of_byte_fallback_are_those_of_the_tokenizer():
    assert BYTE_FALLBACK == tokenizer.BYTE_PIECES + tokenizer.SPECIAL_PIECES


def change(values: dict, dotted: str, value: object) -> dict:
    node = values
    *parents, leaf = dotted.split(".")
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node[parent]
    node[leaf] = value
    return values


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("control", "scrach", "Did you mean 'scratch'"),
        ("seeds", [], "at least one"),
        ("seeds", [0, 0], "distinct"),
        ("seeds", [0, -1], r"seeds = \[0, -1\]: must be at least one, distinct, in 0..2\^32-1. Cure: "),
        ("seeds", [2**32], r"in 0..2\^32-1"),
        ("datasets.text", {"source": "indexed", "vocab_size": 0, "train_prefix": "a", "validation_prefix": "b"},
         "datasets.text.vocab_size = 0: must be at least 1"),
        ("datasets.text.vocab_size", 258, "datasets.text.vocab_size = 258: byte fallback alone takes 258 pieces"),
        ("datasets.automata.seed", -3, r"datasets.automata.seed = -3: must lie in 0..2\^64-1. Cure: "),
        ("datasets.automata.validation_seed", 2**64, "datasets.automata.validation_seed = 18446744073709551616: must"),
        ("phases.text.dataset", "txt", r"phases\.text\.dataset = 'txt': not defined.*'text'"),
        ("phases.text.parallel", {"tensor": 3}, "does not divide"),
        ("phases.text.global_batch_size", 3, "not a multiple of micro_batch_size"),
        ("phases.text.iterations", 0, "at least 1"),
        ("phases.nca.validation_sequences", 6,
         "phases.nca.validation_sequences = 6: 'automata' holds only 4 of them. Cure: "),
        ("phases.text.optimizer", {"lr": 0}, "must be positive"),
        ("phases.text.optimizer", {"lr": 1e-3, "min_lr": 1e-2}, "exceeds lr"),
        ("phases.text.optimizer", {"lr": math.inf}, "phases.text.optimizer.lr = inf: is not a finite number. Cure: "),
        ("phases.text.optimizer", {"lr": 1e-3, "clip_grad": math.nan}, "clip_grad = nan: is not a finite number"),
        ("phases.text.optimizer", {"lr": 1e-3, "weight_decay": "nan"}, "weight_decay = nan: is not a finite number"),
        ("phases.text.optimizer", {"lr": 1e-3, "beta1": 1.0}, r"optimizer.beta1 = 1.0: must lie in \[0, 1\). Cure: "),
        ("phases.text.optimizer", {"lr": 1e-3, "beta2": -0.1}, r"optimizer.beta2 = -0.1: must lie in \[0, 1\)"),
        ("phases.text.optimizer", {"lr": 1e-3, "epsilon": 0}, "optimizer.epsilon = 0.0: must be positive"),
        ("phases.text.optimizer", {"lr": 1e-3, "warmup_iterations": 6}, "as long as the whole schedule"),
        ("phases.text.optimizer", {"lr": 1e-3, "decay_iterations": 5}, "below iterations"),
        ("phases.text.precision", "fp8", "not one of"),
        ("arms.nca.steps", [], "has no steps"),
        ("arms.nca.steps", [{"phase": "nca"}, {"phase": "nca"}], "names a phase twice"),
        ("arms.nca.steps", [{"phase": "nac"}], "Did you mean 'nca'"),
        ("arms.nca.steps", [{"phase": "nca", "start": {"carry": ["all"]}}], "nothing precedes it"),
        ("datasets.automata.law.sequence_length", 128, "differs from model.sequence_length"),
        ("datasets.automata.law.num_stats", 3, "Did you mean 'num_states'"),
        ("datasets.automata.law", {"preset": "released", "num_stats": 2}, "Did you mean 'num_states'"),
        ("datasets.automata.sequences", None, "needs 'sequences'"),
        ("datasets.automata.seed", 1_000_003, "equals seed"),
        ("datasets.text.held_out_share", 1.0, "between 0 and 1"),
        ("datasets.text.source", "indexed", "needs 'train_prefix'"),
    ],
)
def test_impossible_recipes(recipe_values, dotted, value, message):
    with pytest.raises(ConfigError, match=message):
        recipe_from_dict(change(recipe_values, dotted, value))


@pytest.mark.parametrize(
    ("dotted", "value", "setting"),
    [
        ("phases.text.iterations", 0, "phases.text.iterations = 0"),
        ("phases.text.parallel", {"tensor": 3}, "phases.text.parallel.tensor = 3"),
        ("phases.text.optimizer", {"lr": 0}, "phases.text.optimizer.lr = 0"),
        ("datasets.text.held_out_share", 2, "datasets.text.held_out_share = 2.0"),
        ("datasets.automata.law.num_states", 99, "datasets.automata.law.num_states = 99"),
        ("model.hidden_size", 0, "model.hidden_size = 0"),
    ],
)
def test_a_setting_is_named_with_its_place(recipe_values, dotted, value, setting):
    with pytest.raises(ConfigError, match=rf"^{re.escape(setting)}"):
        recipe_from_dict(change(recipe_values, dotted, value))


@pytest.mark.parametrize(("law", "message"), [
    ({"preset": "relased"}, "datasets.automata.law.preset = 'relased': unknown. Did you mean 'released'?"),
    ({"preset": ["released"]}, "datasets.automata.law.preset = ['released']: unknown."),
    ({"domain": "cod"}, "datasets.automata.law.domain = 'cod': unknown. Did you mean 'code'?"),
])
def test_a_preset_that_is_unknown_is_named_with_its_dataset(recipe_values, law, message):
    recipe_values["datasets"]["automata"]["law"] = law
    with pytest.raises(ConfigError) as error:
        recipe_from_dict(recipe_values)
    assert str(error.value).startswith(message)


def test_a_preset_takes_changes_on_top(recipe_values):
    law = {"preset": "released", "sequence_length": 64, "height": 8, "width": 8, "num_rules": 5}
    recipe = recipe_from_dict(change(recipe_values, "datasets.automata.law", law))
    built = recipe.datasets["automata"].law
    assert (built.num_states, built.allocated_vocab_size, built.height, built.num_rules) == (10, 64_000, 8, 5)


def test_errors_name_the_file_and_overrides_reach_any_depth(tmp_path, recipe_values):
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe_from_dict(recipe_values)))
    assert load_recipe(path, ["phases.nca.optimizer.lr=2e-3"]).phases["nca"].optimizer.lr == 2e-3
    with pytest.raises(ConfigError, match=rf"{path}: phases\.nca\.optimizer\.lrr"):
        load_recipe(path, ["phases.nca.optimizer.lrr=1"])


@pytest.mark.parametrize("text", ["", "[1]", "just words"])
def test_a_file_that_is_no_recipe_is_one_message_with_overrides_too(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    for overrides in ([], ["seeds=[1]"], ["a.b=1"]):
        with pytest.raises(ConfigError, match=rf"^{path}: .*mapping"):
            load_recipe(path, overrides)


def test_a_recipe_that_is_not_there_is_named_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_recipe(tmp_path / "none.yaml")
    cure = "Cure: check the path and your rights."
    assert str(error.value) == f"{tmp_path}/none.yaml: cannot be read (No such file or directory). {cure}"


def test_arms_share_the_chain_they_have_in_common(recipe_values):
    recipe = recipe_from_dict(recipe_values)
    assert recipe.home_arm("attention", 0) == "nca"
    assert recipe.home_arm("attention", 1) == "attention"
    assert recipe.home_arm("scratch", 0) == "scratch"


def test_the_vocabulary_follows_the_dataset(recipe_values):
    recipe = recipe_from_dict(recipe_values)
    assert (recipe.model_config("nca").vocab_size, recipe.model_config("text").vocab_size) == (18, 300)
    assert to_dict(recipe)["model"]["hidden_size"] == recipe.model_config("nca").hidden_size
