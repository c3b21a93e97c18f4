"""`megatron-nca generate` refuses with one message and leaves nothing half-made."""

import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_nca.__main__ import main
from megatron_nca.cli.generate import EXAMPLES
from megatron_nca.config.law import NcaLaw
from megatron_nca.config.recipe import load_recipe
from megatron_nca.data.manifest import Manifest
from megatron_nca.errors import DataError
from megatron_nca.sources import nca
from megatron_nca.sources.nca import NcaSource, generate

SMALL = [
    "--num-states",
    "2",
    "--grid",
    "8",
    "8",
    "--sequence-length",
    "64",
    "--band",
    "0.1",
    "0.3",
    "--num-rules",
    "none",
]


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    """The one message of a command that ends with 2."""
    assert main(["generate", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("megatron-nca generate: ")
    return captured.err


def test_a_band_out_of_reach(tmp_path, capsys):
    said = refused(capsys, "--num-states", 2, "--sequences", 10, "--output", tmp_path / "nca")
    assert "law.band = [0.5, 1.0]" in said and "num_states = 2" in said and "Cure:" in said
    assert not list(tmp_path.iterdir())


def test_a_band_that_is_hopeless_but_not_impossible(tmp_path, capsys):
    options = ["--grid", 4, 4, "--sequence-length", 12, "--score-frames", 2, "--burn-in-steps", 0]
    said = refused(capsys, *options, "--band", 0.98, 1.02, "--sequences", 9, "--output", tmp_path / "nca")
    assert "of the first" in said and "out of reach" in said
    assert not list(tmp_path.iterdir())


def test_other_settings_are_not_overwritten(tmp_path, capsys):
    options = [*SMALL, "--sequences", 20, "--output", tmp_path / "nca"]
    assert main(["generate", *map(str, options)]) == 0
    before = (tmp_path / "nca.bin").read_bytes()
    said = refused(capsys, *options, "--seed", 5, "--temperature", 0.001)
    assert "seed = 0 (asked: 5)" in said and "law.temperature = 0.0001 (asked: 0.001)" in said
    assert (tmp_path / "nca.bin").read_bytes() == before
    (tmp_path / "nca.json").unlink()
    assert "files without a manifest" in refused(capsys, *options)
    assert (tmp_path / "nca.bin").read_bytes() == before


def test_a_disk_too_small_is_seen_before(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 0, 10**6))
    said = refused(capsys, "--sequences", 1000, "--output", tmp_path / "nca")
    assert "sequences = 1000: needs" in said and "free" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [244, 300])  # as it is, and as it is written aside
