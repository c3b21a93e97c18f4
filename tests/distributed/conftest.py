"""Data, recipe and initial checkpoints once, then a few launches for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from launching import CONTINUED, LAUNCHES, command, execute, initialise, recipe_values, torchrun

WORKER = Path(__file__).parent / "worker.py"


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the recipe, the automata dataset and the initial checkpoint of every layout."""
    run = tmp_path_factory.mktemp("layouts")
    values = recipe_values()
    (run / "recipe.yaml").write_text(yaml.safe_dump(values))
    for part in ("train", "validation"):
        execute(
            command("generate", "--recipe", run / "recipe.yaml", "--dataset", "nca", "--part", part, "--run-dir", run)
        )
    initialise(run, "tp1pp1", list(values["arms"]))
    return run


@pytest.fixture(scope="session")
def trained(run_folder: Path) -> Path:
    """Every layout trained for 20 iterations, some again from others' tenth, in one launch per world size."""
    assert {phase for phases in LAUNCHES.values() for phase in phases} == set(recipe_values()["phases"])
    for ranks, phases in LAUNCHES.items():
        jobs = [f"{run_folder}::{phase}" for phase in phases]
        execute(torchrun(ranks, WORKER, *jobs, *continued(run_folder, phases)), timeout=900)
    return run_folder


def continued(run: Path, phases: list[str]) -> Iterator[str]:
    """What the worker does for those of CONTINUED that are among `phases`."""
    for name, pairs in CONTINUED.items():
        other = run / name
        other.mkdir(exist_ok=True)
        for link in ("recipe.yaml", "data"):
            if not (other / link).exists():
                (other / link).symlink_to(run / link)
        for phase in set(pairs) & set(phases):
            folder, source = other / f"arms/{phase}/seed0/{phase}", pairs[phase]
            folder.mkdir(parents=True)
            (folder / "initial").symlink_to(run / "arms/tp1pp1/seed0/tp1pp1/initial")
            half = run / f"arms/{source}/seed0/{source}/checkpoints/iter_0000010"
            yield f"{half}=>{folder / 'checkpoints' / half.name}"
            yield f"{other}::{phase}"
