"""One model, one data, many layouts: the same losses; a killed run: the same floats."""

import json
import logging
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from launching import BETWEEN, CONTINUED, LAUNCHES, REPOSITORY, TIMES, command, execute, read_metrics, torchrun

from megatron_nca.config.recipe import load_recipe
from megatron_nca.mcore.engine import Ranks
from megatron_nca.mcore.torch_dist import TorchDistReader
from megatron_nca.run_dir import RunFolder
from megatron_nca.train.loop import Job, train

PHASES = [phase for phases in LAUNCHES.values() for phase in phases if not phase.endswith("tp1pp1")]


def reference(phase: str) -> tuple[str, float]:
    """The phase on one rank that a layout must equal, and how closely."""
    if phase.startswith("bf16_"):
        return "bf16_tp1pp1", 5e-3
    return ("frozen_tp1pp1" if phase.startswith("frozen_") else "tp1pp1"), 1e-5


@pytest.mark.parametrize("phase", PHASES)
def test_losses_do_not_depend_on_the_layout(trained: Path, phase: str) -> None:
    one, tolerance = reference(phase)
    expected = read_metrics(trained, one, one, "train")
    found = read_metrics(trained, phase, phase, "train")
    assert [line["iteration"] for line in found] == list(range(1, 21))
    learnt = expected[0]["lm loss"] - expected[-1]["lm loss"]
    assert learnt > (0.2 if one.startswith("frozen_") else 0.5), "the model must learn, or equality says little"
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["lm loss"] == pytest.approx(theirs["lm loss"], rel=tolerance)
        assert ours["grad-norm"] == pytest.approx(theirs["grad-norm"], rel=100 * tolerance)
        assert ours["learning-rate"] == theirs["learning-rate"]


@pytest.mark.parametrize("phase", PHASES)
def test_validation_by_frame_does_not_depend_on_the_layout(trained: Path, phase: str) -> None:
    one, tolerance = reference(phase)
    expected = read_metrics(trained, one, one, "validation")
    found = read_metrics(trained, phase, phase, "validation")
    assert [line["iteration"] for line in found] == [0, 10, 20]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["lm loss validation"] == pytest.approx(theirs["lm loss validation"], rel=tolerance)
        assert ours["loss by position"][0] is None, "the first frame carries no loss"
        assert ours["loss by position"][1:] == pytest.approx(theirs["loss by position"][1:], rel=10 * tolerance)


@pytest.mark.parametrize("phase", [phase for phase in PHASES if not phase.startswith("bf16_")])
def test_checkpoints_hold_the_same_weights(trained: Path, phase: str) -> None:
    """Also those that another rank has just updated, and those of every chunk of an interleaved pipeline."""
    when = f"iter_{BETWEEN if phase == 'dp2overlap' else 20:07d}"
    ours, theirs = (
        TorchDistReader(trained / f"arms/{name}/seed0/{name}/checkpoints/{when}")
        for name in (phase, reference(phase)[0])
    )
    assert set(ours.table) == set(theirs.table)
    for key in ours.table:
        if not key.startswith("optimizer."):
            torch.testing.assert_close(ours.read(key), theirs.read(key), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "phase"), [("resharded", "pp4vp2"), *(("crossed", phase) for phase in CONTINUED["crossed"])]
)
def test_a_checkpoint_resumes_at_another_layout_and_in_the_other_engine(
    trained: Path, folder: str, phase: str
) -> None:
    """Weights and optimizer: TP2 to PP4 with virtual stages, from DeepSpeed to Megatron and back."""
    found = read_metrics(trained / folder, phase, phase, "train")
    expected = read_metrics(trained, "tp1pp1", "tp1pp1", "train")[10:]
    assert [line["iteration"] for line in found] == list(range(11, 21))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["lm loss"] == pytest.approx(theirs["lm loss"], rel=1e-5)
        assert ours["learning-rate"] == theirs["learning-rate"]


def test_frozen_parts_keep_every_bit_on_every_rank(trained: Path) -> None:
    """Of three halves of the model, one of them on another stage than the first rank's."""
    folder = trained / "arms/frozen_tp2pp2/seed0/frozen_tp2pp2"
    start, frozen, after = (TorchDistReader(folder / name) for name in
                            ("initial", "checkpoints/iter_0000010", "checkpoints/iter_0000020"))
    layers = "decoder.layers."
    kept = [(f"{layers}self_attention.linear_qkv.weight", None), (f"{layers}self_attention.linear_proj.weight", None),
            ("output_layer.weight", None), *((f"{layers}mlp.linear_fc2.weight", layer) for layer in range(6))]
    for key, layer in kept:
        before = start.read(key, layer)
        assert torch.equal(frozen.read(key, layer), before) and not torch.equal(after.read(key, layer), before), key
        assert not frozen.read(f"optimizer.state.exp_avg.{key}", layer).any()
    trained_keys = [("embedding.word_embeddings.weight", None), *((kept[3][0], layer) for layer in (6, 7))]
    assert not any(torch.equal(frozen.read(key, layer), start.read(key, layer)) for key, layer in trained_keys)


