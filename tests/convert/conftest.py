"""Fixtures of the tests of conversion."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from sample_checkpoints import write_random

from megatron_nca.__main__ import main


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint of CONFIG with random weights."""
    return write_random(tmp_path / "trained")


@pytest.fixture
def recipe(tmp_path: Path, recipe_values: dict) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    return path


@pytest.fixture
def transfer(capsys: pytest.CaptureFixture) -> Callable:
    """Call `convert transfer` with some words; gives (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main(["convert", "transfer", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
