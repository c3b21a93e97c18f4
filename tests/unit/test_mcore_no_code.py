"""Megatron's load runs no code from files: neither from the table nor from objects among the tensors."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from megatron_nca import pickles
from megatron_nca.errors import CheckpointError
from megatron_nca.mcore import patches, torch_dist


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.mark,)


def load(folder: Path, state: dict) -> None:
    with patches.no_code_from_files():
        dcp.load(state, checkpoint_id=folder, no_dist=True)


def test_plain_objects_and_tensors_load(tmp_path: Path) -> None:
    dcp.save({"a": torch.ones(3), "b": {"c": [1, "x"]}}, checkpoint_id=tmp_path / "c", no_dist=True)
    state = {"a": torch.zeros(3), "b": {"c": [0, ""]}}
    load(tmp_path / "c", state)
    assert state["a"].sum() == 3 and state["b"] == {"c": [1, "x"]}


def test_an_object_that_would_run_code_is_refused(tmp_path: Path) -> None:
    dcp.save({"a": Bomb(tmp_path / "mark")}, checkpoint_id=tmp_path / "c", no_dist=True)
    with pytest.raises((CheckpointException, CheckpointError), match="mkdir"):
        load(tmp_path / "c", {"a": None})
    assert not (tmp_path / "mark").exists()


def test_a_table_that_would_run_code_is_refused(tmp_path: Path) -> None:
    dcp.save({"a": torch.ones(3)}, checkpoint_id=tmp_path / "c", no_dist=True)
    (tmp_path / "c/.metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises((CheckpointException, CheckpointError), match="mkdir"):
        load(tmp_path / "c", {"a": torch.zeros(3)})
    assert not (tmp_path / "mark").exists()


def test_an_old_torch_loads_nothing_unless_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dcp.save({"a": torch.ones(3)}, checkpoint_id=tmp_path / "c", no_dist=True)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(CheckpointError, match=pickles.TRUST_VARIABLE):
        torch_dist.TorchDistReader(tmp_path / "c")
    monkeypatch.setenv(pickles.TRUST_VARIABLE, "1")
    assert (torch_dist.TorchDistReader(tmp_path / "c").read("a") == 1).all()
