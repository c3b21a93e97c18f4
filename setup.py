"""Builds the C++ generator; everything else about the package stands in pyproject.toml."""

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

# One order of operations on every machine: no contraction of a * b + c, no fast-math. The -fno- flags change no value.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
FLAGS_OF_FILE = {"rollout_avx2.cpp": ["-mavx2", "-mfma"]}
SOURCES = [
    "bind",
    "deflate_block",
    "deflate_chains",
    "deflate_fast",
    "deflate_size",
    "rollout_avx2",
    "rollout_cpu",
    "rollout_portable",
    "rule_cpu",
    "runner_cpu",
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
    "rollout_kernel",
    "rollout_kernel_body",
    "rule",
    "runner",
]


class BuildGenerator(build_ext):
    """Kernels of one instruction set get its flags; the kernel is chosen when the program runs."""

    def build_extensions(self) -> None:
        compile_one = self.compiler._compile

        def compile_with_file_flags(obj, source, ext, cc_args, extra_postargs, pp_opts):  # the signature of distutils
            flags = next((flags for name, flags in FLAGS_OF_FILE.items() if source.endswith(name)), [])
            flags = flags if "x86_64" in self.plat_name else []
            return compile_one(obj, source, ext, cc_args, [*extra_postargs, *flags], pp_opts)

        self.compiler._compile = compile_with_file_flags
        super().build_extensions()


setup(
    ext_modules=[
        Pybind11Extension(
            "megatron_nca._generator",
            [f"csrc/{name}.cpp" for name in SOURCES],
            depends=[f"csrc/{name}.h" for name in HEADERS],
            cxx_std=17,
            extra_compile_args=FLAGS,
            libraries=["z"],
        )
    ],
    cmdclass={"build_ext": BuildGenerator},
)
