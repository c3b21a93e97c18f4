"""A campaign: one training killed by SIGKILL fifty times, most often in the middle of a save, and started again.

The parent has imported all and joined no group, so that a restart is a fork.
"""

import json
import logging
import os
import random
import signal
import time
from pathlib import Path

import pytest
import yaml
from launching import TIMES, command, execute, initialise, recipe_values

from megatron_nca import file_list
from megatron_nca.mcore.torch_dist import TorchDistReader

KILLS = 50
ITERATIONS = 400
PHASE = "tp1pp1"


def make_run(folder: Path, data: Path | None, in_background: bool) -> Path:
    """A run folder; data and initial checkpoint are those of the run `data`, or made."""
    values = recipe_values(iterations=ITERATIONS)
    values["model"]["num_layers"] = 2
    values["phases"] = {PHASE: {
        **values["phases"][PHASE], "save_interval": 5, "keep_every": 100, "validation_interval": 50,
        "attention_dropout": 0.1, "async_save": in_background, "micro_batch_size": 4,
    }}  # fmt: skip
    values["arms"] = {PHASE: {"steps": [{"phase": PHASE}]}}
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    phase = folder / f"arms/{PHASE}/seed0/{PHASE}"
    if data is None:
        for part in ("train", "validation"):
            words = ["--recipe", folder / "recipe.yaml", "--dataset", "nca", "--part", part, "--run-dir", folder]
            execute(command("generate", *words))
        initialise(folder, PHASE, [])
    else:
        (folder / "data").symlink_to(data / "data")
        phase.mkdir(parents=True)
        (phase / "initial").symlink_to(data / phase.relative_to(folder) / "initial")
    return folder


def start(run: Path) -> int:
    """Fork a training; its words go to the file `said`, anew."""
    (run / "said").write_text("")
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        said = os.open(run / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        train_here(run)
        status = 0
    finally:
        os._exit(status)


def train_here(run: Path) -> None:
    from worker import job

    from megatron_nca.mcore.parallel import read_ranks
    from megatron_nca.train.loop import train

    logger = logging.getLogger("megatron_nca")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [logging.FileHandler(run / "said")]
    train(job(f"{run}::{PHASE}"), read_ranks())


def series(run: Path) -> Path:
    return run / f"arms/{PHASE}/seed0/{PHASE}/checkpoints"


def newest(run: Path) -> int:
    """Iteration of the newest checkpoint; all that have a final name must be whole."""
    found = sorted(series(run).glob("iter_*"))
    for path in found:
        assert file_list.flaws(path, (0, 1)) == [], path
        assert TorchDistReader(path).table
    return int(found[-1].name.removeprefix("iter_")) if found else 0


def wait_for_a_moment(run: Path, process: int, chance: random.Random) -> str:
    """Until a random moment: of the start, of a save, or after one. Returns what it was."""
    kind = chance.choice(["start", "save", "save", "save", "after"])
    if kind == "start":
        time.sleep(chance.uniform(0, 1.5))
        return kind
    before, published = set(series(run).glob("iter_*")), set()
    goal = chance.randrange(kind == "after", 3)
    while len(published) < goal or (kind == "save" and not any(series(run).glob(".iter_*.tmp"))):
        published |= set(series(run).glob("iter_*")) - before
        ended, status = os.waitpid(process, os.WNOHANG)
        assert not ended, (status, (run / "said").read_text())
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.1))
    return kind


def kill_often(run: Path, chance: random.Random) -> dict[str, int]:
    """Start, kill, look, until there have been KILLS; how many found a save under way."""
    counts = {"start": 0, "save": 0, "after": 0, "unfinished": 0}
    for number in range(KILLS):
        before = newest(run)
        process = start(run)
        kind = wait_for_a_moment(run, process, chance)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        said = (run / "said").read_text()
        assert os.WIFSIGNALED(status), (number, said)
        if "phase tp1pp1" in said:
            assert f"{'resumed' if before else 'started'} at iteration {before}," in said, said
        assert newest(run) >= before
        counts[kind] += 1
        counts["unfinished"] += any(series(run).glob(".iter_*"))
    return counts


def lines(run: Path) -> list[dict]:
    text = (series(run).parent / "metrics.jsonl").read_text()
    return [{key: value for key, value in line.items() if key not in TIMES}
            for line in map(json.loads, text.splitlines())]  # fmt: skip


@pytest.mark.long
def test_fifty_kills_and_the_same_floats(tmp_path: Path) -> None:
    import megatron_nca.mcore.cpu as cpu

    cpu.install()
    import megatron_nca.mcore.sharded  # noqa: F401  so that forks need not

    unbroken = make_run(tmp_path / "unbroken", None, False)
    assert os.waitpid(start(unbroken), 0)[1] == 0, (unbroken / "said").read_text()
    for in_background in (False, True):
        run = make_run(tmp_path / f"background-{in_background}", unbroken, in_background)
        counts = kill_often(run, random.Random(in_background))
        reached = newest(run)
        assert os.waitpid(start(run), 0)[1] == 0, (run / "said").read_text()
        print(f"async_save {in_background}: {KILLS} kills by iteration {reached} of {ITERATIONS}, {counts}")
        assert counts["unfinished"] > KILLS / 5, "too few kills hit a save"
        assert ITERATIONS / 4 < reached < ITERATIONS, "restarts must have gone on from checkpoints, each time"
        assert lines(run) == lines(unbroken)
        names = sorted(path.name for path in series(run).iterdir())
        kept = [f"iter_{iteration:07d}" for iteration in (100, 200, 300, 395, 400)]
        assert names == [*kept, "latest_checkpointed_iteration.txt"]
        assert newest(run) == ITERATIONS