def test_a_name_that_is_too_long(tmp_path, capsys, length):
    assert "its name is " in refused(capsys, *SMALL, "--sequences", 4, "--output", tmp_path / ("x" * length))
    words = ["--carry", "none", "--recipe", "launch/recipes/demo.yaml", "--phase", "text", "--seed", "1"]
    assert main(["convert", "transfer", "--to", str(tmp_path / ("x" * length)), *words]) == 2
    assert "its name is too long. Cure: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_write_that_fails_in_the_middle_leaves_nothing(tmp_path):
    command = [
        sys.executable,
        "-m",
        "megatron_nca",
        "generate",
        "--sequences",
        "2000",
        "--output",
        str(tmp_path / "nca"),
    ]
    result = subprocess.run(command, preexec_fn=limit_files, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "cannot be written" in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupt(sequences: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(NcaSource(NcaLaw(), 100, 0), tmp_path / "nca", interrupt)
    assert not list(tmp_path.iterdir())


def test_rare_rules_end_the_search(tmp_path, monkeypatch):
    """One rule in 1,500 passes: a few can be had, but not as many as would need 10^8 candidates."""
    monkeypatch.setattr(nca, "PATIENCE", 5000)
    law = NcaLaw(band=(0.66, 0.67))
    assert generate(NcaSource(law, 2, 0, threads=2), tmp_path / "few").documents == 2
    with pytest.raises(DataError, match=r"law.band = \[0.66, 0.67\].*out of reach"):
        generate(NcaSource(law, 10_000_000, 0, threads=2), tmp_path / "many")
    assert not (tmp_path / "many.bin").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--sequences", 3], "--output: is required"),
        (["--output", "x"], "--sequences: is required"),
        (["--sequences", 0, "--output", "x"], "sequences = 0"),
        (["--sequences", 1, "--output", "x", "--threads", 0], "threads = 0"),
        (["--sequences", 1, "--output", "x", "--seed", -1], "seed = -1"),
        (["--sequences", 1, "--output", "x", "--preset", "relased"], "Did you mean 'released'"),
        (["--sequences", 1, "--output", "x", "--grid", 12, 13], "law.width = 13"),
        (["--sequences", 1, "--output", "x", "--part", "train"], "belongs to --recipe"),
    ],
)
def test_options(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["", ".", "..", "made", "made/", "new/", "/"])
def test_an_output_that_is_a_folder(tmp_path, capsys, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    said = refused(capsys, *SMALL, "--sequences", 1, "--output", output)
    assert f"--output = {output!r}: is a folder" in said
    assert f"Cure: give a name in the folder, without an ending: {Path(output) / 'nca'}." in said
    assert [path.name for path in tmp_path.rglob("*")] == ["made"]


@pytest.mark.parametrize("ending", ["bin", "idx", "json"])
def test_an_output_with_an_ending(tmp_path, capsys, ending):
    said = refused(capsys, *SMALL, "--sequences", 1, "--output", tmp_path / f"a.b.{ending}")
    assert said.endswith(f"Cure: give it without the ending: {tmp_path / 'a.b'}.\n")
    assert not list(tmp_path.iterdir())


def test_a_base_may_be_named_by_a_file_of_it(tmp_path):
    assert main(["generate", *SMALL, "--sequences", "20", "--output", str(tmp_path / "nca")]) == 0
    for ending in ("", ".bin", ".idx", ".json"):
        words = ["--source", "shuffled", "--base", f"{tmp_path / 'nca'}{ending}", "--output", str(tmp_path / "moved")]
        assert main(["generate", *words]) == 0


def test_a_vocabulary_of_the_preset_that_is_too_small_has_a_cure(tmp_path, capsys):
    options = ["--sequences", 1, "--num-states", 16, "--dry-run", "--band", 0.1, 0.3, "--output", tmp_path / "nca"]
    assert "Cure: raise it, or let it be those in use: --allocated-vocab-size none" in refused(capsys, *options)
    assert main(["generate", *map(str, options), "--allocated-vocab-size", "none"]) == 0


def test_datasets_that_examples_name_are_in_their_recipes():
    root = Path(__file__).parents[2]
    found = re.findall(r"--recipe (launch/\S+) --dataset (\S+)", EXAMPLES)
    assert found
    for recipe, name in found:
        assert name in load_recipe(root / recipe).datasets


def test_options_of_a_recipe(tmp_path, capsys, recipe_values):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    base = ["--recipe", recipe, "--part", "train", "--run-dir", tmp_path]
    assert "--temperature: the recipe says this" in refused(capsys, *base, "--dataset", "automata", "--temperature", 1)
    assert "--dataset: is required" in refused(capsys, *base)
    assert "Did you mean 'automata'" in refused(capsys, *base, "--dataset", "autamata")
    assert "its source is corpus" in refused(capsys, *base, "--dataset", "text")


def test_damaged_dataset_is_named(tmp_path, capsys):
    options = [*SMALL, "--sequences", 20, "--output", tmp_path / "nca"]
    assert main(["generate", *map(str, options)]) == 0
    Path(tmp_path / "nca.bin").write_bytes(b"short")
    assert "nca.bin: has 5 bytes" in refused(capsys, *options)
    with pytest.raises(DataError):
        Manifest.load(tmp_path / "nca")