@pytest.mark.parametrize("phase", CONTINUED["resumed"])
def test_a_resume_goes_on_with_the_same_floats(trained: Path, phase: str) -> None:
    """DeepSpeed's in bf16 too, where only the fp32 weights of the optimizer say where it was; over a switch."""
    for kind, since in (("train", 10), ("validation", 1)):
        found, expected = (
            [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
            for lines in (
                read_metrics(trained / "resumed", phase, phase, kind),
                read_metrics(trained, phase, phase, kind)[since:],
            )
        )
        assert found == expected and found[-1]["iteration"] == 20


def test_a_checkpoint_says_that_deepspeed_made_it(trained: Path) -> None:
    folder = trained / "arms/zero3/seed0/zero3/checkpoints/iter_0000020"
    values = json.loads((folder / "provenance.json").read_text())
    assert set(values["software"]) == {"megatron_nca", "commit", "python", "torch", "megatron-core", "deepspeed"}
    assert (values["parallel"]["engine"], values["parallel"]["zero_stage"]) == ("deepspeed", 3)


def test_checkpoints_and_done_record(trained: Path) -> None:
    folder = trained / "arms/tp2pp2/seed0/tp2pp2"
    done = json.loads((folder / "done.json").read_text())
    assert done["iterations"] == 20 and done["checkpoint"] == "checkpoints/iter_0000020"
    assert done["consumed tokens"] == 20 * 4 * 64
    assert (folder / "checkpoints/latest_checkpointed_iteration.txt").read_text() == "20"
    assert sorted(path.name for path in (folder / "checkpoints").glob("iter_*")) == ["iter_0000010", "iter_0000020"]
    assert not list(folder.glob("checkpoints/.*")), "nothing half-written stays"


def test_a_run_killed_at_iteration_ten_resumes_with_the_same_floats(trained: Path, tmp_path: Path, caplog) -> None:
    """TP2: SIGKILL after the first checkpoint, then the same command again. Both read copies of the data."""
    run = tmp_path / "killed"
    run.mkdir()
    for name in ("recipe.yaml", "data"):
        (run / name).symlink_to(trained / name)
    folder = run / "arms/tp2/seed0/tp2"
    folder.mkdir(parents=True)
    (folder / "initial").symlink_to(trained / "arms/tp1pp1/seed0/tp1pp1/initial")
    launch = torchrun(
        2, "-m", "megatron_nca", "train", run / "recipe.yaml", "--phase", "tp2", "--arm", "tp2", "--run-dir", run,
        "--copy-data-to", tmp_path / "disk",
    )  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(launch, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
        _wait_for(folder / "checkpoints/latest_checkpointed_iteration.txt", process, tmp_path / "log")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (folder / "done.json").exists()
    said = execute(launch).stderr
    assert "resumed at iteration 10" in said and f"data: read from copies in {tmp_path / 'disk'} of" in said
    assert "MFU is unknown" in said
    assert not re.search("deprecated|experimental|Warning", said, re.I), "what Megatron says of itself is left out"
    shown = r"iteration       20/      20 \| .* throughput per GPU \(TFLOP/s/GPU\): 0\.\d+ \| .*time left: 0:00:00"
    assert re.search(shown, said)
    for kind in ("train", "validation"):
        timeless = [
            [
                {key: value for key, value in line.items() if key not in TIMES}
                for line in read_metrics(where, "tp2", "tp2", kind)
            ]
            for where in (run, trained)
        ]
        assert timeless[0] == timeless[1]
    with caplog.at_level(logging.INFO):
        recipe = load_recipe(run / "recipe.yaml")
        assert train(Job(recipe=recipe, phase="tp2", arm="tp2", seed=0, run=RunFolder(run)), Ranks(0, 2, 0))
    assert "is whole, nothing to do" in caplog.text


def _wait_for(path: Path, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


def test_a_second_launch_of_a_wrong_size_ends_with_one_message(run_folder: Path) -> None:
    result = execute(
        command("train", run_folder / "recipe.yaml", "--phase", "tp2", "--arm", "tp2", "--run-dir", run_folder),
        check=False,
    )
    assert result.returncode == 2
    assert "world size = 1" in result.stderr and "torchrun --nproc-per-node 2" in result.stderr
    assert "Traceback" not in result.stderr
