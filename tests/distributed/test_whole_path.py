"""A recipe walked from nothing to its report: automata at TP2, attention carried over, text at PP2."""

import json
import random
from pathlib import Path

import pytest
import yaml
from launching import LAW, command, execute

from megatron_nca.mcore.torch_dist import TorchDistReader

WORDS = ["def", "return", "import", "class", "self", "for", "in", "if", "else", "None", "True", "raise"]
ATTENTION = ("decoder.layers.self_attention.linear_qkv.weight", "decoder.layers.self_attention.linear_proj.weight")


def corpus(path: Path) -> Path:
    """A few hundred short documents with tabs, newlines and a letter outside ASCII."""
    generator = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(400):
            lines = ["\t" + " ".join(generator.choices(WORDS, k=12)) + f"  # né {number}" for _ in range(6)]
            file.write(json.dumps({"text": "\n".join(lines)}) + "\n")
    return path


def recipe(folder: Path) -> Path:
    phase = {
        "iterations": 4,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "precision": "fp32",
        "validation_interval": 2,
        "validation_sequences": 8,
        "save_interval": 4,
        "optimizer": {"lr": 1e-2},
    }
    values = {
        "name": "whole-path",
        "control": "scratch",
        "model": {
            "num_layers": 2,
            "hidden_size": 32,
            "num_heads": 4,
            "ffn_hidden_size": 64,
            "sequence_length": 64,
        },
        "datasets": {
            "automata": {"source": "nca", "law": LAW, "sequences": 32, "validation_sequences": 8},
            "text": {"source": "corpus", "input": str(corpus(folder / "text.jsonl")), "vocab_size": 300},
        },
        "phases": {
            "nca": {**phase, "dataset": "automata", "parallel": {"tensor": 2}},
            "text": {**phase, "dataset": "text", "parallel": {"pipeline": 2}},
        },
        "arms": {
            "scratch": {"steps": [{"phase": "text"}]},
            "attention": {"steps": [{"phase": "nca"}, {"phase": "text", "start": {"carry": ["attention"]}}]},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    folder = tmp_path_factory.mktemp("whole path")  # with a space, as users have them
    path, run = recipe(folder), folder / "run"
    return path, run, execute(command("run", path, "--run-dir", run)).stdout


def test_the_last_lines_are_the_ratio(walked: tuple[Path, Path, str]) -> None:
    _, run, said = walked
    assert "attention / scratch perplexity ratio: " in "\n".join(said.splitlines()[-4:])
    assert (run / "report/curves.png").stat().st_size > 10_000
    assert "attention" in (run / "report/report.md").read_text()


def test_attention_is_carried_bit_for_bit_and_all_else_starts_as_the_control_does(walked: tuple) -> None:
    _, run, _ = walked
    before = TorchDistReader(run / "arms/attention/seed0/nca/checkpoints/iter_0000004")
    after = TorchDistReader(run / "arms/attention/seed0/text/initial")
    control = TorchDistReader(run / "arms/scratch/seed0/text/initial")
    assert set(after.table) == set(control.table)
    for key in after.table:
        same_as = before if key in ATTENTION else control
        assert (after.read(key) == same_as.read(key)).all(), key
    assert not (after.read(ATTENTION[0]) == control.read(ATTENTION[0])).all()


def test_the_next_phase_trained_at_another_layout(walked: tuple) -> None:
    _, run, _ = walked
    for arm in ("scratch", "attention"):
        lines = (run / f"arms/{arm}/seed0/text/metrics.jsonl").read_text().splitlines()
        losses = [line["lm loss"] for line in map(json.loads, lines) if line["type"] == "train"]
        assert len(losses) == 4 and losses[-1] < losses[0]


def test_a_second_walk_does_nothing(walked: tuple) -> None:
    path, run, _ = walked
    files = [file for file in run.rglob("*") if file.is_file() and file.name != "source.txt"]
    before = {file: file.stat().st_mtime_ns for file in files}
    execute(command("run", path, "--run-dir", run))
    assert before == {file: file.stat().st_mtime_ns for file in before}
