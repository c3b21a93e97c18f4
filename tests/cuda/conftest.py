"""The generator's CUDA half where there is no GPU: its own files by g++, lane after lane (emulated_device.cpp).

Tests ask `simulate` and the verbs for the device "cuda"; `backend` says what stands behind that name.
"""

import importlib.util
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

from megatron_nca import ops
from megatron_nca.errors import LaunchError

ROOT = Path(__file__).parents[2]
NAME = "_generator_emulated"
SOURCES = [
    "csrc/cuda/bind.cpp",
    "csrc/cuda/job.cpp",
    "csrc/cuda/pipeline.cpp",
    "tests/cuda/emulated_device.cpp",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").glob("*.cpp")) if path.name != "bind.cpp"),
]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512cd", "-mavx512vnni"]
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", f"-DNCA_CUDA_MODULE={NAME}"]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory) -> ModuleType:
    """The module `_generator_cuda` with the emulation in place of kernels.cu."""
    folder = tmp_path_factory.mktemp("emulated")
    includes = [f"-I{path}" for path in ("csrc", sysconfig.get_path("include"), pybind11.get_include())]
    vector = ["-mavx2", "-mfma"] if "x86_64" in sysconfig.get_platform() else []
    objects = [folder / f"{number}.o" for number in range(len(SOURCES))]

    def compile_one(source: str, target: Path) -> None:
        wider = AVX512 if vector and Path(source).name.startswith("rollout_avx512") else []
        quick = ["-O0"] if source.endswith("bind.cpp") else []  # a quarter of all time, for nothing that takes any
        command = ["g++", *FLAGS, *quick, *vector, *wider, *includes, "-c", source, "-o", target]
        subprocess.run(command, cwd=ROOT, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, SOURCES, objects))
    library = folder / f"{NAME}.so"
    subprocess.run(["g++", "-shared", *objects, "-o", library, "-lz"], check=True)
    specification = importlib.util.spec_from_file_location(NAME, library)
    module = importlib.util.module_from_spec(specification)
    sys.modules[NAME] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(params=["emulated", pytest.param("emulated, lanes reversed", marks=pytest.mark.long),
                        pytest.param("cuda", marks=pytest.mark.cuda)])
def backend(request, monkeypatch) -> str:
    """What runs as the device "cuda" during the test."""
    if request.param == "cuda":
        try:
            ops.on("cuda")
        except LaunchError as error:
            pytest.skip(str(error))
    else:
        module = request.getfixturevalue("emulated")
        on_cpu = ops.on("cpu")
        monkeypatch.setattr(ops, "on", lambda device: module if device == "cuda" else on_cpu)
        monkeypatch.setenv("NCA_EMULATED_ORDER", "reversed" if "reversed" in request.param else "forward")
    return request.param
