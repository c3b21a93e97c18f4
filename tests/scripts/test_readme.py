"""Commands and paths that README.md and docs name exist and mean what they say."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_nca.__main__ import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Indented command lines of README.md, comments and continuations resolved."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^    ((?:megatron-nca|python|make|launch/local\.sh) .*)$", text, re.MULTILINE)
    return [" ".join(shlex.split(line, comments=True)) for line in lines]


VERBS = [line for line in commands() if line.startswith("megatron-nca")]


def test_the_readme_has_commands():
    assert len(VERBS) >= 5
    assert {line for line in commands() if line.startswith("make")} == {"make demo", "make test"}


@pytest.mark.parametrize("line", VERBS)
def test_every_command_of_the_readme_is_accepted_by_its_parser(line, monkeypatch, capsys):
    """`--help` at the end stops each verb after its flags were read, and before anything is done."""
    words = shlex.split(re.sub(r"seeds=\[0, 1, 2\]", "'seeds=[0, 1, 2]'", line))[1:]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--no-such-flag"])
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert "unrecognized arguments: --no-such-flag\n" in errors, errors


def test_the_generate_command_of_the_readme_works(tmp_path):
    line = next(line for line in VERBS if " generate " in line)
    words = shlex.split(line.replace("--sequences 2000", "--sequences 20").replace("runs/nca", str(tmp_path / "nca")))
    result = subprocess.run(
        [sys.executable, "-m", "megatron_nca", *words[1:]], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(tmp_path)) == ["nca.bin", "nca.idx", "nca.json"]
    verify = [sys.executable, "data_tools/verify_dataset.py", str(tmp_path / "nca")]
    assert subprocess.run(verify, capture_output=True, cwd=ROOT).returncode == 0


def test_the_dry_run_of_the_readme_works(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["run", "launch/recipes/demo.yaml", "--run-dir", str(tmp_path / "mine"), "--dry-run", "seeds=[0, 1, 2]"]
    assert main(words) == 0
    assert "seed2: train" in capsys.readouterr().out
    assert not (tmp_path / "mine").exists()


def test_every_entry_of_the_tree_exists_and_no_room_is_missing():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text[text.index("## The tree") : text.index("## Requirements")]
    named = set()
    for indent, name in re.findall(r"^    ( *)(\S+?)/? .*$", block, re.MULTILINE):
        path = ROOT / "megatron_nca" / name if indent else ROOT / name
        assert path.exists(), f"README names {path.relative_to(ROOT)}"
        named.add(str(path.relative_to(ROOT)))
    rooms = {str(path.relative_to(ROOT)) for path in (ROOT / "megatron_nca").iterdir() if path.name[0] not in "_."}
    assert {room for room in rooms if not room.endswith(".so")} <= named


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_paths_in_back_ticks_exist(path):
    pattern = r"`((?:launch|data_tools|requirements|tests|benchmarks|docs|megatron_nca|csrc)/[\w./-]*)`"
    missing = [name for name in re.findall(pattern, path.read_text(encoding="utf-8")) if not (ROOT / name).exists()]
    assert not missing
