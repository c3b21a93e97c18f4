"""A campaign: trainings killed by SIGKILL fifty times, most often in the middle of a save, and started again.

Of one rank, saving in the foreground and in the background, and of two ranks, of which one is killed first and the
other up to a second later, as a launcher would. The parent has imported all and joined no group, so that a restart is a
fork.
"""

import json
import logging
import os
import random
import signal
import socket
import time
import traceback
from pathlib import Path

import pytest
import yaml
from launching import TIMES, command, execute, initialise, recipe_values

from megatron_nca import file_list
from megatron_nca.mcore.torch_dist import TorchDistReader

KILLS = 50
ITERATIONS = 400
PHASE = "phase"


def make_run(folder: Path, data: Path | None, layout: str, in_background: bool) -> Path:
    """A run folder; data and initial checkpoint are those of the run `data`, or made."""
    values = recipe_values(iterations=ITERATIONS)
    values["model"]["num_layers"] = 2
    values["phases"] = {PHASE: {
        **values["phases"][layout], "save_interval": 5, "keep_every": 100, "validation_interval": 50,
        "attention_dropout": 0.1, "async_save": in_background, "micro_batch_size": 2,
    }}  # fmt: skip
    values["arms"], values["control"] = {PHASE: {"steps": [{"phase": PHASE}]}}, PHASE
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


def start(run: Path, ranks: int) -> list[int]:
    """Fork a training; the words of its first rank go to the file `said`, anew. Returns the ranks' processes."""
    (run / "said").write_text("")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start_rank(run, rank, ranks, port) for rank in range(ranks)]


def start_rank(run: Path, rank: int, ranks: int, port: int) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        said = os.open(run / ("said" if rank == 0 else f"said{rank}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
        train_here(run, rank)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def train_here(run: Path, rank: int) -> None:
    from worker import job

    from megatron_nca.mcore.parallel import read_ranks
    from megatron_nca.train.loop import train

    logger = logging.getLogger("megatron_nca")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [logging.FileHandler(run / ("said" if rank == 0 else f"said{rank}"))]
    train(job(f"{run}::{PHASE}"), read_ranks())


def ended_well(run: Path, ranks: int) -> bool:
    return all([os.waitpid(process, 0)[1] == 0 for process in start(run, ranks)])


def series(run: Path) -> Path:
    return run / f"arms/{PHASE}/seed0/{PHASE}/checkpoints"


def newest(run: Path) -> int:
    """Iteration of the newest checkpoint; all that have a final name must be whole."""
    found = sorted(series(run).glob("iter_*"))
    for path in found:
        assert file_list.flaws(path, (0, 1)) == [], path
        assert TorchDistReader(path).table
    return int(found[-1].name.removeprefix("iter_")) if found else 0


def wait_for_a_moment(run: Path, processes: list[int], chance: random.Random) -> str:
    """Until a random moment: of the start, of a save, or after one. Returns what it was."""
    kind = chance.choice(["start", "save", "save", "save", "after"])
    if kind == "start":
        time.sleep(chance.uniform(0, 1.5))
        return kind
    before, published = set(series(run).glob("iter_*")), set()
    goal = chance.randrange(kind == "after", 3)
    while len(published) < goal or (kind == "save" and not any(series(run).glob(".iter_*.tmp"))):
        published |= set(series(run).glob("iter_*")) - before
        for process in processes:
            ended, status = os.waitpid(process, os.WNOHANG)
            assert not ended, (status, (run / "said").read_text())
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.1))
    return kind


def kill(processes: list[int], chance: random.Random) -> None:
    """A rank, and the others while they wait for it, or go on without."""
    for process in chance.sample(processes, len(processes)):
        os.kill(process, signal.SIGKILL)
        time.sleep(chance.uniform(0, 1) if len(processes) > 1 else 0)
    states = [os.waitpid(process, 0)[1] for process in processes]
    assert any(map(os.WIFSIGNALED, states)) and all(states), states


def kill_often(run: Path, ranks: int, chance: random.Random) -> dict[str, int]:
    """Start, kill, look, until there have been KILLS; how many found a save under way."""
    counts = {"start": 0, "save": 0, "after": 0, "unfinished": 0}
    for _ in range(KILLS):
        before = newest(run)
        processes = start(run, ranks)
        kind = wait_for_a_moment(run, processes, chance)
        kill(processes, chance)
        said = (run / "said").read_text()
        if "phase phase, arm" in said:
            assert f"{'resumed' if before else 'started'} at iteration {before}," in said, said
        assert newest(run) >= before
        counts[kind] += 1
        counts["unfinished"] += any(series(run).glob(".iter_*"))
    return counts


def lines(run: Path) -> list[dict]:
    text = (series(run).parent / "metrics.jsonl").read_text()
    return [{key: value for key, value in line.items() if key not in TIMES}
            for line in map(json.loads, text.splitlines())]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that was only begun, for its data and initial weights."""
    import megatron_nca.mcore.cpu as cpu

    cpu.install()
    import megatron_nca.mcore.sharded  # noqa: F401  so that forks need not

    return make_run(tmp_path_factory.mktemp("killed") / "begun", None, "tp1pp1", False)


@pytest.mark.long
@pytest.mark.parametrize(("layout", "ranks"), [("tp1pp1", 1), ("dp2", 2)])
def test_fifty_kills_and_the_same_floats(layout: str, ranks: int, data: Path) -> None:
    unbroken = make_run(data.parent / f"unbroken-{layout}", data, layout, False)
    assert ended_well(unbroken, ranks), (unbroken / "said").read_text()
    for in_background in (False, True) if ranks == 1 else (True,):
        run = make_run(data.parent / f"{layout}-background-{in_background}", data, layout, in_background)
        counts = kill_often(run, ranks, random.Random(in_background))
        reached = newest(run)
        assert ended_well(run, ranks), (run / "said").read_text()
        print(f"{layout}, async_save {in_background}: {KILLS} kills by iteration {reached} of {ITERATIONS}, {counts}")
        assert counts["unfinished"] > KILLS / 5, "too few kills hit a save"
        assert ITERATIONS / 4 < reached < ITERATIONS, "restarts must have gone on from checkpoints, each time"
        assert lines(run) == lines(unbroken)
        names = sorted(path.name for path in series(run).iterdir())
        kept = [f"iter_{iteration:07d}" for iteration in (100, 200, 300, 395, 400)]
        assert names == [*kept, "latest_checkpointed_iteration.txt"]
        assert newest(run) == ITERATIONS
