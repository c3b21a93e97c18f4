"""The Makefile, the check for system packages and .ci/run: what they do where something is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "requirements" / "check_system.sh"
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def shell(*words: object, **settings) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60, **settings)


def folder_with(tmp_path: Path, *programs: str) -> dict[str, str]:
    """An environment whose PATH holds only these programs."""
    place = tmp_path / "bin"
    place.mkdir()
    for program in ("bash", "env", *programs):
        (place / program).symlink_to(shutil.which(program))
    return {"PATH": str(place)}


def write_program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "script", [CHECK, ROOT / ".ci" / "run", ROOT / "launch" / "local.sh"], ids=lambda path: path.name
)
def test_scripts_parse_and_can_be_run(script):
    assert shell("bash", "-n", script).returncode == 0
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()


def test_this_machine_passes_the_check():
    result = shell(CHECK, sys.executable)
    assert result.returncode == 0, result.stderr


def test_without_a_compiler_the_exact_line_is_printed(tmp_path):
    result = shell(CHECK, sys.executable, env=folder_with(tmp_path))
    assert result.returncode == 1
    assert "    apt-get install -y g++ zlib1g-dev\n" in result.stderr


def test_without_zlibs_header_it_is_named(tmp_path):
    environment = folder_with(tmp_path)
    write_program(tmp_path / "bin" / "g++", "exit 1")
    result = shell(CHECK, sys.executable, env=environment)
    assert "apt-get install -y zlib1g-dev\n" in result.stderr


def test_without_venv_it_is_named(tmp_path):
    """A Python that fails at `import venv, ensurepip`, as Debian's does without python3-venv."""
    python = write_program(tmp_path / "python", f'case "$2" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"')
    result = shell(CHECK, python)
    assert result.returncode == 1 and "apt-get install -y python3-venv\n" in result.stderr


@pytest.mark.parametrize(("version", "fits"), [("3.9", False), ("3.10", True), ("3.12", True), ("3.13", False)])
def test_versions_of_python(tmp_path, version, fits):
    script = f'case "$2" in *version_info*) echo {version} ;; *) exec {sys.executable} "$@" ;; esac'
    result = shell(CHECK, write_program(tmp_path / "python", script))
    assert (result.returncode == 0) is fits
    assert fits or f"is Python {version}" in result.stderr


def test_an_interpreter_that_is_not_there():
    result = shell(CHECK, "python9.9")
    assert result.returncode == 1 and "no such interpreter" in result.stderr


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "test-long", "bench"])
def test_every_target_sets_up_first(target, tmp_path):
    """Dry, in a folder without .venv: the environment and the extension come before the work."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements", "csrc"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    output = shell("make", "-n", target, f"PYTHON={sys.executable}", cwd=tmp_path).stdout
    order = ["check_system.sh", "-m venv .venv", "requirements/dev.txt", "--no-build-isolation --no-deps -e ."]
    places = [output.index(text) for text in order]
    assert places == sorted(places)
    work = {"demo": "launch/recipes/demo.yaml --run-dir runs/demo", "bench": "benchmarks/"}.get(target, "-m pytest")
    assert output.index(work) > places[-1]


@needs_make
def test_a_second_call_sets_nothing_up_and_a_changed_source_builds_again(tmp_path):
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("requirements", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    for stamp in (".packages", ".built"):
        (tmp_path / ".venv" / stamp).touch()
    output = shell("make", "-n", "test", cwd=tmp_path).stdout
    assert "pip" not in output and "pytest" in output
    later = (tmp_path / ".venv" / ".built").stat().st_mtime + 10
    os.utime(next((tmp_path / "csrc").glob("*.cpp")), (later, later))
    output = shell("make", "-n", "test", cwd=tmp_path).stdout
    assert "-e ." in output and "-m venv" not in output


def test_ci_calls_make_test_and_the_second_pair():
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test\nmake test-second-pair")


@needs_make
def test_the_second_pair_has_a_place_of_its_own_and_is_skipped_with_a_word_where_there_is_none(tmp_path):
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("requirements", "csrc"):
        (tmp_path / name).symlink_to(ROOT / name)
    there = shell("make", "-n", "test-second-pair", f"SECOND_PYTHON={sys.executable}", cwd=tmp_path).stdout
    order = ["-m venv .venv312", ".venv312/bin/python -m pip", ".venv312/bin/python -m pytest"]
    places = [there.index(text) for text in order]
    assert places == sorted(places) and "tests/distributed/test_layouts.py" in there and "touch .venv/" not in there
    absent = shell("make", "test-second-pair", "SECOND_PYTHON=", cwd=tmp_path)
    assert absent.returncode == 0 and "SKIPPED, there is no Python 3.12" in absent.stdout
    full = shell("make", "test-second-pair", "SECOND_PYTHON=false", "SECOND_GB=1000000000", cwd=tmp_path)
    assert full.returncode == 0 and "SKIPPED" in full.stdout and "GB are free" in full.stdout
    broken = shell("make", "test-second-pair", "SECOND_PYTHON=false", "SECOND_GB=0", cwd=tmp_path)
    assert broken.returncode != 0 and "FAILED, nothing was tested: .venv312 could not be set up" in broken.stderr
