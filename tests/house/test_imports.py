"""One way down, and one door per foreign thing."""

import subprocess
import sys
from pathlib import Path

import pytest
from tree import PACKAGE, ROOT, imported, python_files, room, table

ROOMS = [path for path in python_files() if room(path)]
NOT_IN_THE_TABLE_OF_IMPORTS = {"cli", "data_tools"}
"""These may import all of the package."""


def ids(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]


def test_the_table_is_read():
    assert table()["errors"] == frozenset()
    assert table()["plan"] == {"account", "config", "run_dir", "files", "errors"}
    assert len(ROOMS) > 20


def test_every_room_stands_in_the_table():
    assert {room(path) for path in ROOMS} <= set(table())


def inside(names: frozenset[str]) -> set[str]:
    """Dotted paths under the package, without its own name; the package itself holds only __version__."""
    own = {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}
    return own - {"__version__", "_generator", "_generator_cuda"}  # the compiled modules have a door, below


@pytest.mark.parametrize("path", ROOMS, ids=ids(ROOMS))
def test_a_room_imports_only_what_the_table_names(path):
    mine = room(path)
    if mine in NOT_IN_THE_TABLE_OF_IMPORTS:
        return
    allowed = table()[mine] | {mine}
    wrong = [name for name in inside(imported(path)) if not is_allowed(name, allowed)]
    assert not wrong, f"{path} imports {wrong}; docs/architecture.md allows {sorted(allowed)}"


def is_allowed(name: str, allowed: frozenset[str]) -> bool:
    """`mcore.engine` allows that module alone; `mcore` allows the room."""
    if any(name == entry or name.startswith(f"{entry}.") for entry in allowed):
        return True
    # `from megatron_nca.mcore import engine` is seen as `mcore` and as `mcore.engine`.
    return any(entry.startswith(f"{name}.") for entry in allowed)


def test_no_two_rooms_import_each_other():
    edges = set()
    for path in ROOMS:
        edges |= {(room(path), name.split(".")[0]) for name in inside(imported(path))}
    mutual = {(a, b) for a, b in edges if a < b and (b, a) in edges}
    assert not mutual


DOORS = {
    "megatron": "mcore",
    "megatron_nca._generator": "ops",
    "megatron_nca._generator_cuda": "ops",
    "deepspeed": "mcore/zero.py",
    "transformer_engine": "mcore",
    "zarr": "nca/bank.py",
    "pickle": "pickles",
}
"""Foreign thing -> the room, or the one file of a room, that imports it."""


@pytest.mark.parametrize("module", DOORS)
def test_one_door_per_foreign_thing(module):
    wrong = [
        str(path)
        for path in ROOMS
        if DOORS[module] not in (room(path), path.relative_to(PACKAGE).as_posix())
        and any(name == module or name.startswith(f"{module}.") for name in imported(path))
    ]
    assert not wrong, f"only {DOORS[module]} imports {module}"


def test_only_the_restricted_reader_loads_what_torch_saved():
    wrong = [str(path) for path in ROOMS if room(path) != "pickles" and "torch.load(" in (ROOT / path).read_text()]
    assert not wrong


TORCH_ROOMS = {"pickles", "mcore", "train", "convert", "initialise", "doctor"}


def test_the_rooms_that_generate_plan_and_report_do_not_import_torch():
    wrong = [
        str(path)
        for path in ROOMS
        if room(path) not in TORCH_ROOMS | {"cli"} and any(name.split(".")[0] == "torch" for name in imported(path))
    ]
    assert not wrong


HELP = """
import sys
from megatron_nca.__main__ import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = [name for name in ("torch", "numpy", "megatron.core", "matplotlib", "yaml", "zarr") if name in sys.modules]
sys.exit(f"--help imported {heavy}" if heavy else 0)
"""


def test_generating_without_a_bank_does_not_import_zarr():
    code = "import sys; import megatron_nca.sources.nca, megatron_nca.cli.generate; sys.exit('zarr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_help_imports_nothing_heavy():
    result = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "report" in result.stdout
