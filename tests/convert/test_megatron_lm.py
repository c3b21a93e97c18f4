"""Megatron-LM's own checkpoints: ours load in its code and its in ours; what is not of our shape is refused."""

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_checkpoints import CONFIG, Bomb, assert_same, random_checkpoint, reference_logits

from megatron_nca.config.model import ModelConfig, RopeScaling
from megatron_nca.convert import formats, megatron_lm
from megatron_nca.convert.canonical import CanonicalCheckpoint
from megatron_nca.errors import CheckpointError

WORKER = Path(__file__).with_name("megatron_lm_worker.py")
LLAMA3 = RopeScaling(kind="llama3", factor=8)
VARIANTS = {
    "grouped-query": {},
    "multi-head, tied": {"num_query_groups": None, "tied_embeddings": True},
    "rope scaled": {"rope_scaling": LLAMA3},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_there_and_back_is_the_identity(changes: dict, tmp_path: Path):
    source = random_checkpoint(dataclasses.replace(CONFIG, **changes))
    megatron_lm.write(tmp_path / "there", source)
    assert (tmp_path / "there" / "latest_checkpointed_iteration.txt").read_text() == "release"
    for path in (tmp_path / "there", tmp_path / "there" / "release"):
        again = megatron_lm.read(path)
        assert_same(source, again)
        assert (again.iteration, again.notes) == (40, ())


def changed(folder: Path, change: Callable[[dict], object]) -> Path:
    """A checkpoint whose `common.pt` went through `change`."""
    megatron_lm.write(folder, random_checkpoint())
    path = folder / "release" / "common.pt"
    common = torch.load(path, weights_only=False)
    change(common)
    torch.save(common, path)
    return folder


def rows(count: int) -> CanonicalCheckpoint:
    """A model whose every row is of the vocabulary."""
    return random_checkpoint(ModelConfig(**{**vars(CONFIG), "vocab_size": count}))


@pytest.mark.parametrize(("option", "vocab_size", "padded"), [(None, 384, 384), (300, 300, 384), (200, 200, 256)])
def test_the_vocabulary_is_asked_for(option: int | None, vocab_size: int, padded: int, tmp_path: Path):
    """Theirs say how many rows there are, padding included; ours have fewer where their layout padded by more."""
    megatron_lm.write(tmp_path / "c", rows(384))
    path = tmp_path / "c" / "release" / "common.pt"
    common = torch.load(path, weights_only=False)
    del common["args"].megatron_nca_vocab_size
    torch.save(common, path)
    checkpoint = megatron_lm.read(tmp_path / "c", vocab_size=option)
    head = checkpoint.tensor("head.weight")
    assert (checkpoint.model.vocab_size, head.shape[0]) == (vocab_size, padded)
    assert torch.equal(head.read(), rows(384).tensor("head.weight").read()[:padded])
    assert bool(checkpoint.notes) == (option is None)
    assert (head.note == "128 rows of padding were left out") == (padded == 256)


def test_rows_of_padding_are_added_where_theirs_are_fewer(tmp_path: Path):
    megatron_lm.write(tmp_path / "c", random_checkpoint())
    checkpoint = megatron_lm.read(tmp_path / "c", vocab_size=None)
    cut = dataclasses.replace(checkpoint.tensor("head.weight"), shape=(208, 32))
    whole = dataclasses.replace(cut, read=lambda: checkpoint.tensor("head.weight").read()[:208])
    fitted = megatron_lm._fit_rows(whole, checkpoint.model)
    assert fitted.shape == (256, 32) and "48 rows of padding were added" in fitted.note
    assert not fitted.read()[208:].any() and fitted.read()[:208].all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("add_bias_linear", True),
        ("normalization", "LayerNorm"),
        ("num_experts", 8),
        ("position_embedding_type", "learned_absolute"),
        ("kv_channels", 16),
        ("qk_layernorm", True),
    ],
)
def test_another_shape_is_refused_by_the_arguments_name(name: str, value: object, tmp_path: Path):
    folder = changed(tmp_path / "c", lambda common: setattr(common["args"], name, value))
    with pytest.raises(CheckpointError, match=rf"common\.pt: .*{name} = .* Cure"):
        megatron_lm.read(folder)


