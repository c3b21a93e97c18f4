"""What a person sees of a training: the log line, metrics.jsonl, TensorBoard, Weights & Biases."""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("megatron.core")

from megatron_nca.account.devices import DEVICES, peak_of
from megatron_nca.config.recipe import Recipe, recipe_from_dict
from megatron_nca.errors import ConfigError
from megatron_nca.mcore.engine import StepResult
from megatron_nca.run_dir import PhaseFolder
from megatron_nca.train.boards import check, open_boards
from megatron_nca.train.clock import Clock
from megatron_nca.train.metrics import Machine, Metrics

MACHINE = Machine(flops_per_token=3_000_000, devices=2, peak_flops=1e12, memory=lambda: {"mem-max-allocated-bytes": 7})
SECONDS = 0.0001


def step(loss: float, skipped: bool = False) -> StepResult:
    return StepResult(loss=loss, grad_norm=0.5, learning_rate=1e-3, loss_scale=8.0, skipped=skipped)


@pytest.fixture
def recipe(recipe_values: dict) -> Recipe:
    recipe_values["phases"]["text"] |= {"log_interval": 2}
    return recipe_from_dict(recipe_values)


def open_metrics(recipe: Recipe, folder: Path, **settings: object) -> Metrics:
    return Metrics(PhaseFolder(folder), recipe.phases["text"], 64, settings.pop("machine", MACHINE), **settings)


def fields(line: str) -> dict[str, str]:
    assert line.endswith(" |")
    return dict(re.match(r"(.*?)(?::| (?=\s*\d+/))\s*(.*)", part.strip()).groups() for part in line[:-2].split(" | "))


def log_lines(recipe: Recipe, folder: Path, caplog: pytest.LogCaptureFixture, machine: Machine) -> list[str]:
    caplog.set_level(logging.INFO, "megatron_nca.train")
    with open_metrics(recipe, folder, machine=machine) as metrics:
        for iteration, result in enumerate((step(3.0), step(5.0), step(1e9, skipped=True), step(7.0), step(8.0)), 1):
            metrics.train(iteration, 2 * iteration, 2, result, SECONDS)
        metrics.train(6, 12, 2, step(math.nan), SECONDS)
    return [record.getMessage() for record in caplog.records if " iteration " in record.getMessage()]


def test_the_log_line_has_megatrons_fields_in_its_order_and_speaks_of_the_interval(recipe, tmp_path, caplog):
    first, second, third = (log_lines(recipe, tmp_path, caplog, MACHINE))
    assert re.match(r" \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] iteration        2/       6 "
                    r"\| consumed samples:            4 "
                    r"\| elapsed time per iteration \(ms\): 0\.1 \| throughput per GPU \(TFLOP/s/GPU\): 1\.9200 "
                    r"\| learning rate: 1\.000000E-03 \| global batch size:     2 \| lm loss: 4\.000000E\+00 "
                    r"\| loss scale: 8\.0 \| grad norm: 0\.500 \| number of skipped iterations:   0 "
                    r"\| number of nan iterations:   0 \| tokens per second: 1280000\.0 \| MFU \(%\): 192\.0 "
                    r"\| max allocated memory of rank 0 \(GB\): 0\.00 \| time left: ", first)
    assert "| lm loss: 7.000000E+00 |" in second and "| number of skipped iterations:   1 |" in second
    assert "| number of nan iterations:   1 |" in third and "| lm loss: NAN |" in third
    assert fields(third)["time left"] == "0:00:00"


def test_an_unknown_peak_is_said_and_a_cpu_shows_what_is_resident(recipe, tmp_path, caplog):
    machine = Machine(flops_per_token=1, devices=1, peak_flops=None, memory=lambda: {"mem-rss-bytes": 2_340_000_000})
    last = fields(log_lines(recipe, tmp_path, caplog, machine)[-1])
    assert last["MFU (%)"] == "unknown" and last["RSS memory of rank 0 (GB)"] == "2.34"
    lines = [json.loads(line) for line in PhaseFolder(tmp_path).metrics.read_text().splitlines()]
    assert {line["mfu"] for line in lines} == {None}


def test_shares_of_the_wall_time_go_on_over_a_resume(recipe, tmp_path):
    def train(metrics: Metrics, clock: Clock, iteration: int) -> dict:
        with clock.steps:
            with clock.waiting:
                sum(range(200_000))
            sum(range(200_000))
        metrics.train(iteration, 2 * iteration, 2, step(1.0), clock.steps.last)
        return json.loads(PhaseFolder(tmp_path).metrics.read_text().splitlines()[-1])

    with open_metrics(recipe, tmp_path, clock=(clock := Clock())) as metrics:
        one = train(metrics, clock, 1)
        two = train(metrics, clock, 2)
    assert one["training-time"] + one["data-time"] == pytest.approx(one["iteration-time"])
    assert 0 < one["training-time"] + one["data-time"] < one["wall-time"]
    assert two["training-time"] > one["training-time"] and two["data-time"] > one["data-time"]
    with open_metrics(recipe, tmp_path, resumed_at=1, clock=(clock := Clock())) as metrics:
        again = train(metrics, clock, 2)
    for key in ("training-time", "data-time", "wall-time"):
        assert again[key] > one[key]
    assert again["training-time"] < one["training-time"] + again["iteration-time"]


