"""A series of checkpoints: when one is published, which stay, which one is chosen. Ranks and tensors are fakes."""

import contextlib
import dataclasses
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_nca import file_list
from megatron_nca.config.model import ModelConfig
from megatron_nca.config.recipe import OptimizerConfig, Phase
from megatron_nca.config.run_config import RunConfig
from megatron_nca.errors import CheckpointError, DataError
from megatron_nca.mcore.engine import Ranks
from megatron_nca.run_dir import CheckpointFolder, PhaseFolder, RunFolder
from megatron_nca.train import checkpoints

MODEL = ModelConfig(num_layers=1, hidden_size=8, num_heads=1, ffn_hidden_size=8, sequence_length=8, vocab_size=9)
ONE = Ranks(rank=0, world_size=1, local_rank=0)


class FakeWriting:
    """A writer that is ready when the test says so."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_written, self.finished, self.abandoned = folder, False, False, False

    def finish(self) -> dict:
        (self.folder / "__0_0.distcp").write_bytes(b"tensors")
        self.finished = True
        return {}

    def abandon(self) -> None:
        self.abandoned = True


class FakeEngine:
    ranks, checkpoint_bytes = ONE, 1000

    def __init__(self, async_save: bool = False, keep: int = 2, keep_every: int | None = None) -> None:
        self.phase = SimpleNamespace(async_save=async_save, keep_checkpoints=keep, keep_every=keep_every)
        self.writings: list[FakeWriting] = []

    def start_save(self, folder: Path) -> FakeWriting:
        self.writings.append(FakeWriting(folder))
        return self.writings[-1]


@pytest.fixture
def series(tmp_path: Path) -> CheckpointFolder:
    return PhaseFolder(tmp_path / "phase").checkpoints


def saver(engine: FakeEngine, series: CheckpointFolder) -> checkpoints.Saver:
    return checkpoints.Saver(engine, series, lambda config: {"note": f"{config.iteration}"})


def at(iteration: int) -> RunConfig:
    return RunConfig(model=MODEL, iteration=iteration)


def names(series: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in series.path.iterdir() if not path.name.startswith("latest"))


def test_a_save_in_the_background_is_published_when_it_is_written(series: CheckpointFolder) -> None:
    engine = FakeEngine(async_save=True)
    saves = saver(engine, series)
    saves.save(at(10))
    saves.look()
    assert not engine.writings[0].finished and names(series)[0].startswith(".iter_0000010.")
    engine.writings[0].is_written = True
    saves.look()
    assert names(series) == ["iter_0000010"] and series.tracker.read_text() == "10"
    assert (series.iteration(10) / "note").read_text() == "10"
    assert file_list.flaws(series.iteration(10), (0, 1)) == []


def test_a_second_save_waits_for_the_first_and_the_end_for_the_last(series: CheckpointFolder) -> None:
    engine = FakeEngine(async_save=True)
    saves = saver(engine, series)
    saves.save(at(10))
    saves.save(at(20))
    assert [writing.finished for writing in engine.writings] == [True, False]
    saves.finish()
    assert names(series) == ["iter_0000010", "iter_0000020"]


def test_free_space_is_looked_at_after_the_save_under_way(
    series: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(async_save=True)
    saves = saver(engine, series)
    saves.save(at(10))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: SimpleNamespace(free=999 if engine.writings[0].finished else 10**9)
    )
    with pytest.raises(DataError, match=r"checkpoints = .*: needs .*, and in .* are free. Cure: free some space"):
        saves.save(at(20))
    assert names(series) == ["iter_0000010"]


def test_a_failed_training_gives_its_save_up(series: CheckpointFolder) -> None:
    engine = FakeEngine(async_save=True)
    saves = saver(engine, series)
    saves.save(at(10))
    saves.close()
    assert engine.writings[0].abandoned and names(series) == []


def test_what_stays(series: CheckpointFolder, tmp_path: Path) -> None:
    """The newest two, multiples of 40, and what the next phase is linked to."""
    run = RunFolder(tmp_path / "run")
    initial = run.phase("a", 0, "next").initial
    initial.parent.mkdir(parents=True)
    initial.symlink_to(series.iteration(30))
    engine = FakeEngine(keep=2, keep_every=40)
    saves = checkpoints.Saver(engine, series, lambda _: {}, run.linked_as_initial)
    for iteration in range(10, 101, 10):
        saves.save(at(iteration))
    assert names(series) == [f"iter_{n:07d}" for n in (30, 40, 80, 90, 100)]


def test_a_broken_one_does_not_count_as_kept(series: CheckpointFolder) -> None:
    saves = saver(FakeEngine(keep=2), series)
    for iteration in (10, 20):
        saves.save(at(iteration))
    (series.iteration(20) / "__0_0.distcp").write_bytes(b"torn")
    saves.save(at(30))
    assert names(series) == ["iter_0000010", "iter_0000020", "iter_0000030"]
    saves.save(at(40))
    assert names(series) == ["iter_0000030", "iter_0000040"]


def test_what_killed_trainings_left_is_removed(series: CheckpointFolder) -> None:
    for name in (".iter_0000010.ab.tmp", ".iter_0000005.cd.removed", "iter_0000004"):
        (series.path / name).mkdir(parents=True)
        (series.path / name / "__0_0.distcp").touch()
    saver(FakeEngine(), series)
    assert names(series) == ["iter_0000004"]


@pytest.mark.parametrize("damage", ["rotten", "torn", "gone", "unlisted"])
def test_the_newest_whole_one_is_used_and_a_broken_one_named(
    series: CheckpointFolder, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    saves = saver(FakeEngine(), series)
    for iteration in (10, 20):
        saves.save(at(iteration))
    data = series.iteration(20) / "__0_0.distcp"
    harm = {
        "rotten": lambda: data.write_bytes(b"tensorS"),
        "torn": lambda: data.write_bytes(b"tens"),
        "gone": data.unlink,
        "unlisted": (data.parent / "files.json").unlink,
    }
    harm[damage]()
    logging.getLogger("megatron_nca").propagate = True
    assert checkpoints.newest_whole(series, ONE, hashes=True) == series.iteration(10)
    assert "iter_0000020 is broken and is passed over" in caplog.text
    assert ("files.json" if damage == "unlisted" else "__0_0.distcp") in caplog.text
    shutil.rmtree(series.iteration(10))
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is whole"):
        checkpoints.newest_whole(series, ONE, hashes=True)


def test_without_hashes_only_sizes_are_compared(series: CheckpointFolder) -> None:
    saver(FakeEngine(), series).save(at(10))
    (series.iteration(10) / "__0_0.distcp").write_bytes(b"tensorS")
    assert checkpoints.newest_whole(series, ONE, hashes=False) == series.iteration(10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"micro_batch_size": 2, "iterations": 12}, None),
        ({"global_batch_size": 16}, "10 iterations took 80 sequences, .* global_batch_size = 16 .* would take 160"),
        ({"rampup_batch_size": (4, 4, 16)}, "took 80 sequences, .* would take 64"),
        ({"iterations": 9}, "is of iteration 10, and the phase ends at iterations = 9"),
    ],
)
def test_a_resume_on_another_course_is_refused(tmp_path: Path, changes: dict, message: str | None) -> None:
    """A schedule counts sequences: with twice the batch it would be at another rate, and end elsewhere."""
    reached = dataclasses.replace(at(10), consumed_sequences=80)
    settings = {"iterations": 20, "global_batch_size": 8, "micro_batch_size": 1, "validation_sequences": 8, **changes}
    phase = Phase(dataset="none", optimizer=OptimizerConfig(lr=1e-2), **settings)
    expected = pytest.raises(CheckpointError, match=message) if message else contextlib.nullcontext()
    with expected:
        checkpoints.check_same_course(reached, tmp_path, phase)
