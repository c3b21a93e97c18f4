"""Data made on the node: the same bytes as beforehand, in any order, whoever is killed meanwhile."""

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_nca.__main__ import main
from megatron_nca.config.dataset import Dataset, OnNode
from megatron_nca.config.law import NcaLaw
from megatron_nca.config.recipe import recipe_from_dict
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.order import order_from, training_order
from megatron_nca.data.placed import PlacedWriter, unfinished
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.errors import ConfigError, DataError
from megatron_nca.sources import staging
from megatron_nca.sources.nca import NcaSource, generate

LAW = NcaLaw(num_states=3, height=6, width=6, sequence_length=64, band=(0.05, 1.0), score_frames=5)
SEQUENCES = 300


def parts(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}.{ending}").read_bytes() for ending in ("bin", "idx", "json")]


def on_node(folder: Path, law: NcaLaw = LAW, **settings: object) -> Dataset:
    place = OnNode(folder=str(folder), **settings)
    return Dataset(source="nca", law=law, sequences=SEQUENCES, validation_sequences=8, on_node=place)


def states(reports: list[staging.Progress]) -> list[str]:
    """Each state once, in the order in which they came."""
    return [state for state, _ in itertools.groupby(report.state for report in reports)]


@pytest.mark.parametrize("num_rules", [None, 70])
def test_the_order_changes_no_byte(tmp_path, num_rules, monkeypatch):
    monkeypatch.setattr(staging, "BLOCK_TOKENS", 1000)  # several blocks
    law = NcaLaw(**{**LAW.__dict__, "num_rules": num_rules})
    generate(NcaSource(law, SEQUENCES, 0), tmp_path / "before")
    for seed, consumed in ((0, 0), (3, 1234)):
        dataset = on_node(tmp_path / f"node{seed}", law)
        place, reports = staging.staged(dataset, "train", SEQUENCES), []
        staging.stage(NcaSource(law, SEQUENCES, 0), place, order_from(seed, consumed, SEQUENCES), reports.append)
        assert parts(place.prefix) == parts(tmp_path / "before")
        assert states(reports) == ["searching", "making", "whole"]
        assert [report.made for report in reports if report.state == "making"] == [*range(15, 300, 15), 300]
        again: list[staging.Progress] = []
        staging.stage(NcaSource(law, SEQUENCES, 0), place, order_from(9, 0, SEQUENCES), again.append)
        assert states(again) == ["whole"], "what is there is used"


def test_a_part_has_a_place_by_its_settings(tmp_path):
    dataset = on_node(tmp_path)
    train, validation = staging.staged(dataset, "train", 300), staging.staged(dataset, "validation", 300)
    other = staging.staged(on_node(tmp_path, NcaLaw(**{**LAW.__dict__, "band": (0.1, 1.0)})), "train", 300)
    assert len({train.prefix, validation.prefix, other.prefix, staging.staged(dataset, "train", 301).prefix}) == 4
    assert train.prefix == staging.staged(on_node(tmp_path, when="start", threads=3), "train", 300).prefix
    assert train.prefix.parent == tmp_path


def test_documents_are_read_while_others_are_still_missing(tmp_path):
    trajectory, source = Trajectory.of_law(LAW), NcaSource(LAW, SEQUENCES, 0)
    list(source.search())
    with PlacedWriter(tmp_path / "x", LAW.num_tokens, trajectory, SEQUENCES) as writer:
        reader = IndexedReader(unfinished(tmp_path / "x"))
        assert len(reader) == SEQUENCES and not reader[290].any()
        writer.place(np.array([290, 3]), source.sequences(np.array([290, 3])))
        assert (reader[290] == source.sequences(np.array([290]))[0]).all() and not reader[4].any()
        with pytest.raises(DataError, match=r"2 of 300 documents were written"):
            writer.finish({"kind": "nca", "vocab_size": LAW.vocab_size, "origin": {}})
    assert list(tmp_path.iterdir()) == []
    assert reader[290].any(), "who has opened the files keeps them"


def test_the_order_is_that_of_training():
    """The numbers are frozen: another order would be another experiment."""
    assert training_order(7, 0, 6).tolist() == [2, 5, 1, 3, 0, 4]
    assert training_order(7, 1, 6).tolist() == [1, 4, 0, 3, 2, 5]
    assert order_from(7, 6 + 2, 6).tolist() == [0, 3, 2, 5, 1, 4]


