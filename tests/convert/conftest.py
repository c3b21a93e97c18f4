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


def _fixture(name: str, verb: str) -> Callable:
    """A fixture that calls `convert VERB` with some words; gives (exit code, stdout, stderr)."""

    @pytest.fixture(name=name)
    def fixture(capsys: pytest.CaptureFixture) -> Callable:
        def call(*words: object) -> tuple[int, str, str]:
            code = main(["convert", verb, *map(str, words)])
            captured = capsys.readouterr()
            return code, captured.out, captured.err

        return call

    return fixture


transfer = _fixture("transfer", "transfer")
convert = _fixture("convert", "format")
look = _fixture("look", "inspect")
