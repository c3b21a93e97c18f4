"""Builds the C++ generator, and with MEGATRON_NCA_CUDA=1 its CUDA twin; the rest stands in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

# One order of operations on every machine: no contraction of a * b + c, no fast-math. The other -fno- flags change no
# value; -fno-wrapv takes back what Python's own flags ask for, which costs a fifth of the speed (measured).
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-wrapv", "-Wall", "-Wextra"]
# g++ 12 calls variables of its own header uninitialised (bug 105593).
AVX512 = [*(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "cd")), "-mfma", "-Wno-uninitialized"]
FLAGS_OF_FILE = {
    "rollout_avx2.cpp": ["-mavx2", "-mfma"],
    "rollout_avx512.cpp": AVX512,
    "rollout_avx512_vnni.cpp": [*AVX512, "-mavx512vnni"],
}
SOURCES = [
    "bind",
    "deflate_block",
    "deflate_chains",
    "deflate_fast",
    "deflate_size",
    "rollout_avx2",
    "rollout_avx512",
    "rollout_avx512_vnni",
    "rollout_cpu",
    "rollout_portable",
    "rule_cpu",
    "runner_cpu",
    "words",
]
HEADERS = [
    "counter_rng",
    "deflate_block",
    "deflate_chains",
    "deflate_fast",
    "deflate_size",
    "float_math",
    "host_device",
    "nca_cell",
    "rollout",
    "rollout_coarse_avx512",
    "rollout_kernel",
    "rollout_kernel_body",
    "rollout_lanes_avx512",
    "rollout_row_tables",
    "rule",
    "runner",
    "words",
]
CUDA_SOURCES = ["bind.cpp", "job.cpp", "kernels.cu", "pipeline.cpp"]
CUDA_ARCHITECTURES = ["80", "90", "100"]
"""Code for these is built in; newer GPUs translate the last one's intermediate code when they first run it."""


def find_nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        sys.exit("MEGATRON_NCA_CUDA = 1: nvcc is not on the PATH. Cure: install the CUDA toolkit, 12.8 or newer, and "
                 "put its bin folder on the PATH; or unset MEGATRON_NCA_CUDA.")
    return found


def cuda_libraries() -> list[str]:
    """Folders in which nvcc looks for its libraries, as it tells them."""
    command = [find_nvcc(), "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return re.findall(r'"-L([^"]+)"', next(line for line in told.splitlines() if "LIBRARIES=" in line))


def cuda_flags() -> list[str]:
    codes = [f"-gencode=arch=compute_{code},code=sm_{code}" for code in CUDA_ARCHITECTURES]
    newer = f"-gencode=arch=compute_{CUDA_ARCHITECTURES[-1]},code=compute_{CUDA_ARCHITECTURES[-1]}"
    return ["--options-file", "csrc/cuda/nvcc.options", "-Xcompiler", "-fPIC,-fvisibility=hidden", *codes, newer]


class BuildGenerator(build_ext):
    """Kernels of one instruction set get its flags; the kernel is chosen when the program runs."""

    def build_extensions(self) -> None:
        compile_one = self.compiler._compile

        def compile_with_file_flags(obj, source, ext, cc_args, extra_postargs, pp_opts):  # the signature of distutils
            if source.endswith(".cu"):
                return self.spawn([find_nvcc(), *cuda_flags(), "-c", source, "-o", obj])
            flags = next((flags for name, flags in FLAGS_OF_FILE.items() if source.endswith(name)), [])
            flags = flags if "x86_64" in self.plat_name else []
            return compile_one(obj, source, ext, cc_args, [*extra_postargs, *flags], pp_opts)

        self.compiler._compile = compile_with_file_flags
        self.compiler.src_extensions.append(".cu")
        super().build_extensions()


generator = Pybind11Extension(
    "megatron_nca._generator",
    [f"csrc/{name}.cpp" for name in SOURCES],
    depends=[f"csrc/{name}.h" for name in HEADERS],
    cxx_std=17,
    extra_compile_args=FLAGS,
    libraries=["z"],
)


def cuda_generator() -> Pybind11Extension:
    """A module of its own, with its own copy of the CPU's filter: the other never links CUDA."""
    return Pybind11Extension(
        "megatron_nca._generator_cuda",
        [f"csrc/{name}.cpp" for name in SOURCES if name != "bind"] + [f"csrc/cuda/{name}" for name in CUDA_SOURCES],
        depends=[*(f"csrc/{name}.h" for name in HEADERS), *map(str, sorted(Path("csrc/cuda").iterdir()))],
        cxx_std=17,
        extra_compile_args=FLAGS,
        library_dirs=cuda_libraries(),
        libraries=["z", "cudart_static", "rt", "dl", "pthread"],
    )


setup(
    ext_modules=[generator, *([cuda_generator()] if os.environ.get("MEGATRON_NCA_CUDA") == "1" else [])],
    cmdclass={"build_ext": BuildGenerator},
)