def test_the_folder_is_named_by_the_node(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH_OF_JOB", str(tmp_path))
    assert OnNode(folder="$SCRATCH_OF_JOB/nca").path() == tmp_path / "nca"
    monkeypatch.delenv("SCRATCH_OF_JOB")
    with pytest.raises(ConfigError, match=r"on_node.folder = '\$SCRATCH_OF_JOB/nca': .* a variable is not set"):
        OnNode(folder="$SCRATCH_OF_JOB/nca").path()
    with pytest.raises(ConfigError, match="is not the absolute path"):
        OnNode(folder="scratch")
    with pytest.raises(ConfigError, match="threads = 0"):
        OnNode(folder="/x", threads=0)
    cores = len(os.sched_getaffinity(0))
    assert OnNode(folder="/x").num_threads() == max(1, cores // 4)
    assert OnNode(folder="/x", when="start").num_threads() == cores
    assert OnNode(folder="/x", threads=7).num_threads() == 7


def recipe_file(values: dict, folder: Path, **settings: object) -> Path:
    """The tiny recipe with automata made on the node, in `folder`/node."""
    values["datasets"]["automata"]["on_node"] = {"folder": str(folder / "node")}
    values["datasets"]["automata"].update(settings)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_says_so(recipe_values, tmp_path, capsys):
    path = recipe_file(recipe_values, tmp_path)
    words = ["generate", "--recipe", path, "--dataset", "automata", "--part", "train", "--run-dir", tmp_path / "run"]
    assert main([*map(str, words)]) == 2
    assert "is made on the nodes of its training (on_node)" in capsys.readouterr().err
    for name, message in (("text", "it has no on_node"), ("automat", "Did you mean 'automata'?")):
        assert main(["stage", str(path), "--dataset", name]) == 2
        assert message in capsys.readouterr().err
    recipe_values["datasets"]["control"] = {"source": "shuffled", "base": "automata"}
    with pytest.raises(ConfigError, match=r"control.base = 'automata': it is made on the nodes"):
        recipe_from_dict(recipe_values)
    recipe_values["datasets"]["text"]["on_node"] = {"folder": "/x"}
    with pytest.raises(ConfigError, match=r"on_node = .* is no setting of the source 'corpus'"):
        recipe_from_dict(recipe_values)


def start(path: Path, *words: object, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "megatron_nca", "stage", str(path), "--dataset", "automata", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def lines_of(said: str) -> list[dict]:
    return [json.loads(line) for line in said.splitlines()]


def whole(folder: Path) -> list[Path]:
    return sorted(path.with_suffix("") for path in folder.glob("nca-*.json"))


def test_killed_while_another_waits(recipe_values, tmp_path):
    """One process makes, a second waits; the first is killed, and the second makes all again."""
    path = recipe_file(recipe_values, tmp_path, sequences=SEQUENCES)
    first = start(path, "--for-training", 0, stdin=subprocess.PIPE)  # its open stdin keeps it from publishing
    while '"making"' not in (line := first.stdout.readline()) or '"train"' not in line:
        assert line, first.stderr.read()
    second = start(path)
    waiting = tmp_path / "node"
    time.sleep(1)
    assert second.poll() is None and len(whole(waiting)) == 1, "validation only"
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert list(waiting.glob(".nca-*.unfinished.bin")), "what a killed process leaves"
    said, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert "train, 300 sequences, whole" in said
    assert not list(waiting.glob(".nca-*.unfinished.*"))
    law = recipe_from_dict(recipe_values).datasets["automata"].law
    generate(NcaSource(law, SEQUENCES, 0), tmp_path / "before")
    assert parts(tmp_path / "before") in [parts(prefix) for prefix in whole(waiting)]


@pytest.mark.parametrize("words", [("--seed", "-1"), ("--seed", str(2**32)), ("--nice", "-5")], ids=" ".join)
def test_numbers_that_cannot_be_are_refused(recipe_values, tmp_path, capsys, words):
    path = recipe_file(recipe_values, tmp_path)
    assert main(["stage", str(path), "--dataset", "automata", *words]) == 2
    assert f"{words[0]} = {words[1]}: " in capsys.readouterr().err and not any(tmp_path.glob("*/nca-*"))


def test_a_torn_dataset_is_made_again(recipe_values, tmp_path):
    path = recipe_file(recipe_values, tmp_path)
    assert main(["stage", str(path), "--dataset", "automata"]) == 0
    prefixes = whole(tmp_path / "node")
    before = [parts(prefix) for prefix in prefixes]
    Path(f"{prefixes[0]}.json").unlink()
    Path(f"{prefixes[1]}.bin").write_bytes(b"short")
    again = start(path)
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0 and errors.count("made again") == 2
    assert [parts(prefix) for prefix in prefixes] == before


@pytest.mark.parametrize("end", ["closed", "terminated"])
def test_it_ends_with_its_training_and_leaves_nothing(recipe_values, tmp_path, end):
    path = recipe_file(recipe_values, tmp_path, sequences=200_000)
    child = start(path, "--for-training", 0, stdin=subprocess.PIPE)
    while '"searching"' not in (line := child.stdout.readline()) or '"train"' not in line:
        assert line, child.stderr.read()
    for number in (signal.SIGTERM, signal.SIGUSR2):  # these stop a training in good order, which needs its data
        child.send_signal(number)
    if end == "closed":
        child.stdout.close()
    else:
        child.send_signal(signal.SIGHUP)
    assert child.wait(timeout=20) == (1 if end == "closed" else 128 + signal.SIGHUP), child.stderr.read()
    assert child.stderr.read() == ""
    assert not list((tmp_path / "node").glob(".nca-*.unfinished.*")) and len(whole(tmp_path / "node")) == 1


def test_a_full_disk_is_one_message(recipe_values, tmp_path):
    """The size of a file is limited to 20 kB; the training part takes 28 kB."""
    path = recipe_file(recipe_values, tmp_path, sequences=200)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    child = start(path, "--for-training", 0, stdin=subprocess.DEVNULL, preexec_fn=limit)
    said, errors = child.communicate(timeout=60)
    assert child.returncode == 2 and errors == ""
    *_, last = lines_of(said)
    assert "File too large" in last["error"] and "Cure" in last["error"]
    assert not list((tmp_path / "node").glob(".nca-*.unfinished.*")) and len(whole(tmp_path / "node")) == 1
