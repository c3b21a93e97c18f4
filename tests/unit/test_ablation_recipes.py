"""The ready ablations: their arms name what they say, and the whole plan is walked dry."""

import argparse
import re
from pathlib import Path

import pytest

from megatron_nca import plan
from megatron_nca.__main__ import main
from megatron_nca.cli.convert_transfer import add_action, start_of
from megatron_nca.config.components import component_of
from megatron_nca.config.recipe import load_recipe, recipe_from_dict
from megatron_nca.errors import ConfigError
from megatron_nca.run_dir import RunFolder

RECIPES = Path(__file__).parents[2] / "launch" / "recipes"
NAMES = ("demo_ablations", "released_ablations")
LAYERS = ("attention", "mlp", "norms")
CARRIED = {
    "scratch": (), "nca": (*LAYERS, "final_norm"), "attention": ("attention",), "mlp": ("mlp",),
    "norms": ("norms", "final_norm"), "embeddings": ("embedding", "head"),
    "nca_mean_embedding": (*LAYERS, "final_norm"),
    "without_attention": ("mlp", "norms", "final_norm"), "without_mlp": ("attention", "norms", "final_norm"),
    "without_norms": ("attention", "mlp"), "shuffled_layers": ("final_norm",), "permuted": ("final_norm",),
    "lower_half": (*LAYERS, "final_norm"), "upper_half": (*LAYERS, "final_norm"), "two_stage": (*LAYERS, "final_norm"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_each_arm_carries_what_it_says(name):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert set(recipe.arms) == set(CARRIED)
    depth = recipe.model.num_layers
    for arm, chain in recipe.arms.items():
        resolved = chain.steps[-1].start.resolve(depth, depth, False)
        assert {component_of(part) for part, _ in resolved.carried} == set(CARRIED[arm]), arm
        layers = {layer for _, layer in resolved.carried if layer is not None}
        halves = {"lower_half": set(range(depth // 2)), "upper_half": set(range(depth // 2, depth))}
        assert layers in (set(), halves.get(arm, set(range(depth))))
        laws = {"shuffled_layers": {"shuffled_layers"}, "permuted": {"permuted"}, "nca_mean_embedding": {"mean"}}
        assert set(resolved.laws.values()) == laws.get(arm, set())
    two = recipe.phases["text_two_stage"]
    frozen = two.freeze.kinds(depth, False)
    assert {kind for kind, _ in frozen} == {f"{kind}.weight" for kind in ("attention.qkv", "attention.proj", "mlp.fc1",
                                                                         "mlp.fc2")}  # fmt: skip
    assert two.iterations == recipe.phases["text"].iterations > two.freeze.iterations


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_walked_dry(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "check", lambda recipe: [])  # OpenWebText is not here
    assert main(["run", str(RECIPES / f"{name}.yaml"), "--run-dir", str(tmp_path / "run"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    transfers = re.findall(r"^    .* convert (transfer .*)$", said, re.MULTILINE)
    assert len(transfers) == len(CARRIED) + 1, "a start for each arm, and one for the automata"
    assert len(re.findall(r"nca nca seed0: train", said)) == 1, "the automata phase is shared"
    assert not (tmp_path / "run").exists()


def test_all_words_of_a_start_reach_the_command_line(recipe_values):
    start = {"carry": ["all", "embedding"], "reinit": ["q@0"], "layers": [0, 3], "layer_map": "spread",
             "laws": {"head": "normal:0.01", "q@0": "permuted"}, "shared_rows": True}  # fmt: skip
    recipe_values["phases"]["text"]["num_layers"] = 4
    del recipe_values["arms"]["attention"]
    recipe_values["arms"]["nca"]["steps"][1]["start"] = start
    recipe = recipe_from_dict(recipe_values)
    assert (recipe.model_config("nca").num_layers, recipe.model_config("text").num_layers) == (2, 4)
    step = next(s for s in plan.steps(recipe, RunFolder(Path("r"))) if s.name == "text nca seed0: convert transfer")
    parser = argparse.ArgumentParser()
    add_action(parser.add_subparsers())
    words = list(step.command[step.command.index("transfer") :])
    assert start_of(parser.parse_args(words)) == recipe.arms["nca"].steps[1].start


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"carry": ["attentoin"]}, "carry attentoin: is no component. Did you mean 'attention'"),
        ({"carry": ["mlp@0:3"]}, r"arms.nca, phase text: start.carry mlp@0:3 = '0:3': is no range within 0:2"),
        ({"carry": ["all"], "laws": {"mlp": "permuted"}}, "laws.mlp = 'permuted': all of it is carried"),
        ({"laws": {"mlp": "permute"}}, "is no law. Did you mean 'permuted'"),
        ({"laws": {"mlp": "mean"}}, "has no rows of a vocabulary"),
        ({"laws": {"final_norm": "shuffled_layers"}}, "lies in no layer"),
        ({"laws": {"mlp": "own", "gate": "own"}}, "gate has the law own already"),
        ({"carry": ["all"], "layer_map": "0,2"}, "names layer 2 of 2, .* Cure: name layers below 2, or new"),
        ({"carry": ["all"], "layer_map": "0"}, "has 1 entries for 2 layers. Cure: give an entry"),
        ({"carry": ["all"], "layer_map": "frist"}, "is no map of layers"),
        ({"carry": ["all"], "shared_rows": True}, "neither embedding nor head is carried"),
    ],
)
def test_impossible_starts(recipe_values, change, message):
    recipe_values["arms"]["nca"]["steps"][1]["start"] = change
    with pytest.raises(ConfigError, match=message):
        recipe_from_dict(recipe_values)


@pytest.mark.parametrize(
    ("freeze", "parallel", "message"),
    [
        ({"components": ["q", "v", "o"]}, {}, "q and k and v are one tensor in training, and k is not named"),
        ({"components": ["up@1"]}, {}, "gate and up are one tensor"),
        ({"components": ["all", "embedding", "head"]}, {}, "nothing would be trained"),
        ({"components": ["none"]}, {}, "nothing is named"),
        ({"components": ["mlp@2"]}, {}, r"phases.text.freeze.components mlp@2 = '2': is no range within 0:2"),
        ({"components": ["mlp"], "iterations": 7}, {}, "is more than the phase's 6"),
        ({"components": ["mlp"], "iterations": 0}, {}, "must be at least 1"),
        ({"components": ["mlp"]}, {"engine": "deepspeed"}, "set parallel.engine: megatron"),
    ],
)
def test_impossible_freezing(recipe_values, freeze, parallel, message):
    recipe_values["phases"]["text"] |= {"freeze": freeze, "parallel": parallel}
    with pytest.raises(ConfigError, match=message):
        recipe_from_dict(recipe_values)
