"""The kernels compile for every supported GPU, spill nothing, and use no approximate instruction."""

import importlib.util
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH: no kernel was compiled")


@pytest.fixture(scope="module")
def resources():
    """benchmarks/cuda_resources.py."""
    name = "cuda_resources"
    specification = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def reports(resources):
    """Architecture -> report; two compilers at work at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(resources.ARCHITECTURES, pool.map(resources.report, resources.ARCHITECTURES), strict=True))


@needs_nvcc
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_no_kernel_spills(reports, architecture):
    found = reports[architecture]
    kernels = {"filter_kernel", *(f"roll_out_kernel<{states}>" for states in (2, 4, 8, 10, 12, 16))}
    assert {r.kernel for r in found} == kernels
    for r in found:
        assert (r.spilled_bytes, r.stack_bytes) == (0, 0), r
        assert r.warps >= 8, r


@needs_nvcc
def test_arithmetic_is_rounded_as_on_the_cpu(resources, tmp_path):
    """Fused where the source says so, correctly rounded division and root, no flushing, nothing approximate."""
    texts = []
    for source in resources.SOURCES:
        resources.compile_with(source, "-arch=sm_90", "--ptx", "-o", str(tmp_path / "kernels.ptx"))
        texts.append((tmp_path / "kernels.ptx").read_text())
    text = "\n".join(texts)
    inexact = re.findall(r"\b\w+\.(?:\w+\.)*(?:approx|ftz|full)\b\S*", text)
    assert not inexact
    assert {"fma.rn.f32", "div.rn.f32", "sqrt.rn.f32"} <= set(re.findall(r"\b(?:fma|div|sqrt|mad)\.\S*f32", text))
    assert not re.findall(r"\bmad\.\S*f32", text)
    assert not re.findall(r"\.f64\b", text)


TOLD = """\
ptxas info    : Compiling entry function '_ZN3nca4cuda15roll_out_kernelILi10EEEvNS0_8RolloutsEij' for 'sm_80'
ptxas info    : Function properties for _ZN3nca4cuda15roll_out_kernelILi10EEEvNS0_8RolloutsEij
    32 bytes stack frame, 44 bytes spill stores, 52 bytes spill loads
ptxas info    : Used 168 registers, used 0 barriers, 32 bytes cumulative stack size, 64 bytes smem, 504 bytes cmem[0]
"""


def test_the_report_is_read(resources):
    (found,) = resources.parse(TOLD, 80)
    assert (found.kernel, found.registers, found.spilled_bytes) == ("roll_out_kernel<10>", 168, 96)
    assert (found.stack_bytes, found.shared_bytes, found.warps) == (32, 64, 12)
