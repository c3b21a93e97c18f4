"""The restricted reader lets tensors and plain data through, and what it is told; nothing else."""

from pathlib import Path

import pytest
import torch

from megatron_nca import pickles
from megatron_nca.errors import CheckpointError


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def test_tensors_and_plain_data_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "f.pt", {"weight": torch.ones(2), "rest": [1, 2.5, "text", None, (True,)]})
    value = pickles.load(path, path)
    assert value["weight"].tolist() == [1, 1] and value["rest"] == [1, 2.5, "text", None, (True,)]


class Options:
    def __init__(self, depth: int) -> None:
        self.depth = depth


def test_only_named_classes_pass_whatever_others_told_torch(tmp_path: Path) -> None:
    """As megatron.core allows argparse.Namespace to every torch.load of the process when it is imported."""
    path = saved(tmp_path / "f.pt", {"args": Options(depth=3)})
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([Options]):
        with pytest.raises(CheckpointError, match=r"f\.pt: holds more than .* \([\w.]*Options\).* Cure"):
            pickles.load(path, path)
        assert Options in torch.serialization.get_safe_globals()
    assert pickles.load(path, path, [Options])["args"].depth == 3
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04" + bytes(100)])
def test_damage_is_said_to_be_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged or no file of torch\.save"):
        pickles.load(tmp_path / "f.pt", tmp_path / "f.pt")
