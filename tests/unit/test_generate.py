"""`megatron-nca generate`: what it writes, and that the same settings make the same bytes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_nca.__main__ import main
from megatron_nca.config.law import NcaLaw, preset, replace
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.manifest import Manifest
from megatron_nca.nca import simulate
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


def run(*words: object) -> int:
    return main(["generate", *map(str, words)])


def parts(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}.{ending}").read_bytes() for ending in ("bin", "idx", "json")]


def test_same_bytes_from_any_number_of_threads(tmp_path, capsys):
    for threads in (1, 2, 5):
        output = tmp_path / str(threads) / "nca"
        options = ["--preset", "released", "--sequences", 300, "--seed", 7, "--band", 0.5, 1.0]
        assert run(*options, "--threads", threads, "--output", output) == 0
        assert parts(output) == parts(tmp_path / "1" / "nca")
    assert "300 sequences, 307,800 tokens of uint16" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == ["nca.bin", "nca.idx", "nca.json"]


def test_sequences_are_the_first_accepted_candidates_in_order(tmp_path):
    law = replace(preset("released"), band=(0.4, 0.55))
    manifest = generate(NcaSource(law, 40, 11), tmp_path / "nca")
    ratios = simulate.score(law, 11, 0, 400)
    accepted = np.flatnonzero((ratios > 0.4) & (ratios < 0.55))[:40]
    expected = simulate.documents(law, 11, accepted, 0 * accepted)
    reader = IndexedReader(tmp_path / "nca")
    np.testing.assert_array_equal(np.stack([reader[i] for i in range(40)]), expected)
    assert manifest.origin["candidates_examined"] == accepted[-1] + 1
    assert manifest.origin["candidates_accepted"] == manifest.origin["rules"] == 40


def test_bounds_of_the_band_are_open():
    ratios = simulate.score(NcaLaw(), 1, 0, 64)
    edge = float(np.sort(ratios)[32])
    inside = NcaSource(NcaLaw(band=(edge, 1.0)), 1, 1).acceptance(0, 64)
    assert not inside[ratios == edge].any() and inside[ratios > edge].all()
    inside = NcaSource(NcaLaw(band=(0.0, edge)), 1, 1).acceptance(0, 64)
    assert not inside[ratios == edge].any() and inside[ratios < edge].all()


def test_rules_are_cycled_with_fresh_starts(tmp_path):
    law = NcaLaw(num_states=2, height=8, width=8, sequence_length=64, band=(0.1, 0.3), num_rules=5)
    manifest = generate(NcaSource(law, 13, 3), tmp_path / "nca")
    accepted = np.flatnonzero(NcaSource(law, 13, 3).acceptance(0, 500))[:5]
    index = np.arange(13)
    reader = IndexedReader(tmp_path / "nca")
    documents = np.stack([reader[i] for i in range(13)])
    np.testing.assert_array_equal(documents, simulate.documents(law, 3, accepted[index % 5], index // 5))
    assert not np.array_equal(documents[0], documents[5])
    assert manifest.origin["rules"] == 5 and manifest.documents == 13


def test_a_longer_dataset_begins_with_the_shorter_one(tmp_path):
    for count in (20, 50):
        generate(NcaSource(NcaLaw(), count, 1), tmp_path / str(count))
    short, long = ((tmp_path / f"{count}.bin").read_bytes() for count in (20, 50))
    assert long.startswith(short)


def test_manifest(tmp_path):
    assert run(*SMALL, "--sequences", 30, "--seed", 2**63, "--output", tmp_path / "nca") == 0
    manifest = Manifest.load(tmp_path / "nca")
    manifest.verify(tmp_path / "nca")
    law = NcaLaw(num_states=2, height=8, width=8, sequence_length=64, band=(0.1, 0.3), allocated_vocab_size=64_000)
    assert (manifest.kind, manifest.documents, manifest.num_tokens, manifest.vocab_size) == ("nca", 30, 18, 64_000)
    assert manifest.origin["law"] == json.loads(json.dumps(law.__dict__))
    assert manifest.origin["seed"] == 2**63 and manifest.origin["preset"] is None
    reader = IndexedReader(tmp_path / "nca")
    scored = np.concatenate([reader[i][law.first_scored_token : 65] for i in range(30)])
    shares = np.bincount(scored)[np.bincount(scored) > 0] / len(scored)
    assert manifest.unigram_entropy_nats == pytest.approx(-(shares * np.log(shares)).sum())


def test_large_vocabularies_are_int32(tmp_path):
    law = NcaLaw(num_states=16, band=(0.2, 1.0), sequence_length=100)
    assert generate(NcaSource(law, 4, 0), tmp_path / "nca").dtype == "int32"
    reader = IndexedReader(tmp_path / "nca")
    assert reader[0][0] == 65_536 and reader[0].max() == 65_537


def test_again_with_the_same_settings_is_done_at_once(tmp_path, capsys):
    options = [*SMALL, "--sequences", 20, "--output", tmp_path / "nca"]
    assert run(*options) == 0
    before = os.stat(tmp_path / "nca.bin").st_mtime_ns
    assert run(*options) == 0
    assert "is there already" in capsys.readouterr().out
    assert os.stat(tmp_path / "nca.bin").st_mtime_ns == before


def test_dry_run_writes_nothing(tmp_path, capsys):
    assert run("--sequences", 1000, "--output", tmp_path / "deep" / "nca", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "temperature: 0.0001" in said and "27 frames = 1,026 tokens" in said and "2.1 MB" in said
    assert "% passed the band" in said and "candidates, " in said
    assert not list(tmp_path.iterdir())


def test_a_law_that_only_zlib_can_score_is_said(tmp_path, capsys):
    assert run(*SMALL, "--sequences", 10, "--output", tmp_path / "fast") == 0
    assert "zlib" not in capsys.readouterr().err
    assert run(*SMALL, "--score-dtype", "uint16", "--sequences", 10, "--output", tmp_path / "plain") == 0
    assert capsys.readouterr().err.count("outside the fast filter") == 1


def test_recipe_gives_both_parts(tmp_path, recipe_values):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    for part in ("train", "validation"):
        options = ["--recipe", recipe, "--dataset", "automata", "--run-dir", tmp_path / "run"]
        assert run(*options, "--part", part) == 0
    folder = tmp_path / "run" / "data" / "automata"
    train, validation = Manifest.load(folder / "train"), Manifest.load(folder / "validation")
    assert (train.documents, validation.documents) == (8, 4)
    assert (train.origin["seed"], validation.origin["seed"]) == (0, 1_000_003)
    assert train.vocab_size == 18


@pytest.mark.parametrize("damage", ["no manifest", "a short .bin"])
def test_a_torn_dataset_of_a_run_is_made_again(tmp_path, recipe_values, capsys, damage):
    """As a kill between two renames leaves it; the walk must go on without a hand."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    options = ["--recipe", recipe, "--dataset", "automata", "--run-dir", tmp_path / "run", "--part", "train"]
    assert run(*options) == 0
    prefix = tmp_path / "run/data/automata/train"
    whole = parts(prefix)
    if damage == "no manifest":
        Path(f"{prefix}.json").unlink()
    else:
        Path(f"{prefix}.bin").write_bytes(whole[0][:-2])
    assert run(*options) == 0
    assert parts(prefix) == whole
    assert "made again" in capsys.readouterr().err
