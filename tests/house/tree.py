"""What the house tests read: the tracked Python files, parsed, and the table of docs/architecture.md."""

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = "megatron_nca"


@functools.cache
def python_files() -> tuple[Path, ...]:
    """Python files that git tracks or would track, relative to the root."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    return tuple(sorted(Path(name) for name in set(names) if name and (ROOT / name).is_file()))


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names of all modules that a file imports anywhere, `from a import b` as both a and a.b."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports stand in full, not relative"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def room(path: Path) -> str | None:
    """The room of the table that a file of the package belongs to, such as `data` or `plan`; None outside it."""
    if path.parts[0] != PACKAGE or path.as_posix() in (f"{PACKAGE}/__init__.py", f"{PACKAGE}/__main__.py"):
        return None
    return path.parts[1].removesuffix(".py")


@functools.cache
def table() -> dict[str, frozenset[str]]:
    """Room -> what it may import, from the table in docs/architecture.md."""
    result = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            name = cells[0].strip("`").rstrip("/").removesuffix(".py")
            result[name] = frozenset(word.strip() for word in cells[2].split(",")) - {"nothing"}
    return result
