"""What the package says it needs, and what must never be in the repository."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tree import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None

PINS = sorted((ROOT / "requirements").glob("*.txt"))


def project() -> dict:
    if tomllib is None:
        pytest.skip("tomllib comes with Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    return [Requirement(text) for text in [*project()["dependencies"], *(text for extra in extras for text in extra)]]


def pinned(path: Path) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line]


def test_apex_stands_in_no_metadata():
    """The package of that name on PyPI is a different, dead project."""
    names = {requirement.name.lower() for requirement in declared()}
    names |= {requirement.name.lower() for path in PINS for requirement in pinned(path)}
    assert "apex" not in names
    assert "NVIDIA/apex" in (ROOT / "requirements" / "apex.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PINS, ids=[path.name for path in PINS])
def test_requirements_are_pinned_exactly_and_name_no_registry(path):
    for requirement in pinned(path):
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], str(requirement)
    assert not re.search(r"^\s*-|https?://\S*simple", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_pins_meet_what_the_metadata_asks_for(version):
    environment = {"python_version": version}
    base = "base-py312.txt" if version == "3.12" else "base-py311.txt"
    pins = {}
    files = [ROOT / "requirements" / name for name in (base, "dev.txt", "deepspeed.txt")]
    for requirement in (requirement for path in files for requirement in pinned(path)):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name.lower() not in pins, f"{requirement.name} is pinned twice for {version}"
            pins[requirement.name.lower()] = str(requirement.specifier).removeprefix("==")
    wanted = [Requirement(text) for text in project()["dependencies"]]
    extras = ["log", "dev", "deepspeed", *([] if version == "3.10" else ["zarr"])]  # zarr 3 needs Python 3.11
    wanted += [Requirement(text) for name in extras for text in project()["optional-dependencies"][name]]
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert pins[requirement.name.lower()] in requirement.specifier, f"{requirement} under {version}"


def test_each_python_gets_a_megatron_core():
    core = [requirement for requirement in declared() if requirement.name == "megatron-core"]
    for version in ("3.10", "3.11", "3.12", "3.13"):
        fits = [requirement for requirement in core if requirement.marker.evaluate({"python_version": version})]
        assert len(fits) == 1, version
        assert ("0.16.1" in fits[0].specifier) == (version in ("3.10", "3.11"))


@pytest.mark.parametrize(("types", "binding"), [("_generator.pyi", "csrc/bind.cpp"),
                                                ("_generator_cuda.pyi", "csrc/cuda/bind.cpp")])
def test_types_of_a_compiled_module_name_what_it_binds(types, binding):
    bound = (ROOT / binding).read_text(encoding="utf-8")
    typed = [node.name for node in ast.parse((ROOT / "megatron_nca" / types).read_text(encoding="utf-8")).body
             if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert sorted(typed) == sorted(re.findall(r'(?:module\.def\(|py::class_<\S+>\(module, )"(\w+)"', bound))


def test_no_path_of_one_machine_and_no_registry_address_is_committed():
    pattern = r"(^|[\"' =(])/(work|farm|root|home)/|--(extra-)?index-url|--find-links"
    command = ["git", "-C", str(ROOT), "grep", "-InE", pattern]
    # This file holds the patterns themselves.
    result = subprocess.run([*command, "--", ".", ":!tests/house/test_metadata.py"], capture_output=True, text=True)
    assert result.returncode == 1, result.stdout
