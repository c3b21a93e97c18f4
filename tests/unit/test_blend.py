"""Blends: each dataset's share, the same order at any layout and after a resume, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("megatron.core")

from megatron.core import parallel_state

from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.config.recipe import load_recipe, recipe_from_dict
from megatron_nca.data.blend import Blend
from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.errors import ConfigError, DataError
from megatron_nca.mcore import parallel
from megatron_nca.plan import steps
from megatron_nca.run_dir import RunFolder
from megatron_nca.train import reading

IDS = {"web": range(100), "code": range(100, 200)}
"""No id of one stands in the other, so a sequence says where it is from."""
LENGTH, WEIGHTS, TRAIN, VALIDATION = 16, {"web": 3, "code": 1}, 80, 8
OPTIMIZER = {"lr": 1e-3}


def corpus(prefix: Path, ids: range, tokens: int, seed: int, tokenizer: str = "t") -> None:
    with IndexedWriter(prefix, 200) as writer:
        for document in np.array_split(np.random.default_rng(seed).choice(ids, tokens), 9):
            writer.add_document(document)
        writer.finish({"kind": "corpus", "vocab_size": 200, "origin": {"tokenizer": {"sha256": tokenizer}}})


@pytest.fixture
def values(tmp_path) -> dict:
    """A recipe whose code is short, so that it is read for several epochs, and whose data are there."""
    datasets = {}
    for number, (name, ids) in enumerate(IDS.items()):
        datasets[name] = {"source": "indexed", "vocab_size": 200}
        for part, tokens in (("train", 3000 if name == "web" else 170), ("validation", 200)):
            corpus(tmp_path / f"{name}_{part}", ids, tokens, 10 * number + len(part))
            datasets[name][f"{part}_prefix"] = str(tmp_path / f"{name}_{part}")
    datasets["mixed"] = {"source": "blend", "blend": [[weight, name] for name, weight in WEIGHTS.items()]}
    phase = {"dataset": "mixed", "iterations": TRAIN // 8, "global_batch_size": 8, "micro_batch_size": 2,
             "validation_sequences": VALIDATION, "optimizer": OPTIMIZER, "precision": "fp32"}
    return {"name": "blends", "control": "scratch", "datasets": datasets, "phases": {"text": phase},
            "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "ffn_hidden_size": 32,
                      "sequence_length": LENGTH},
            "arms": {"scratch": {"steps": [{"phase": "text"}]}}}


@pytest.fixture
def opened(tmp_path):
    """Open the data of a recipe as a training of one rank does."""
    parallel.initialise(ParallelConfig(), parallel.read_ranks())

    def call(values: dict, seed: int = 0) -> object:
        recipe, run = recipe_from_dict(values), RunFolder(tmp_path / "run")
        return reading.open_data(recipe, "text", seed, reading.blends(recipe, run, "mixed"), tmp_path / "index_cache")

    yield call
    parallel.leave_model_groups()
    parallel.shut_down()


def rows(batches) -> np.ndarray:
    """Tokens (N, LENGTH) of all micro-batches."""
    return np.concatenate([batch["tokens"].numpy() for batch in batches])


def trained_on(data, consumed: int, count: int) -> np.ndarray:
    return rows(data.train_batches(consumed, count, 2, torch.device("cpu")))


def test_every_dataset_has_its_share_at_any_time(values, opened):
    data = opened(values)
    tokens = trained_on(data, 0, TRAIN)
    from_code = tokens[:, 0] >= 100
    assert ((tokens >= 100) == from_code[:, None]).all(), "a sequence comes from one dataset"
    assert (np.abs(np.cumsum(from_code) - np.arange(1, TRAIN + 1) / 4) <= 1).all()
    held_out = rows(data.validation_batches(VALIDATION, 2, torch.device("cpu")))
    assert (held_out[:, 0] >= 100).sum() == VALIDATION // 4
    assert len(np.unique(held_out, axis=0)) == VALIDATION
    assert len(np.unique(tokens[~from_code], axis=0)) == (~from_code).sum(), "web is longer than its share"
    assert from_code.sum() * LENGTH > 170, "code comes again"


def test_the_order_is_that_of_one_rank_at_two_and_after_a_resume(values, opened, monkeypatch):
    data = opened(values)
    alone = trained_on(data, 0, TRAIN)
    assert (trained_on(opened(values), 24, 16) == alone[24:40]).all(), "a resume reads what would have come next"
    monkeypatch.setattr(parallel_state, "get_data_parallel_world_size", lambda: 2)
    shared = []
    for rank in range(2):
        monkeypatch.setattr(parallel_state, "get_data_parallel_rank", lambda rank=rank: rank)
        shared.append(trained_on(data, 0, TRAIN).reshape(-1, 2, LENGTH))
    assert (np.stack(shared, axis=1).reshape(-1, LENGTH) == alone).all()


def test_the_order_depends_on_the_seed_and_validation_does_not(values, opened):
    one, other = opened(values), opened(values, seed=1)
    assert (trained_on(one, 0, TRAIN) != trained_on(other, 0, TRAIN)).any()
    device = torch.device("cpu")
    assert (rows(one.validation_batches(8, 2, device)) == rows(other.validation_batches(8, 2, device))).all()


def test_indices_made_ahead_are_found(values, tmp_path, monkeypatch):
    """By a training's opening of the data; a made-up file beside them and a torn one are told apart."""
    recipe, run = recipe_from_dict(values), RunFolder(tmp_path / "run")
    assert reading.prepare_indices(recipe, run, "text", 0) == 2 * (2 * 4 + 3)
    cache = run.dataset("mixed").path / "index_cache"
    before = state(cache)
    assert reading.prepare_indices(recipe, run, "text", 0) == 0 and state(cache) == before
    parts = reading.blends(recipe, run, "mixed")
    with parallel.lone_process():
        monkeypatch.setattr(np, "save", None)  # what Megatron would write them with
        reading.open_data(recipe, "text", 0, parts, cache)
        monkeypatch.undo()
        assert state(cache) == before
        torn = next(cache.rglob("*-GPTDataset-train-shuffle_index.npy"))
        torn.write_bytes(torn.read_bytes()[:-1])
        with pytest.raises(DataError, match=r"its indices cannot be read .* Cure: remove the folder"):
            reading.open_data(recipe, "text", 0, parts, cache)
    with pytest.raises(DataError, match="its indices cannot be read"):
        reading.prepare_indices(recipe, run, "text", 0)
    assert [path.name for path in cache.parent.iterdir()] == ["index_cache"]
    assert reading.prepare_indices(recipe, run, "text", 1) == 2 * 4 + 3, "validation is that of the other seed"


