"""Data made on the nodes of a training: the same batches as from data made beforehand, whatever fails meanwhile.

Two ranks share each training's data-parallel batch, so both nodes of a pair need all the data.
"""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
from launching import REPOSITORY, TIMES, command, execute, read_metrics, recipe_values, torchrun

from megatron_nca.plan import BACKGROUND_NICE

PHASE = "dp2"
MANY = 400_000
"""Sequences that take the generator some ten seconds; 20 iterations read 80 of them."""
PATIENCE = 400
"""Seconds until what takes seconds on two quiet cores is taken for hung."""


@pytest.fixture
def initial(run_folder: Path) -> Path:
    """The initial checkpoint of all runs."""
    return run_folder / f"arms/{PHASE}/seed0/{PHASE}/initial"


def make_run(folder: Path, initial: Path, sequences: int, on_node: dict | None) -> Path:
    """A run folder with the recipe and the initial checkpoint."""
    folder.mkdir()
    values = recipe_values()
    values["datasets"]["nca"]["sequences"] = sequences
    if on_node is not None:
        values["datasets"]["nca"]["on_node"] = on_node
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    place = folder / f"arms/{PHASE}/seed0/{PHASE}/initial"
    place.parent.mkdir(parents=True)
    place.symlink_to(initial)
    return folder


def training(run: Path, *flags: object) -> list[str]:
    words = ["train", run / "recipe.yaml", "--phase", PHASE, "--arm", PHASE, "--run-dir", run]
    return torchrun(2, *flags, "-m", "megatron_nca", *words)


def start(launch: list[str], log: Path, node: Path | None = None) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NODE_FOLDER": str(node)}
    with open(log, "w") as file:
        return subprocess.Popen(launch, cwd=REPOSITORY, env=environment, stdout=file, stderr=file,
                                start_new_session=True)


@pytest.fixture
def few(trained: Path) -> Path:
    """A run trained on 48 sequences that lay in its folder: the phase of that name among all layouts."""
    return trained


@pytest.fixture(scope="module")
def many(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with MANY sequences."""
    initial = run_folder / f"arms/{PHASE}/seed0/{PHASE}/initial"
    run = make_run(tmp_path_factory.mktemp("many") / "run", initial, MANY, None)
    for name in ("train", "validation"):
        words = ["--recipe", run / "recipe.yaml", "--dataset", "nca", "--part", name, "--run-dir", run]
        execute(command("generate", *words))
    execute(training(run))
    return run


def lines(run: Path) -> list[dict]:
    """What both ranks measured together, without times."""
    found = [line for kind in ("train", "validation") for line in read_metrics(run, PHASE, PHASE, kind)]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


def check_same_data(node: Path, reference: Path) -> None:
    """Byte for byte, manifests included."""
    for name in ("train", "validation"):
        wanted = [(reference / f"data/nca/{name}.{ending}").read_bytes() for ending in ("bin", "idx", "json")]
        prefixes = [path.with_suffix("") for path in node.glob("nca-*.json")]
        found = [[Path(f"{prefix}.{end}").read_bytes() for end in ("bin", "idx", "json")] for prefix in prefixes]
        assert wanted in found, f"{name} is not among {prefixes}"


def test_in_the_background_over_two_epochs(few: Path, initial: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    run = make_run(tmp_path / "run", initial, 48, {"folder": str(node)})
    said = execute(training(run)).stderr
    assert lines(run) == lines(few)
    check_same_data(node, few)
    for name in ("train", "validation"):
        record = run / f"data/nca/{name}.json"
        assert record.read_bytes() == (few / f"data/nca/{name}.json").read_bytes()
    assert "data (% of wall time):" in said
    done = json.loads((run / f"arms/{PHASE}/seed0/{PHASE}/done.json").read_text())
    assert 0 < done["data-time"] < done["wall-time"]
    assert re.search(r"s of wall time: \d+\.\d\d % training, \d+\.\d\d % waiting for data", said)
    assert not list(node.glob(".nca-*.unfinished.*"))


def test_two_nodes_make_it_once_each_before_the_first_iteration(few: Path, initial: Path, tmp_path: Path) -> None:
    """Two agents with a rank each, and with node folders of their own; the run folder holds no data."""
    run = make_run(tmp_path / "run", initial, 48, {"folder": "$NODE_FOLDER/nca", "when": "start"})
    words = ["train", run / "recipe.yaml", "--phase", PHASE, "--arm", PHASE, "--run-dir", run]
    nodes = [tmp_path / "node0", tmp_path / "node1"]
    logs = [tmp_path / "log0", tmp_path / "log1"]
    port = 29_500 + os.getpid() % 400
    agents = []
    for rank in range(2):
        launch = torchrun(1, "-m", "megatron_nca", *words)
        place = launch.index("--standalone")
        meeting = ["--nnodes", "2", "--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port)]
        agents.append(start([*launch[:place], *meeting, *launch[place + 1 :]], logs[rank], nodes[rank]))
    for agent, log in zip(agents, logs, strict=True):
        assert agent.wait(timeout=PATIENCE) == 0, log.read_text()
    assert lines(run) == lines(few)
    for node in nodes:
        check_same_data(node / "nca", few)
    assert not list(run.glob("data/nca/*.bin"))


def generator_of(process: subprocess.Popen, log: Path) -> psutil.Process:
    """The generator that a training has started."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if "stage" in child.cmdline():
                    return child
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
    raise AssertionError(f"no generator: {log.read_text()}")


def wait_for(path: Path, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


def test_generator_and_ranks_killed_and_started_again(many: Path, initial: Path, tmp_path: Path) -> None:
    """First the generator is killed, then, after a checkpoint, the ranks are; the third launch has the same floats."""
    node, log = tmp_path / "node", tmp_path / "log"
    run = make_run(tmp_path / "run", initial, MANY, {"folder": str(node)})
    folder = run / f"arms/{PHASE}/seed0/{PHASE}"

    process = start(training(run), log)
    generator = generator_of(process, log)
    deadline = time.monotonic() + PATIENCE
    while generator.nice() < min(19, os.nice(0) + BACKGROUND_NICE):  # it lowers its priority itself; 19 is the lowest
        assert time.monotonic() < deadline
    generator.send_signal(signal.SIGSTOP)  # a generator that makes nothing more
    time.sleep(1)
    assert process.poll() is None, "training waits"
    generator.kill()
    assert process.wait(timeout=PATIENCE) != 0
    said = log.read_text()
    assert said.count("ended with signal SIGKILL") == 1 and "start this training again" in said
    assert "Traceback (most recent call last)" not in said.split("ChildFailedError")[0].split("torch/distributed")[0]

    process = start(training(run), log)
    wait_for(folder / "checkpoints/latest_checkpointed_iteration.txt", process, log)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "done.json").exists(), log.read_text()
    said = execute(training(run)).stderr
    assert "resumed at iteration 10" in said
    assert lines(run) == lines(many)
    assert "of 400,000 sequences were made; they are not kept" in said
    assert not list(node.glob(".nca-*.unfinished.*"))


def test_a_full_disk_ends_all_ranks_with_one_message(initial: Path, tmp_path: Path) -> None:
    """Files are limited to 1 MB for the generator's data; the training's own are smaller."""
    run = make_run(tmp_path / "run", initial, MANY, {"folder": str(tmp_path / "node")})
    result = execute(["bash", "-c", 'ulimit -f 1000; exec "$@"', "bash", *training(run)], check=False)
    assert result.returncode != 0
    assert result.stderr.count("File too large") == 1, result.stderr
    assert not list((tmp_path / "node").glob(".nca-*.unfinished.*"))
