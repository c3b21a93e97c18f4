"""The C++ part built in other ways, each passing all of its tests: sanitizers, and a second compiler.

Every build is a copy of the package in a folder of its own; what is installed stays as it is.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("megatron_nca", "csrc", "tests/ops", "tests/golden", "setup.py", "pyproject.toml", "README.md")
QUICK = "-O1 -g -fno-omit-frame-pointer"
BUILDS = {
    "address and undefined behaviour": ("g++", f"{QUICK} -fsanitize=address,undefined -fno-sanitize-recover=all"),
    "threads": ("g++", f"{QUICK} -fsanitize=thread"),
    "clang": ("clang++", ""),
}
RUNTIMES = {"address and undefined behaviour": ("libasan.so", "libubsan.so"), "threads": ("libtsan.so",)}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1",
}


def copy_of_the_package(folder: Path) -> Path:
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def build(folder: Path, compiler: str, flags: str) -> None:
    environment = os.environ | {"CC": compiler, "CXX": compiler, "LDSHARED": f"{compiler} -shared", "LDFLAGS": flags}
    environment["CFLAGS"] = environment["CXXFLAGS"] = flags
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]


def preloaded(compiler: str, libraries: tuple[str, ...]) -> str:
    """Paths of the sanitizers' runtimes: the interpreter itself is not built with them."""
    command = [compiler, "-print-file-name={}"]
    return " ".join(
        subprocess.run([command[0], command[1].format(name)], capture_output=True, text=True, check=True).stdout.strip()
        for name in libraries
    )


def run_tests(folder: Path, compiler: str, libraries: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | OPTIONS | {"PYTHONPATH": str(folder)}
    if libraries:
        environment["LD_PRELOAD"] = preloaded(compiler, libraries)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.parametrize("name", BUILDS)
def test_the_suite_of_the_compiled_part_passes(name, tmp_path):
    compiler, flags = BUILDS[name]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    build(copy_of_the_package(tmp_path), compiler, flags)
    result = run_tests(tmp_path, compiler, RUNTIMES.get(name, ()), "tests/ops")
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    assert " passed" in result.stdout and "failed" not in result.stdout
