"""Controls in a recipe and on the command line: what is asked of them, their place in the plan, one message each."""

import re
from pathlib import Path

import pytest
import yaml

from megatron_nca import plan
from megatron_nca.__main__ import main
from megatron_nca.config.recipe import load_recipe, recipe_from_dict
from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.data.manifest import Manifest
from megatron_nca.errors import ConfigError
from megatron_nca.run_dir import RunFolder
from megatron_nca.train import reading

DEMO = Path(__file__).parents[2] / "launch" / "recipes" / "demo_controls.yaml"
BRACKETS = {"source": "dyck", "sequences": 6, "validation_sequences": 4, "dyck": {"symbols": 5}}


@pytest.fixture
def values(recipe_values) -> dict:
    """The tiny recipe with every control; those that are made of others stand before them."""
    datasets = {
        "shuffled": {"source": "shuffled", "base": "automata"},
        "iid": {"source": "iid", "base": "automata", "sequences": 10},
        "mixed": {"source": "shuffled", "base": "copy", "validation_sequences": 2},
        "copy": {"source": "corpus_copy", "base": "text", "tokens": 65, "validation_sequences": 3},
    }
    recipe_values["datasets"] = {
        **datasets,
        **recipe_values["datasets"],
        "brackets": BRACKETS,
        "crossed": {**BRACKETS, "source": "k_shuffle_dyck"},
    }
    for name in ("shuffled", "iid", "copy", "brackets"):
        recipe_values["phases"][name] = {**recipe_values["phases"]["nca"], "dataset": name, "validation_sequences": 2}
        steps = [{"phase": name}, {"phase": "text", "start": {"carry": ["all"]}}]
        recipe_values["arms"][name] = {"steps": steps}
    return recipe_values


def test_vocabulary_sequences_and_law_come_from_the_base(values):
    recipe = recipe_from_dict(values)
    sizes = {name: recipe.vocab_size(name) for name in recipe.datasets}
    assert sizes == {"shuffled": 18, "iid": 18, "mixed": 300, "copy": 300, "automata": 18, "text": 300,
                     "brackets": 10, "crossed": 10}
    counts = {name: [recipe.part_sequences(name, part) for part in plan.PARTS] for name in recipe.datasets}
    assert counts == {"shuffled": [8, 4], "iid": [10, 4], "mixed": [2, 2], "copy": [2, 3], "automata": [8, 4],
                      "text": [None, None], "brackets": [6, 4], "crossed": [6, 4]}
    assert recipe.law_of("iid") == recipe.datasets["automata"].law
    assert recipe.law_of("mixed") is recipe.law_of("brackets") is None


def test_bases_are_made_before_what_is_made_of_them(values):
    names = [step.name for step in plan.steps(recipe_from_dict(values), RunFolder(Path("r")))]
    made = [name.split()[1].rstrip(":") for name in names if name.startswith("data ")]
    order = list(dict.fromkeys(made))
    assert order == ["automata", "shuffled", "iid", "text", "copy", "mixed", "brackets", "crossed"]
    assert len([name for name in names if name.endswith("generate")]) == 2 * 7
    data, _ = plan.estimate_bytes(recipe_from_dict(values))
    assert data == 2 * ((12 + 12 + 14) * 72 + (4 + 5 + 10 + 10) * 65)