def write_two_steps(recipe: Recipe, folder: Path, resumed_at: int = 0) -> None:
    """Iterations 1 and 2, or the second alone, and a validation."""
    boards = lambda: open_boards(recipe, PhaseFolder(folder), "scratch/seed0/text", resumed_at)  # noqa: E731
    with open_metrics(recipe, folder, resumed_at=resumed_at, boards=boards) as metrics:
        for iteration in range(resumed_at + 1, 3):
            metrics.train(iteration, 2 * iteration, 2, step(4.0 - iteration), SECONDS)
        metrics.validation(2, 4, 2.5, [None, 2.5], 32)


SCALARS = {"lm loss", "learning-rate", "grad-norm", "loss-scale", "batch-size", "iteration-time", "throughput",
           "mem-max-allocated-bytes", "lm loss validation", "lm loss validation ppl"}
"""Keys of Megatron-LM."""
OURS = {"tokens-per-second", "mfu"}


def test_tensorboard_has_megatrons_keys(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_two_steps(recipe, tmp_path)
    board = EventAccumulator(str(PhaseFolder(tmp_path).tensorboard))
    board.Reload()
    by_samples = {"lm loss", "learning-rate", "batch-size", "loss-scale", "grad-norm", "lm loss validation",
                  "lm loss validation ppl"}
    assert set(board.Tags()["scalars"]) == SCALARS | OURS | {f"{key} vs samples" for key in by_samples}
    assert [(event.step, event.value) for event in board.Scalars("lm loss")] == [(1, 3.0), (2, 2.0)]
    assert [(event.step, event.value) for event in board.Scalars("lm loss vs samples")] == [(2, 3.0), (4, 2.0)]


def test_weights_and_biases_offline_has_megatrons_keys_and_a_resume_its_run(recipe_values, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe = recipe_from_dict({**recipe_values, "wandb": {"project": "automata", "mode": "offline"}})
    write_two_steps(recipe, tmp_path)
    first = PhaseFolder(tmp_path).wandb_id.read_text()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows, identity = history(path)
    assert set().union(*rows) >= SCALARS | OURS | {"samples vs steps"}
    assert [(row["_step"], row["lm loss"]) for row in rows if "lm loss" in row] == [(1, 3.0), (2, 2.0)]
    assert identity == ("automata", "tiny", "scratch/seed0/text")
    write_two_steps(recipe, tmp_path, resumed_at=1)
    assert {path.stem for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb")} == {f"run-{first}"}


def log_records(content: bytes) -> Iterator[bytes]:
    """Of a file in LevelDB's log format behind 7 bytes of its own: blocks of 32 KiB, fragments with crc, size, kind."""
    record, place = b"", 7
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # a block's tail that no header fits into
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last fragment
            yield record
            record = b""


def history(path: Path) -> tuple[list[dict], tuple[str, str, str]]:
    """The logged rows of a run's file, and its project, group and name; a process of wandb's own ends the file."""
    from wandb.proto import wandb_internal_pb2

    deadline, kinds = time.monotonic() + 60, {}
    while "exit" not in kinds and time.monotonic() < deadline:
        time.sleep(0.05)
        kinds = {}
        for data in log_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kinds.setdefault(record.WhichOneof("record_type"), []).append(record)
    run = kinds["run"][0].run
    rows = [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in kinds["history"]]
    return rows, (run.project, run.run_group, run.display_name)


def test_weights_and_biases_that_is_not_installed_is_one_message(recipe_values, tmp_path, monkeypatch):
    recipe = recipe_from_dict({**recipe_values, "wandb": {"project": "automata"}})
    monkeypatch.setitem(sys.modules, "wandb", None)  # how Python marks what cannot be imported
    with pytest.raises(ConfigError, match=r"wandb.project = 'automata': the package wandb is not installed. Cure: pip"):
        check(recipe)
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb").mkdir()  # as earlier runs leave it where they were started
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match="not installed"):
        check(recipe)
    check(recipe_from_dict(recipe_values))


def test_a_wrong_setting_is_refused(recipe_values):
    with pytest.raises(ConfigError, match=r"wandb\.project = ''"):
        recipe_from_dict({**recipe_values, "wandb": {"project": ""}})
    with pytest.raises(ConfigError, match="log_interval = 0"):
        recipe_values["phases"]["text"]["log_interval"] = 0
        recipe_from_dict(recipe_values)


def test_the_peak_is_that_of_the_very_card():
    assert peak_of("NVIDIA H100 80GB HBM3", "bf16") == DEVICES["h100"].tflops * 1e12
    assert peak_of("NVIDIA H100 80GB HBM3", "fp32") == DEVICES["h100"].tflops_fp32 * 1e12
    assert peak_of("NVIDIA H100 PCIe", "bf16") is None and peak_of("CPU", "fp32") is None
    assert peak_of("NVIDIA H200", "bf16", fp8=True) is None
