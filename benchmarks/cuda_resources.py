"""What each CUDA kernel takes of a GPU, as the assembler reports it: no GPU is needed, only nvcc.

    python benchmarks/cuda_resources.py              the table for sm_80, sm_90 and sm_100
    python benchmarks/cuda_resources.py --write      also keep it in benchmarks/results/

A spill or a stack frame is traffic to local memory inside the loop over cells; tests/cuda holds both at none.
"""

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = (80, 90, 100)
REGISTERS_OF_PROCESSOR, MOST_WARPS, WARP = 65_536, 64, 32


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture; bytes are per thread, of shared memory per block and static."""

    kernel: str
    architecture: int
    registers: int
    stack_bytes: int
    spilled_bytes: int
    shared_bytes: int

    @property
    def warps(self) -> int:
        """That fit a processor by their registers, which are given out in units of 8 a thread."""
        return min(MOST_WARPS, REGISTERS_OF_PROCESSOR // (WARP * -(-self.registers // 8) * 8))


def compile_with(source: Path, *words: str) -> subprocess.CompletedProcess:
    """nvcc with the options of the build. Raises CalledProcessError."""
    options = ["--options-file", str(ROOT / "csrc" / "cuda" / "nvcc.options")]
    return subprocess.run(["nvcc", *options, *words, str(source)], capture_output=True, text=True, check=True)


def report(architecture: int) -> list[Resources]:
    """Of all kernels, by compiling them."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"-arch=sm_{architecture}", "-Xptxas", "-v", "-cubin", "-o", f"{folder}/kernels.cubin"]
        told = [compile_with(source, *words).stderr for source in SOURCES]
    return [resources for text in told for resources in parse(text, architecture)]


def parse(text: str, architecture: int) -> list[Resources]:
    """What ptxas -v says of each entry function."""
    found = []
    for part in re.split(r"Compiling entry function '", text)[1:]:
        stack, stores, loads = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        ).groups()
        shared = re.search(r"(\d+) bytes smem", part)
        found.append(
            Resources(
                kernel=plain_name(part.split("'")[0]),
                architecture=architecture,
                registers=int(re.search(r"Used (\d+) registers", part).group(1)),
                stack_bytes=int(stack),
                spilled_bytes=int(stores) + int(loads),
                shared_bytes=int(shared.group(1)) if shared else 0,
            )
        )
    return sorted(found, key=lambda r: (r.kernel.split("<")[0], len(r.kernel), r.kernel))


def plain_name(symbol: str) -> str:
    """roll_out_kernel<10> of _ZN3nca4cuda…15roll_out_kernelILi10EEEv…; the compiler's own names differ by file."""
    name = re.search(r"([a-z_]+_kernel)(?:ILi(\d+)E)?", symbol)
    return f"{name.group(1)}<{name.group(2)}>" if name.group(2) else name.group(1)


def table(results: list[Resources]) -> str:
    rows = [
        f"| `{r.kernel}` | sm_{r.architecture} | {r.registers} | {r.spilled_bytes} | {r.stack_bytes} "
        f"| {r.shared_bytes} | {r.warps} |"
        for r in results
    ]
    return "\n".join(
        [
            "| kernel | GPU | registers | spilled bytes | stack bytes | static shared bytes | warps by registers |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def version() -> str:
    told = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+), V([\d.]+)", told).group(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the table as results/cuda_resources_VERSION_DATE.md")
    arguments = parser.parse_args()
    if shutil.which("nvcc") is None:
        print("nvcc is not on the PATH: nothing was compiled, nothing is reported.")
        return 0
    results = [resources for architecture in ARCHITECTURES for resources in report(architecture)]
    today = datetime.date.today().isoformat()
    text = f"{table(results)}\n\nnvcc {version()}, the options of csrc/cuda/nvcc.options. {today}. Compiled, not run."
    print(text)
    if arguments.write:
        target = Path(__file__).parent / "results" / f"cuda_resources_nvcc-{version()}_{today}.md"
        head = "# Resources of the CUDA kernels\n\n`python benchmarks/cuda_resources.py --write`"
        target.write_text(f"{head}\n\n{text}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