def test_a_recipe_with_controls_is_walked_dry_and_its_data_made(values, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    run = RunFolder(tmp_path / "run")
    assert main(["run", str(recipe), "--run-dir", str(run.path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    commands = re.findall(r"^    .* -m megatron_nca (generate .*)$", said, re.MULTILINE)
    assert len(commands) == 14 and "shuffled shuffled seed0: train" in said
    plan.freeze(plan.resolve_paths(load_recipe(recipe)), run)
    for part in plan.PARTS:  # in place of the corpus's own programs
        with IndexedWriter(run.dataset("text").path / f"{part}_text_document", 300) as writer:
            writer.add_document(list(range(300)))
            writer.finish({"kind": "corpus", "vocab_size": 300, "origin": {}})
    for command in commands:
        assert main(command.split()) == 0
    recipe = load_recipe(run.recipe)
    for name, dataset in recipe.datasets.items():
        for part in plan.PARTS if dataset.is_generated else ():
            manifest = Manifest.load(run.dataset(name).prefix(part, dataset))
            assert (manifest.kind, manifest.vocab_size) == (dataset.source, recipe.vocab_size(name))
            assert manifest.documents == recipe.part_sequences(name, part)
            assert manifest.origin["seed"] == (0 if part == "train" else 1_000_003)
    bases = {name: [Manifest.load(run.dataset(name).path / part).origin["base"]["bin_sha256"] for part in plan.PARTS]
             for name in ("shuffled", "iid")}
    assert bases["shuffled"][0] == bases["iid"][0] == bases["iid"][1] != bases["shuffled"][1]
    assert all(step.whole for step in plan.steps(recipe, run) if step.name.endswith("generate"))
    assert not any(reading.differences(recipe, run, name) for name in recipe.datasets)
    changed = ["iid.sequences=7", "automata.seed=5", "automata.law.num_states=5", "automata.validation_sequences=9"]
    other = load_recipe(run.recipe, [f"datasets.{change}" for change in changed])
    said = [line for name in recipe.datasets for line in reading.differences(other, run, name)]
    assert {re.sub(r" = .*", "", line) for line in said} >= {f"datasets.{change.split('=')[0]}" for change in changed}
    prefix = run.dataset("iid").path / "train"
    assert f"datasets.iid.sequences = 7: {prefix}, which is read, has 10. Cure: leave the setting" in "".join(said)


def test_the_demo_with_controls_is_the_demo_and_two_arms():
    demo, controls = load_recipe(DEMO.with_name("demo.yaml")), load_recipe(DEMO)
    assert {name: controls.arms[name] for name in demo.arms} == demo.arms
    assert {name: controls.datasets[name] for name in demo.datasets} == demo.datasets
    assert set(controls.arms) - set(demo.arms) == {"shuffled", "iid"}
    for name in ("shuffled", "iid"):
        phase = controls.phases[name]
        assert controls.datasets[phase.dataset].source == name
        assert phase.optimizer == controls.phases["nca"].optimizer and phase.iterations == 448


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("shuffled", {"base": None}, "needs 'base'"),
        ("shuffled", {"base": "automat"}, "Did you mean 'automata'"),
        ("shuffled", {"base": "text"}, r"shuffled.base = 'text'.*source is corpus.*such as a corpus_copy of it"),
        ("shuffled", {"base": "iid"}, "of which shuffled makes nothing"),
        ("shuffled", {"base": "shuffled"}, "of which shuffled makes nothing"),
        ("shuffled", {"permute": "frames"}, "not one of 'tokens', 'patches'"),
        ("shuffled", {"sequences": 9}, "datasets.shuffled.sequences = 9: 'automata' holds only 8"),
        ("shuffled", {"seed": 1_000_003}, "equals seed"),
        ("shuffled", {"law": {"num_states": 2}}, "law = '.given.': is no setting of the source 'shuffled'"),
        ("iid", {"sequences": 0}, "sequences = 0: must be at least 1"),
        ("automata", {"base": "iid"}, "base = 'iid': is no setting of the source 'nca'"),
        ("brackets", {"dyck": {"symbol": 3}}, "datasets.brackets.dyck.symbol.*Did you mean 'symbols'"),
        ("brackets", {"sequences": None}, "needs 'sequences'"),
        ("copy", {"base": "automata"}, "source is nca, of which corpus_copy makes nothing"),
        ("copy", {"sequences": 5}, "needs either 'tokens' or 'sequences'"),
    ],
)
def test_impossible_controls(values, name, changes, message):
    values["datasets"][name] = {**values["datasets"][name], **changes}
    with pytest.raises(ConfigError, match=message):
        recipe_from_dict(values)


def test_domain_and_calibration_in_a_recipe(values):
    law = values["datasets"]["automata"]["law"]
    changed = {**law, "domain": "code", "band_scale": "calibrated"}
    del changed["band"]
    values["datasets"]["automata"]["law"] = changed
    built = recipe_from_dict(values).datasets["automata"].law
    assert (built.band, built.band_scale) == ((0.3, 0.4), "calibrated")
    values["datasets"]["automata"]["law"] = {**changed, "preset": "paper", "num_states": 2}
    assert recipe_from_dict(values).datasets["automata"].law.band == (0.3, 0.4)
    for wrong, message in (({"domain": "cod"}, "Did you mean 'code'"), ({"band": [0.1, 0.2]}, "law.domain = 'code'")):
        values["datasets"]["automata"]["law"] = {**changed, **wrong}
        with pytest.raises(ConfigError, match=message):
            recipe_from_dict(values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "shuffled"], "--base: is required"),
        (["--source", "shuffled", "--base", "none"], "none.json: is missing"),
        (["--source", "iid", "--base", "none", "--symbols", "3"], "--symbols: belongs to the source dyck"),
        (["--source", "dyck"], "--sequences: is required"),
        (["--source", "dyck", "--sequences", "3", "--num-states", "2"], "--num-states: belongs to the source nca"),
        (["--source", "dyck", "--sequences", "0"], "sequences = 0"),
        (["--source", "dyck", "--sequences", "1", "--threads", "0"], "threads = 0"),
        (["--source", "dyck", "--sequences", "1", "--seed", "-1"], "seed = -1"),
        (["--source", "dyck", "--sequences", "3", "--p-open", "2"], "dyck.p_open = 2.0"),
        (["--source", "k_shuffle_dyck", "--sequences", "3", "--sequence-length", "0"], "sequence_length = 0"),
        (["--sequences", "3", "--base", "x"], "--base: belongs to the source shuffled, iid, corpus_copy, not to nca"),
        (["--source", "corpus_copy", "--base", "x", "--tokens", "9", "--sequences", "9"], "--tokens = 9: --sequences"),
        (["--source", "corpus_copy", "--base", "x", "--tokens", "0"], "--tokens = 0: must be at least 1"),
    ],
)
def test_one_message_for_bad_options(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *words, "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Cure:" in said
    assert not list(tmp_path.iterdir())


def test_dry_run_of_a_control_writes_nothing(tmp_path, capsys):
    words = ["--source", "dyck", "--sequences", "1000", "--output", str(tmp_path / "deep" / "dyck")]
    assert main(["generate", *words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "symbols: 64" in said and "a document has 1,025 tokens, 1,024 of them scored" in said and "2.1 MB" in said
    assert not list(tmp_path.iterdir())