def state(folder: Path) -> dict:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_what_is_read_decides_the_sha256(values, tmp_path):
    parts = reading.blends(recipe_from_dict(values), RunFolder(tmp_path), "mixed")[0]
    assert parts == Blend.of((3.0, tmp_path / "web_train"), (1.0, tmp_path / "code_train"))
    shas = [parts.content_sha256(parts.manifests())]
    for weights, prefixes in (((1.0, 1.0), parts.prefixes), (parts.weights, parts.prefixes[::-1])):
        other = Blend(weights, prefixes)
        shas.append(other.content_sha256(other.manifests()))
    alone = Blend.of((1.0, tmp_path / "web_train"))
    assert len(set(shas)) == 3 and alone.content_sha256(alone.manifests()) == alone.manifests()[0].files["bin"].sha256


def test_data_of_another_tokenizer_and_too_little_validation_are_refused(values, opened, tmp_path):
    values["phases"]["text"]["validation_sequences"] = 48
    with pytest.raises(DataError, match=r"web_validation holds only 12 sequences, and its share .* takes 37"):
        opened(values)
    values["phases"]["text"]["validation_sequences"] = VALIDATION
    corpus(tmp_path / "code_train", IDS["code"], 170, 0, tokenizer="u")
    with pytest.raises(DataError, match=r"code_train: its tokenizer_sha256 is 'u', but that of .*web_train is 't'"):
        opened(values)


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        ([[1, "web"]], "no blend of different"),
        ([[1, "web"], [2, "web"]], "no blend of different"),
        ([[1, "web"], [0, "code"]], "not positive"),
        ([[1, "web"], [float("inf"), "code"]], "not a finite number"),
        ([[1, "web"], [1, "cod"]], "Did you mean 'code'"),
        ([[1, "web"], [1, "mixed"]], "a blend is of indexed datasets"),
        ([[1, "web"], [1, "small"]], "its vocab_size is 100, that of the first is 200"),
        ([["much", "web"], [1, "code"]], "expected float"),
    ],
)
def test_settings_that_are_refused(values, blend, message):
    values["datasets"]["small"] = {**values["datasets"]["web"], "vocab_size": 100}
    values["datasets"]["mixed"]["blend"] = blend
    with pytest.raises(ConfigError, match=message):
        recipe_from_dict(values)


def test_the_plan_and_the_frozen_recipe_know_blends(values, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.datasets["mixed"].blend == ((3.0, "web"), (1.0, "code")) and recipe.model_config("text").vocab_size
    assert [step.name.split(": ")[-1] for step in steps(recipe, RunFolder(tmp_path / "run"))] == [
        "convert transfer", "train", "report"]