def test_what_is_no_such_checkpoint_is_refused(tmp_path: Path, trained: Path):
    with pytest.raises(CheckpointError, match="holds no arguments of its training"):
        megatron_lm.read(trained)
    with pytest.raises(CheckpointError, match="is neither an iteration"):
        megatron_lm.read(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(CheckpointError, match=r"iter_0000007: is not a whole checkpoint"):
        megatron_lm.read(tmp_path)
    folder = changed(tmp_path / "bomb", lambda common: common.update(rerun=Bomb(tmp_path / "mark")))
    with pytest.raises(CheckpointError, match=r"more than tensors and plain data \(_?io\.open\)"):
        megatron_lm.read(folder)
    assert not (tmp_path / "mark").exists()
    folder = changed(tmp_path / "lacks", lambda common: delattr(common["args"], "rotary_base"))
    with pytest.raises(CheckpointError, match="its args lack rotary_base"):
        megatron_lm.read(folder)


def test_a_model_that_it_cannot_build_is_not_written(tmp_path: Path):
    scaled = dataclasses.replace(CONFIG, rope_scaling=RopeScaling(kind="linear", factor=2))
    with pytest.raises(CheckpointError, match=r"rope_scaling = .*Megatron-LM has no other than"):
        megatron_lm.write(tmp_path / "c", random_checkpoint(scaled))
    assert not list(tmp_path.iterdir())


def test_plain_torch_reads_its_arguments(tmp_path: Path):
    """As Megatron-LM does, which lets argparse.Namespace pass."""
    megatron_lm.write(tmp_path / "c", random_checkpoint())
    with torch.serialization.safe_globals([argparse.Namespace]):
        common = torch.load(tmp_path / "c" / "release" / "common.pt", weights_only=True)
    assert (common["args"].num_attention_heads, common["args"].num_query_groups) == (4, 2)


SHAPE = (
    "--num-layers 3 --hidden-size 32 --num-attention-heads 4 --group-query-attention --num-query-groups 2 "
    "--ffn-hidden-size 48 --seq-length 64 --max-position-embeddings 64 --position-embedding-type rope "
    "--normalization RMSNorm --swiglu --disable-bias-linear --untie-embeddings-and-output-weights"
)
TRAINING = (
    "--norm-epsilon 1e-6 --attention-dropout 0 --hidden-dropout 0 --micro-batch-size 2 --global-batch-size 2 "
    "--train-iters 10 --lr 1e-2 --tokenizer-type NullTokenizer --vocab-size 199 --ckpt-format torch_dist "
    "--distributed-backend gloo --transformer-impl local --no-persist-layer-norm --no-gradient-accumulation-fusion "
    "--no-masked-softmax-fusion --no-bias-swiglu-fusion --no-rope-fusion --no-bias-dropout-fusion "
    "--rerun-mode disabled"
)


def run_megatron_lm(folder: Path, words: str, steps: int) -> np.lib.npyio.NpzFile:
    """What its model holds and computes: `logits` of `tokens`, and its weights."""
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 200, (2, 64)))
    job = {"arguments": words.split(), "tokens": str(folder / "tokens.npy"), "logits": str(folder / "logits.npz")}
    (folder / "job.json").write_text(json.dumps({**job, "steps": steps}))
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29714"}
    environment = {**os.environ, **ranks, "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    command = [sys.executable, "-W", "ignore", str(WORKER), str(folder / "job.json")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=450)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return np.load(folder / "logits.npz")


MISSING = [name for name in ("triton", "six") if importlib.util.find_spec(name) is None]
needs_megatron_lm = pytest.mark.skipif(
    "MEGATRON_LM" not in os.environ or bool(MISSING),
    reason="MEGATRON_LM does not name a source tree of Megatron-LM core_v0.16.1"
    if "MEGATRON_LM" not in os.environ
    else f"Megatron-LM needs {' and '.join(MISSING)}",
)


@pytest.mark.long
@needs_megatron_lm
def test_its_load_checkpoint_starts_from_ours(tmp_path: Path):
    """The shape is taken from our arguments (--use-checkpoint-args); nothing is said of optimizer or random states."""
    source = random_checkpoint(dataclasses.replace(CONFIG, sequence_length=64))
    megatron_lm.write(tmp_path / "ours", source)
    there = run_megatron_lm(tmp_path, f"--use-checkpoint-args --load {tmp_path / 'ours'} {TRAINING}", steps=0)
    for layer in range(3):
        ours = source.tensor(f"layers.{layer}.attention.qkv.weight").read().numpy()
        assert (there[f"decoder.layers.{layer}.self_attention.linear_qkv.weight"] == ours).all()
    expected = reference_logits(source, torch.from_numpy(np.load(tmp_path / "tokens.npy"))).numpy()
    # Random weights of size 1 make logits of up to 23.
    np.testing.assert_allclose(there["logits"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.long
@needs_megatron_lm
def test_what_its_save_checkpoint_wrote_is_read_here(tmp_path: Path):
    there = run_megatron_lm(tmp_path, f"{SHAPE} {TRAINING} --save {tmp_path / 'theirs'} --save-interval 10", steps=2)
    assert formats.recognise(tmp_path / "theirs")[0].name == "megatron-lm"
    checkpoint = megatron_lm.read(tmp_path / "theirs", vocab_size=200)
    assert checkpoint.model == dataclasses.replace(CONFIG, sequence_length=64)
    assert checkpoint.iteration == 2
    assert {item.reason for item in checkpoint.ignored} == {"optimizer state", "random states", "extra state"}
    assert (checkpoint.tensor("embedding.weight").read().numpy() == there["embedding.word_embeddings.weight"]).all()
    logits = reference_logits(checkpoint, torch.from_numpy(np.load(tmp_path / "tokens.npy")))
    np.testing.assert_allclose(there["logits"], logits.numpy(), rtol=0, atol=1e-5)
