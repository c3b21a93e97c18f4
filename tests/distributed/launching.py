"""How the tests of this folder start real runs on real process groups."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

LAYOUTS = {
    "tp1pp1": {},
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "pp2vp2": {"pipeline": 2, "virtual_pipeline": 2},
    "tp2sp": {"tensor": 2, "sequence_parallel": True, "recompute": {"granularity": "selective"}},
    "cp2": {"context": 2, "recompute": {"granularity": "selective", "modules": ["core_attn", "mlp"]}},
    "dp2": {"data": 2},
    "dp2overlap": {"data": 2, "overlap_grad_reduce": True, "overlap_param_gather": True},
    "tp4": {"tensor": 4},
    "pp4": {"pipeline": 4, "recompute": {"granularity": "full", "method": "block", "layers": 1}},
    "pp4vp2": {"pipeline": 4, "virtual_pipeline": 2},
    "tp2cp2sp": {"tensor": 2, "context": 2, "sequence_parallel": True},
    "tp2pp2": {"tensor": 2, "pipeline": 2, "recompute": {"granularity": "full", "layers": 2}},
}
ZERO = {
    "zero1": {"zero_stage": 1, "data": 2},
    "zero2": {"zero_stage": 2, "data": 2, "overlap_grad_reduce": True},
    "zero3": {"zero_stage": 3, "data": 2, "recompute": {"granularity": "full", "method": "block", "layers": 4}},
    "tp2zero1": {"zero_stage": 1, "tensor": 2, "recompute": {"granularity": "selective"}},
    "tp2dp2zero3": {"zero_stage": 3, "tensor": 2, "data": 2},
}
LAYOUTS |= {name: {"engine": "deepspeed", **layout} for name, layout in ZERO.items()}
LAUNCHES = {
    1: ["tp1pp1", "bf16_tp1pp1", "frozen_tp1pp1"],
    2: [
        *("tp2", "pp2", "pp2vp2", "tp2sp", "cp2", "dp2", "dp2overlap", "bf16_tp2sp", "bf16_pp2vp2"),
        *("zero1", "zero2", "zero3", "tp2zero1", "bf16_zero1"),
    ],
    4: ["tp4", "pp4", "pp4vp2", "tp2cp2sp", "tp2pp2", "tp2dp2zero3", "frozen_tp2pp2"],
}
"""Ranks -> the phases that they train one after the other."""
CONTINUED = {
    "resharded": {"pp4vp2": "tp2"},
    "resumed": {"bf16_zero1": "bf16_zero1", "zero3": "zero3", "frozen_tp2pp2": "frozen_tp2pp2"},
    "crossed": {"dp2": "zero2", "zero1": "tp2"},
}
"""Run folder beside the first -> a phase -> the phase whose checkpoint of iteration 10 it goes on from."""
MICRO_BATCH_SIZES = {
    **dict.fromkeys(("pp2vp2", "pp4", "pp4vp2", "dp2overlap", "zero1", "zero2", "zero3"), 1),
    **dict.fromkeys(("tp2sp", "tp4", "tp2cp2sp"), 4),
}
"""Of all other layouts 2. Losses must not depend on it; small ones make many small collectives, slow on CPUs, but wrong
gradients of an interleaved pipeline show only with more micro-batches than stages."""
BETWEEN = 14
"""Where `tp1pp1` and `dp2overlap` save: between two validations, which would gather weights themselves."""
HALF = ("tp1pp1", "tp2sp", "pp2vp2", "zero1")
"""Layouts that are trained in bf16 too, as phases named bf16_<layout>."""
FROZEN = ("tp1pp1", "tp2pp2")
"""Layouts that are trained with parts frozen until their 13th iteration too, as phases named frozen_<layout>. The head
is on the last stage only."""
FREEZE = {"components": ["attention", "mlp@0:6", "head"], "iterations": 13}
HALFWAY = {"tp2", "dp2", "tp2pp2", "bf16_zero1", "zero2", "zero3", "frozen_tp2pp2"}
"""Phases that save at their 10th iteration too, where they are stopped and looked at."""
TIMES = {
    "iteration-time", "tokens-per-second", "throughput", "mem-rss-bytes", "wall-time", "training-time", "data-time"
}
"""What differs between two runs in the lines of metrics.jsonl."""
LAW = {"num_states": 3, "height": 6, "width": 6, "sequence_length": 64, "band": [0.05, 1.0], "score_frames": 5}


def recipe_values(iterations: int = 20, **phase: object) -> dict:
    """A tiny recipe whose every layout is a phase of its own, trained from the same initial weights."""
    common = {
        "dataset": "nca",
        "iterations": iterations,
        "global_batch_size": 4,
        "precision": "fp32",
        "validation_interval": 10,
        "validation_sequences": 4,
        "save_interval": 10,
        "optimizer": {"lr": 3e-3, "min_lr": 1e-4, "warmup_iterations": 3, "weight_decay": 0.1, "clip_grad": 1.0},
        **phase,
    }
    phases = {
        name: {**common, "parallel": layout, "micro_batch_size": MICRO_BATCH_SIZES.get(name, 2)}
        for name, layout in LAYOUTS.items()
    }
    phases |= {f"bf16_{name}": {**phases[name], "precision": "bf16"} for name in HALF}
    phases |= {f"frozen_{name}": {**phases[name], "freeze": FREEZE} for name in FROZEN}
    phases["zero3"]["async_save"] = True
    for name in set(phases) - HALFWAY:
        phases[name]["save_interval"] = iterations
    for name in ("tp1pp1", "dp2overlap"):
        phases[name]["save_interval"] = BETWEEN
    arms = {name: {"steps": [{"phase": name}]} for name in phases}
    return {
        "name": "layouts",
        "control": "tp1pp1",
        "seeds": [0],
        "model": {
            "num_layers": 8,
            "hidden_size": 32,
            "num_heads": 8,
            "num_query_groups": 4,
            "ffn_hidden_size": 64,
            "sequence_length": 64,
        },
        "datasets": {
            "nca": {"source": "nca", "law": LAW, "sequences": 48, "validation_sequences": 8},
        },
        "phases": phases,
        "arms": arms,
    }


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "megatron_nca", *map(str, arguments)]


def torchrun(ranks: int, *arguments: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        *map(str, arguments),
    ]


def execute(arguments: list[str], timeout: float = 900, check: bool = True) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=timeout)
    assert not check or result.returncode == 0, (
        f"{arguments} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}"
    )
    return result


def initialise(run: Path, first: str, arms: list[str]) -> None:
    """One initial checkpoint, linked into every arm: equal weights at every layout."""
    source = run / "arms" / first / "seed0" / first / "initial"
    execute(
        command(
            "convert",
            "transfer",
            "--carry",
            "none",
            "--to",
            source,
            "--recipe",
            run / "recipe.yaml",
            "--phase",
            first,
            "--seed",
            "5",
        )
    )
    for arm in arms:
        target = run / "arms" / arm / "seed0" / arm / "initial"
        if target != source:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)


def read_metrics(run: Path, arm: str, phase: str, kind: str) -> list[dict]:
    path = run / "arms" / arm / "seed0" / phase / "metrics.jsonl"
    return [line for line in map(json.loads, path.read_text().splitlines()) if line["type"] == kind]
