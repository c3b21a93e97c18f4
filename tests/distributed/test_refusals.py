"""What a user can get wrong ends all ranks with the same message, and leaves nothing under a final name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from launching import command, execute, torchrun

from megatron_nca import file_list

WORKER = Path(__file__).parent / "worker.py"
PHASE = "tp2"


def initial(run: Path) -> Path:
    return run / f"arms/{PHASE}/seed0/{PHASE}/initial"


def no_initial_checkpoint(run: Path) -> None:
    shutil.rmtree(initial(run))


def other_vocabulary(run: Path) -> None:
    """Megatron itself would fill the missing rows with zeros and train on."""
    small = run / "small"
    execute(
        command(
            "convert",
            "transfer",
            "--from",
            initial(run),
            "--carry",
            "all",
            "--to",
            small,
            "--vocab-size",
            300,
            "--seed",
            1,
        )
    )
    shutil.rmtree(initial(run))
    small.rename(initial(run))


def torn_weights(run: Path) -> None:
    file = next(initial(run).glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1000])


def flipped_bit(run: Path) -> None:
    file = next(initial(run).glob("*.distcp"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def torn_metadata(run: Path) -> None:
    file = initial(run) / ".metadata"
    file.write_bytes(file.read_bytes()[:-20])


def hostile_metadata(run: Path) -> None:
    """A pickle that would make a file on loading, in a list of files that agrees with it."""
    mark = str(run / "executed").encode()
    (initial(run) / ".metadata").write_bytes(b"cbuiltins\nopen\n(S'" + mark + b"'\nS'w'\ntR.")
    file_list.write(initial(run))


def hostile_common(run: Path) -> None:
    (initial(run) / "common.pt").write_bytes(b"cbuiltins\nopen\n(S'" + str(run / "executed").encode() + b"'\nS'w'\ntR.")
    file_list.write(initial(run))


def truncated_data(run: Path) -> None:
    file = run / "data/nca/train.bin"
    file.write_bytes(file.read_bytes()[:-2])


def foreign_index(run: Path) -> None:
    file = run / "data/nca/validation.idx"
    file.write_bytes(b"x" * file.stat().st_size)


def missing_data(run: Path) -> None:
    (run / "data/nca/train.json").unlink()


def full(run: Path) -> None:
    """The worker limits the size of files for a folder of this name."""


def full_in_background(run: Path) -> None:
    full(run)
    save_in_background(run)


def killed_writer(run: Path) -> None:
    """The worker lets the writer of the second rank end by SIGKILL for a folder of this name."""
    save_in_background(run)


def save_in_background(run: Path) -> None:
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values["phases"][PHASE]["async_save"] = True
    (run / "recipe.yaml").write_text(yaml.safe_dump(values))


def diverging(run: Path) -> None:
    """Weights of 1e30 after the first update."""
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values["phases"][PHASE]["optimizer"] |= {"lr": 1e30, "min_lr": 1e30, "warmup_iterations": 0}
    (run / "recipe.yaml").write_text(yaml.safe_dump(values))


CASES: dict[Callable, list[str]] = {
    no_initial_checkpoint: ["there is no initial checkpoint", "convert transfer"],
    other_vocabulary: ["holds another model", "vocab_size is 300, expected 83"],
    torn_weights: ["initial checkpoint is not whole", ".distcp has", "its list says"],
    flipped_bit: ["initial checkpoint is not whole", ".distcp has been changed"],
    torn_metadata: ["initial checkpoint is not whole", ".metadata has"],
    hostile_metadata: [".metadata", "builtins.open"],
    hostile_common: ["common.pt", "was not loaded"],
    truncated_data: ["train.bin", "its manifest says"],
    foreign_index: ["validation.idx"],
    missing_data: ["train.json", "Cure"],
    full: ["saving iteration 10 failed", "File too large", "free space"],
    full_in_background: ["saving iteration 10 failed", "File too large", "free space"],
    diverging: ["at iteration 2 of phase tp2", "is not finite", "No update was made with it", "on_bad_loss"],
    killed_writer: ["saving iteration 10 failed", "rank 1: ", "was killed by SIGKILL"],
}


@pytest.fixture(scope="module")
def refusals(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """All cases in one launch of two ranks; by case, what each rank said."""
    folder = tmp_path_factory.mktemp("refused")
    for case in CASES:
        run = folder / case.__name__
        shutil.copytree(run_folder / "data", run / "data")
        shutil.copy(run_folder / "recipe.yaml", run)
        shutil.copytree(run_folder / "arms/tp1pp1/seed0/tp1pp1/initial", initial(run))
        case(run)
    runs = [folder / case.__name__ for case in CASES]
    result = execute(torchrun(2, WORKER, "--refused", *(f"{run}::{PHASE}" for run in runs)))
    said: dict[str, list[dict]] = {case.__name__: [] for case in CASES}
    for line in result.stdout.splitlines():
        if line.startswith('{"case"'):
            values = json.loads(line)
            said[Path(values["case"].split("::")[0]).name].append(values)
    for run in runs:
        assert not (run / "executed").exists()
        assert not list(run.glob("arms/*/seed0/*/checkpoints/*iter_*")), f"{run.name}: a checkpoint appeared"
    return said


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_rank_says_what_is_wrong(refusals: dict[str, list[dict]], case: Callable) -> None:
    said = refusals[case.__name__]
    assert sorted(line["rank"] for line in said) == [0, 1]
    for line in said:
        for words in CASES[case]:
            assert words in line["error"], line
    assert said[0]["error"] == said[1]["error"]
