"""The verb `convert format`: which format a source is of, what is read back, and what is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_checkpoints import random_checkpoint, values

from megatron_nca.convert import formats, megatron
from megatron_nca.convert.canonical import CanonicalCheckpoint, cast
from megatron_nca.errors import CheckpointError


@pytest.mark.parametrize("words", [[], ["--verify"]])
def test_our_own_format_there_and_back(tmp_path: Path, trained: Path, convert: Callable, words: list):
    code, out, err = convert("megatron-nca", "--from", trained, "--to", tmp_path / "new", *words)
    assert (code, err) == (0, "")
    assert f"from {trained}: megatron-nca (told by run_config.yaml)" in out
    assert "tensors: 21; parameters: 39,648 float32; bytes: 158,592" in out
    assert f"Wrote {tmp_path / 'new'}: megatron-nca; read back and found right: " in out
    again = megatron.read(tmp_path / "new")
    assert (again.iteration, again.model) == (40, random_checkpoint().model)
    expected, found = values(random_checkpoint()), values(again)
    assert all((found[name] == expected[name]).all() for name in expected)
    account = json.loads((tmp_path / "new" / "account.json").read_text())
    assert [row["name"] for row in account["tensors"]] == [tensor.name for tensor in again.tensors]
    assert account["verified"] == ("every bit" if words else "table")


def test_a_series_gives_its_newest_whole_iteration(tmp_path: Path, trained: Path, convert: Callable):
    series = tmp_path / "checkpoints"
    series.mkdir()
    trained.rename(series / "iter_0000040")
    shutil.copytree(series / "iter_0000040", series / "iter_0000020")
    code, out, _ = convert("megatron-nca", "--from", series, "--to", tmp_path / "new")
    assert code == 0
    assert f"from {series / 'iter_0000040'}: megatron-nca (told by iter_*/run_config.yaml)\n" in out
    assert f"note: {series}: takes iteration 40, the newest whole one" in out


def test_a_cast_is_said_and_rounds_to_nearest(tmp_path: Path, trained: Path, convert: Callable):
    code, out, _ = convert(
        "megatron-nca", "--from", trained, "--to", tmp_path / "new", "--dtype", "bfloat16", "--verify"
    )
    assert code == 0
    assert "note: rounded from float32 to bfloat16: 21 tensors" in out
    for tensor in megatron.read(tmp_path / "new").tensors:
        assert torch.equal(tensor.read(), random_checkpoint().tensor(tensor.name).read().bfloat16()), tensor.name


def test_a_number_beyond_the_new_type_is_refused(trained: Path):
    checkpoint = random_checkpoint()
    large = CanonicalCheckpoint("large", checkpoint.model, tuple(
        type(t)(t.name, t.shape, t.dtype, lambda t=t: t.read() * 1e5) for t in checkpoint.tensors))  # fmt: skip
    with pytest.raises(CheckpointError, match=r"final_norm.weight holds numbers up to .*beyond the range of float16"):
        cast(large, "float16").tensor("final_norm.weight").read()
    infinite = type(checkpoint.tensors[0])("x", (1,), "float32", lambda: torch.tensor([np.inf]))
    kept = cast(CanonicalCheckpoint("infinite", checkpoint.model, (infinite,)), "float16").tensors[0]
    assert torch.isinf(kept.read()).all()


def test_dry_run_writes_nothing(tmp_path: Path, trained: Path, convert: Callable):
    code, out, _ = convert("megatron-nca", "--from", trained, "--to", tmp_path / "new", "--dry-run")
    assert code == 0
    assert "tensors: 21" in out
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["megatron-ncaa", "--from", "SOURCE"], "Did you mean 'megatron-nca'?"),
        (["megatron-nca", "--from", "MISSING"], "MISSING: is not there"),
        (["megatron-nca", "--from", "EMPTY"], "is of no known format (megatron-nca: "),
        (["megatron-nca", "--from", "SOURCE", "--from-format", "hff"], "--from-format hff: is no format"),
    ],
)
def test_refusals(tmp_path: Path, trained: Path, convert: Callable, words: list, message: str):
    (tmp_path / "empty").mkdir()
    places = {"SOURCE": trained, "EMPTY": tmp_path / "empty"}
    code, _, err = convert(*(places.get(word, word) for word in words), "--to", tmp_path / "new")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_what_is_there_and_the_source_are_kept(tmp_path: Path, trained: Path, convert: Callable, words: list):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    for place, message in ((trained, "exists"), (trained / "new", "lies in the source")):
        code, out, err = convert("megatron-nca", "--from", trained, "--to", place, *words)
        assert (code, out) == (2, "")
        assert message in err
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_other_bits_are_found_before_the_name_is_given(tmp_path: Path):
    """A tensor that reads otherwise the second time stands for a disk that changes bits."""
    checkpoint, calls = random_checkpoint(), []
    ours = formats.FORMATS["megatron-nca"]
    norm = checkpoint.tensor("final_norm.weight")
    unsteady = type(norm)(norm.name, norm.shape, norm.dtype, lambda: calls.append(1) or norm.read() + len(calls))
    tensors = tuple(unsteady if tensor is norm else tensor for tensor in checkpoint.tensors)
    with pytest.raises(CheckpointError, match=r"final_norm\.weight has other bits"):
        formats.convert(ours, ours, CanonicalCheckpoint("x", checkpoint.model, tensors), tmp_path / "new", True)
    assert not list(tmp_path.iterdir())



def test_equality_of_bits():
    zero, nan = torch.tensor([0.0, 1.0]), torch.tensor([np.nan])
    assert formats.same_bits(nan, nan.clone())
    assert not formats.same_bits(zero, torch.tensor([-0.0, 1.0]))
    assert not formats.same_bits(zero, zero.bfloat16())


def test_the_help_imports_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom megatron_nca.__main__ import main\ntry:\n    main(['convert', 'format', '--help'])\n"
        "except SystemExit:\n    print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False False"
