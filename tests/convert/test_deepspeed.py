"""Folders that DeepSpeed itself wrote, at each stage of ZeRO, give the fp32 weights of its engine bit by bit."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_checkpoints import Bomb

from megatron_nca.__main__ import main
from megatron_nca.convert import deepspeed, llama, megatron
from megatron_nca.convert.torch_file import TorchFile
from megatron_nca.errors import CheckpointError

MISSING = importlib.util.find_spec("deepspeed") is None
pytestmark = [pytest.mark.long, pytest.mark.skipif(MISSING, reason="deepspeed is not installed")]
WORKER = Path(__file__).with_name("deepspeed_worker.py")
CASES = ("1-bf16", "2-fp32", "3-bf16-tied")
OPTIONS = {"num_heads": 4, "rope_base": 10_000, "norm_epsilon": 1e-6, "sequence_length": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepspeed")
    launcher = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(WORKER), str(folder), *CASES]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_main_weights_are_assembled_to_the_bit(case: str, folder: Path):
    checkpoint, expected = deepspeed.read(folder / case, **OPTIONS), np.load(folder / f"{case}.npz")
    found = dict(llama.divide(checkpoint, llama.HUGGING_FACE))
    assert found.keys() == set(expected)
    for name, part in found.items():
        assert part.read().numpy().tobytes() == expected[name].tobytes(), name
    assert (checkpoint.iteration, checkpoint.model.tied_embeddings) == (2, case.endswith("tied"))
    assert checkpoint.notes == (f"fp32 main weights of ZeRO-{case[0]} from 2 ranks",)


def test_the_verb_recognises_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["convert", "format", "megatron-nca", "--from", str(folder / "1-bf16"), "--to", str(tmp_path / "ours")]
    assert main(words) == 2
    assert "Cure: give --num-heads, --rope-base, --norm-epsilon, --sequence-length." in capsys.readouterr().err
    shape = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*words, *shape, "--verify"]) == 0
    assert "deepspeed (told by global_step2/bf16_zero_pp_rank_" in capsys.readouterr().out
    assert megatron.read(tmp_path / "ours").model.vocab_size == 70


def damage_missing_share(step: Path) -> str:
    next(step.glob("*rank_1_mp_rank_00_optim_states.pt")).unlink()
    return "has the shares of 1 ranks of 2"


def damage_cut_share(step: Path) -> str:
    path = next(step.glob("*rank_1_mp_rank_00_optim_states.pt"))
    path.write_bytes(path.read_bytes()[:-2000])
    return "is damaged"


def damage_bit(step: Path) -> str:
    path = next(step.glob("*rank_1_mp_rank_00_optim_states.pt"))
    flat = TorchFile(path, deepspeed._KNOWN).content["optimizer_state_dict"]["fp32_flat_groups"][0]
    data = bytearray(path.read_bytes())
    data[flat.untyped_storage()._checkpoint_offset + 5] ^= 1
    path.write_bytes(data)
    return "is damaged .*CRC"


def damage_tensor_parallel(step: Path) -> str:
    (step / "mp_rank_01_model_states.pt").touch()
    return "tensor parallelism, which is not read"


def damage_short_share(step: Path) -> str:
    path = next(step.glob("*rank_0_mp_rank_00_model_states.pt"))
    content = torch.load(path, weights_only=True)
    next(group for group in content["param_shapes"] if "model.norm.weight" in group)["model.norm.weight"] = [5000]
    torch.save(content, path)
    return "too short for its weights"


def damage_another_shape(step: Path) -> str:
    path = next(step.glob("*rank_0_mp_rank_00_model_states.pt"))
    content = torch.load(path, weights_only=True)
    group = next(group for group in content["param_shapes"] if "model.norm.weight" in group)
    group["model.norms.weight"] = group.pop("model.norm.weight")
    torch.save(content, path)
    return r"model\.norm\.weight is missing; model\.norms\.weight is not a tensor of this model"


def damage_code(step: Path) -> str:
    torch.save(Bomb(step / "mark"), next(step.glob("*rank_0_mp_rank_00_model_states.pt")))
    return "holds more than tensors and plain data"


def damage_latest(step: Path) -> str:
    (step.parent / "latest").write_text("../elsewhere")
    return "names '../elsewhere', which is no folder beside it"


@pytest.mark.parametrize("damage", [value for name, value in sorted(globals().items()) if name.startswith("damage_")])
def test_what_is_not_whole_is_refused(damage: Callable, folder: Path, tmp_path: Path):
    shutil.copytree(folder / "3-bf16-tied", tmp_path / "c")
    message = damage(tmp_path / "c" / "global_step2")
    with pytest.raises(CheckpointError, match=message):
        deepspeed.read(tmp_path / "c", **OPTIONS)
    assert not list(tmp_path.rglob("mark"))
