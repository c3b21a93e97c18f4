"""What is said of a checkpoint and of the difference of two."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_checkpoints import CONFIG, random_checkpoint, values, write_random

from megatron_nca.config.run_config import RunConfig
from megatron_nca.convert import megatron
from megatron_nca.convert.canonical import CanonicalCheckpoint, cast
from megatron_nca.convert.difference import difference, format_difference
from megatron_nca.convert.inspect import figures, together


def changed(name: str, change: Callable) -> CanonicalCheckpoint:
    checkpoint = random_checkpoint()
    return replace(checkpoint, tensors=tuple(
        replace(t, read=lambda t=t: change(t.read())) if t.name == name else t for t in checkpoint.tensors))


def test_figures_are_those_of_numpy():
    numbers = np.random.default_rng(0).normal(2, 3, 1_500_000).astype(np.float32)
    numbers[:7] = 0
    found = figures(torch.from_numpy(numbers))
    exact = numbers.astype(np.float64)
    assert (found.count, found.zeros, found.non_finite) == (1_500_000, 7, 0)
    assert (found.minimum, found.maximum) == (numbers.min(), numbers.max())
    assert (found.mean, found.std, found.norm) == pytest.approx((exact.mean(), exact.std(), np.linalg.norm(exact)))
    halves = [figures(torch.from_numpy(part)) for part in np.split(numbers, [400_000])]
    assert together(halves).std == pytest.approx(exact.std())
    odd = figures(torch.tensor([math.inf, math.nan, -1.0, 3.0], dtype=torch.bfloat16))
    assert (odd.non_finite, odd.mean, odd.minimum, odd.std) == (2, 1.0, -1.0, 2.0)
    assert figures(torch.tensor([math.nan])).mean is None


def test_what_a_checkpoint_holds(trained: Path, look: Callable):
    code, out, _ = look(trained, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["checkpoint format"], found["iteration"], found["model"]["num_layers"]) == ("megatron-nca", 40, 3)
    expected = values(random_checkpoint())
    assert {row["name"] for row in found["tensors"]} == set(expected)
    for row in found["tensors"]:
        assert row["mean"] == pytest.approx(expected[row["name"]].mean(dtype=np.float64))
    assert sum(part["count"] for part in found["components"].values()) == sum(v.size for v in expected.values())
    assert found["saved"]["chunks"]["decoder.layers.self_attention.linear_qkv.weight"] == [3, 1, 1]
    assert found["saved"]["ranks that wrote"] == [0]
    _, table, _ = look(trained)
    assert table.splitlines()[3].split()[:3] == ["component", "parameters", "min"]
    assert sum(line.startswith("layers.") for line in look(trained, "--tensors")[1].splitlines()) == 18
    assert "NOT FINITE" not in table


def test_numbers_that_are_not_finite_are_named(tmp_path: Path, look: Callable):
    broken = changed("layers.1.mlp.fc2.weight", lambda t: torch.full_like(t, math.nan))
    megatron.write(tmp_path / "broken", broken, RunConfig(model=CONFIG))
    assert "NOT FINITE: numbers in 1 tensors, the first layers.1.mlp.fc2.weight" in look(tmp_path / "broken")[1]


def test_the_layout_that_provenance_states(trained: Path, look: Callable):
    (trained / "provenance.json").write_text(json.dumps({"parallel": {"tensor": 2, "pipeline": 1, "fp8": None}}))
    assert "trained at: tensor 2, pipeline 1" in look(trained)[1]


def test_the_same_checkpoint_has_no_difference(trained: Path, tmp_path: Path, look: Callable):
    write_random(tmp_path / "again")
    code, out, _ = look(trained, tmp_path / "again")
    assert code == 0 and "The same: every bit of 30 parts and tensors." in out


def test_which_part_has_moved_and_how_far():
    """The key rows of one layer by a tenth of their norm."""
    name = "layers.1.attention.qkv.weight"

    def move(tensor: torch.Tensor) -> torch.Tensor:
        result = tensor.clone()
        result.view(2, 32, 32)[:, 16:24] *= 1.1
        return result

    found = difference(random_checkpoint(), changed(name, move))
    (moved,) = [row for row in found["tensors"] if not row["same"]]
    assert (moved["name"], moved["part"], moved["layer"]) == (name, "k", 1)
    assert moved["relative"] == pytest.approx(0.1, rel=1e-5)
    assert moved["changed"] > 0.99
    assert moved["sha256"][0] != moved["sha256"][1]
    sums = found["components"]
    assert (sums["attention"]["same"], sums["attention"]["rows"], sums["mlp"]["same"]) == (11, 12, 9)
    assert 0 < sums["attention"]["relative"] < 0.1 and sums["mlp"]["distance"] == 0


def test_other_types_shapes_and_numbers_that_are_not_finite():
    one = random_checkpoint()
    rounded = difference(one, cast(one, "bfloat16"))
    assert not any(row["same"] for row in rounded["tensors"]) and 0 < rounded["components"]["mlp"]["relative"] < 0.01
    minus = difference(one, changed("final_norm.weight", lambda t: -t))
    assert minus["components"]["final_norm"]["relative"] == 2
    endless = difference(one, changed("final_norm.weight", lambda t: t * math.inf))
    (row,) = [row for row in endless["tensors"] if not row["same"]]
    assert (row["non_finite"], row["distance"], row["changed"]) == (32, 0, 1)
    wider = difference(one, random_checkpoint(replace(CONFIG.with_vocabulary(300), tied_embeddings=True)))
    assert wider["model settings"] == {"vocab_size": [200, 300], "tied_embeddings": [False, True]}
    shapes = {row["name"]: row["shapes"] for row in wider["tensors"] if "shapes" in row}
    assert shapes == {"embedding.weight": [[256, 32], [384, 32]], "head.weight": [[256, 32], None]}
    sums = wider["components"]["embedding"]
    assert [sums[key] for key in ("distance", "relative", "largest", "changed")] == [None] * 4
    tables = [format_difference(wider, tensors).splitlines() for tensors in (False, True)]
    for name, table in zip(("embedding", "embedding.weight"), tables, strict=True):
        (line,) = [line for line in table if line.split()[0] == name]
        assert line.split() == [name, "not", "comparable", "-", "-", "-", "-"]


def test_rows_of_padding_are_no_difference(tmp_path: Path, trained: Path, look: Callable, convert: Callable):
    assert convert("hf", "--from", trained, "--to", tmp_path / "hf")[0] == 0
    _, out, _ = look(trained, tmp_path / "hf")
    assert "head.weight: rows 200 to 255, which are padding, have other bits and are not compared" in out
    assert "The same: every bit of 30 parts and tensors." in out
    last = changed("head.weight", lambda values: values.index_fill(0, torch.tensor(199), 0))
    assert difference(random_checkpoint(), last)["components"]["head"]["changed"] == 1 / 200


def test_the_table_and_the_plot_of_a_difference(trained: Path, tmp_path: Path, look: Callable):
    write_random(tmp_path / "other", seed=1)
    code, out, _ = look(trained, tmp_path / "other", "--plot", tmp_path / "change.png")
    assert code == 0
    assert (tmp_path / "change.png").read_bytes()[:4] == b"\x89PNG"
    assert [line.split()[0] for line in out.splitlines()[3:9]] == [
        "attention", "mlp", "norms", "final_norm", "embedding", "head"]
    assert "layers.2.attention.qkv.weight (v)" in look(trained, tmp_path / "other", "--tensors")[1]
    code, _, err = look(trained, "--plot", tmp_path / "x.png")
    assert code == 2 and "draws what has changed" in err
    for place, message in ((tmp_path, "is a folder"), (tmp_path / "x.pdf", "is no name of a PNG")):
        code, out, err = look(trained, tmp_path / "other", "--plot", place)
        assert (code, out) == (2, "") and message in err


def test_a_checkpoint_that_is_not_whole_is_told(trained: Path, look: Callable):
    assert "not whole" not in look(trained)[1]
    (trained / "common.pt").unlink()
    code, out, _ = look(trained)
    assert code == 0 and "note: " in out and "is not whole (common.pt is missing), and no training" in out


def test_what_is_no_checkpoint(tmp_path: Path, look: Callable):
    code, _, err = look(tmp_path / "missing")
    assert code == 2 and "missing: is not there" in err
    (tmp_path / "notes.txt").write_text("x")
    code, _, err = look(tmp_path / "notes.txt")
    assert code == 2 and "notes.txt: is a file" in err


@pytest.mark.parametrize(("name", "flag"), [("nca", "--drop-head-bias"), ("language", "--num-heads")])
def test_a_flag_that_another_action_has_is_named_with_it(look: Callable, name: str, flag: str):
    code, _, err = look(Path(__file__).parents[1] / "golden" / f"released_{name}.pth")
    assert code == 2 and flag in err and "`convert format` has that flag" in err
