"""Data, recipe and initial checkpoints once, then a few launches for all tests."""

from pathlib import Path

import pytest
import yaml
from launching import command, execute, initialise, recipe_values


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
