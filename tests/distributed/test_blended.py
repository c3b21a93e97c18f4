"""A blend trained at two layouts and over a resume, its indices made ahead: the same losses, and no index built."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from launching import REPOSITORY, TIMES, command, execute, read_metrics

from megatron_nca.data.indexed import IndexedWriter

pytestmark = pytest.mark.long

OPTIMIZER = {"lr": 3e-3, "warmup_iterations": 2, "clip_grad": 1.0}


def corpus(prefix: Path, seed: int) -> str:
    rng = np.random.default_rng(seed)
    with IndexedWriter(prefix, 200) as writer:
        for _ in range(90):
            writer.add_document(np.cumsum(rng.integers(1, 4, rng.integers(9, 200))) % 100 + seed % 2 * 100)
        writer.finish({"kind": "corpus", "vocab_size": 200, "origin": {"tokenizer": {"sha256": "t"}}})
    return str(prefix)


def recipe(folder: Path) -> dict:
    datasets = {name: {"source": "indexed", "vocab_size": 200, "train_prefix": corpus(folder / name, number),
                       "validation_prefix": corpus(folder / f"{name}_held", number + 2)}
                for number, name in enumerate(("even", "odd"))}
    datasets["mixed"] = {"source": "blend", "blend": [[0.7, "even"], [0.3, "odd"]]}
    common = {"dataset": "mixed", "iterations": 20, "global_batch_size": 4, "micro_batch_size": 1, "precision": "fp32",
              "validation_interval": 10, "validation_sequences": 8, "save_interval": 10, "optimizer": OPTIMIZER}
    phases = {"one": common, "two": {**common, "parallel": {"data": 2}}}
    return {"name": "blended", "control": "one", "datasets": datasets, "phases": phases,
            "arms": {name: {"steps": [{"phase": name}]} for name in phases},
            "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "ffn_hidden_size": 64, "sequence_length": 64}}


def lines(run: Path, phase: str) -> list[dict]:
    found = read_metrics(run, phase, phase, "train") + read_metrics(run, phase, phase, "validation")
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


def test_a_blend_is_the_same_at_two_layouts_and_over_a_resume(tmp_path):
    run = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path)))
    tool = [command()[0], REPOSITORY / "data_tools/prepare_cache.py", tmp_path / "recipe.yaml", "--run-dir", run]
    assert "phase one, seed 0: 22 files made" in execute(list(map(str, tool))).stdout
    cache = run / "data/mixed/index_cache"
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    execute(command("run", tmp_path / "recipe.yaml", "--run-dir", run))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == made, "training builds no index"
    one, two = (lines(run, phase) for phase in ("one", "two"))
    assert len(one) == 23 and one[0]["lm loss"] - one[19]["lm loss"] > 0.2, "the model must learn"
    for a, b in zip(one, two, strict=True):
        key = "lm loss" if a["type"] == "train" else "lm loss validation"
        assert a[key] == pytest.approx(b[key], rel=1e-5)

    folder = run / "arms/two/seed0/two"
    shutil.rmtree(folder / "checkpoints/iter_0000020")
    (folder / "done.json").unlink()
    execute(command("run", tmp_path / "recipe.yaml", "--run-dir", run))
    assert "resumed at iteration 10" in (folder / "train.log").read_text()
    assert lines(run, "two") == two
