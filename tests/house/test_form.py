"""The tail is capped, names say what a room is for, and nothing is silent."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tree import ROOT, parse, python_files

FILES = list(python_files())
IDS = [str(path) for path in FILES]
SHIPPED = [path for path in FILES if path.parts[0] != "tests"]

MAX_FILE, MAX_FUNCTION, MAX_COLUMNS = 400, 60, 120
LONG_FUNCTIONS = {"megatron_nca/train/loop.py": 100}
"""The training loop is read from top to bottom, and may be longer."""
EMPTY_WORDS = {"utils", "util", "common", "helpers", "helper", "misc", "tools", "lib"}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_length_of_files_and_functions(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= MAX_FILE
    cap = LONG_FUNCTIONS.get(path.as_posix(), MAX_FUNCTION)
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= cap, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_width_of_lines():
    wide = [
        f"{path}:{number}"
        for path in FILES
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > MAX_COLUMNS
    ]
    assert not wide, f"more than {MAX_COLUMNS} columns: {', '.join(wide)}"


def test_no_room_is_named_after_nothing():
    names = {part.removesuffix(".py") for path in SHIPPED for part in path.parts}
    assert not names & EMPTY_WORDS


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_bare_except_and_no_error_swallowed(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: bare except"
            broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert not (broad and silent), f"{path}:{node.lineno}: swallows every error"


FORBIDDEN_CALLS = {
    "yaml.load": "yaml.safe_load",
    "yaml.unsafe_load": "yaml.safe_load",
    "yaml.full_load": "yaml.safe_load",
    "os.system": "subprocess.run with a list",
    "eval": "nothing",
    "exec": "nothing",
}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_unsafe_call(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in FORBIDDEN_CALLS, f"{path}:{node.lineno}: use {FORBIDDEN_CALLS[name]}"
            shell = [word for word in node.keywords if word.arg == "shell" and ast.unparse(word.value) == "True"]
            assert not shell, f"{path}:{node.lineno}: no shell between us and a program"


@pytest.mark.parametrize("path", SHIPPED, ids=[str(path) for path in SHIPPED])
def test_every_module_says_what_it_is(path):
    empty = not (ROOT / path).read_text(encoding="utf-8").strip()
    assert empty or ast.get_docstring(parse(path)), f"{path} has no docstring"


TESTS = [path for path in FILES if path.parts[0] == "tests" and path.name.startswith("test_")]


@pytest.mark.parametrize("path", TESTS, ids=[str(path) for path in TESTS])
def test_every_test_asserts_something(path):
    """Directly, by expecting an error, or in a function of its file or of a module of its folder that does."""
    asserting = {name for name, node in functions_beside(path).items() if asserts(node, set())}
    for node in parse(path).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            assert asserts(node, asserting), f"{path}:{node.lineno}: {node.name} asserts nothing"


def functions_beside(path: Path) -> dict[str, ast.AST]:
    siblings = [other for other in FILES if other.parent == path.parent]
    return {
        node.name: node
        for other in siblings
        for node in ast.walk(parse(other))
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("test_")
    }


def asserts(function: ast.AST, asserting: set[str]) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")[-1]
            if name in {"raises", "fail", "assert_array_equal", "assert_allclose", "assert_close"} | asserting:
                return True
            if name == "run" and any(word.arg == "check" for word in node.keywords):
                return True
    return False


def test_ruff_finds_nothing():
    command = [sys.executable, "-m", "ruff", "check", "-q", "."]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout
