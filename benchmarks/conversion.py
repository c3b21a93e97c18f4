"""Time and memory of conversion against `cp` of the same bytes on the same disk, cold caches, all of it on the disk.

    python benchmarks/conversion.py [--folder DIR] [--layers 24] [--repeats 3]

Limits that users were promised: peak memory of three times the largest stored chunk plus 500 MB, whatever the model; at
least half the speed of `cp`. The model is the paper's shape with GPT-2's vocabulary, 1.8 billion random parameters in
bfloat16, 3.6 GB; the folder needs room for it three times. Caches are dropped before every measurement where that is
permitted, else asked to let go of the source. Both directions and `cp` take turns.
"""

import argparse
import contextlib
import dataclasses
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

VOCABULARY = 50_257


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make, arguments.layers)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="conversion-") as folder:
        measure(Path(folder), arguments.layers, arguments.repeats)


def make(folder: Path, layers: int) -> None:
    """A folder of random weights; says the bytes of all and of the largest."""
    import torch

    from megatron_nca.config.model import PRESETS
    from megatron_nca.convert import hf
    from megatron_nca.convert.canonical import CanonicalCheckpoint, CanonicalTensor
    from megatron_nca.initialise import TensorSpec, tensor_table

    def random(spec: TensorSpec) -> torch.Tensor:
        """Random bits but for infinities and NaN; padding is zero."""
        bits = torch.randint(-0x4000, 0x4000, spec.shape, dtype=torch.int16)
        if spec.filled_rows is not None:
            bits[spec.filled_rows:] = 0
        return bits.view(torch.bfloat16)

    model = dataclasses.replace(PRESETS["paper"], num_layers=layers).with_vocabulary(VOCABULARY)
    specs = tensor_table(model)
    tensors = [CanonicalTensor(spec.name, spec.shape, "bfloat16", partial(random, spec)) for spec in specs]
    hf.write(folder, CanonicalCheckpoint("random", model, tuple(tensors)))
    print(2 * sum(spec.size for spec in specs), 2 * max(spec.size for spec in specs))


def measure(folder: Path, layers: int, repeats: int) -> None:
    words = [sys.executable, __file__, "--layers", str(layers), "--make", folder / "hf"]
    made = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    size, largest = map(int, made.stdout.split())
    print(f"{size / 2e9:.2f} billion parameters, {size / 1e9:.2f} GB, largest chunk {largest / 1e6:.0f} MB\n")
    subprocess.run(command("megatron-nca", folder / "hf", folder / "ours"), check=True, stdout=subprocess.DEVNULL)
    ways = {"cp": ["cp", "-r", folder / "hf"], "HF to ours": command("megatron-nca", folder / "hf"),
            "ours to HF": command("hf", folder / "ours")}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0.0)
    for _ in range(repeats):
        for name, words in ways.items():
            seconds, usage = timed(words, folder / "target", folder)
            times[name].append(seconds)
            processor[name].append(usage.ru_utime + usage.ru_stime)
            peaks[name] = max(peaks[name], megabytes(usage))
            print(f"{name}: {seconds:.1f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    _, bare = timed([sys.executable, "-c", "import torch, megatron_nca.convert.megatron; open('{}', 'w')"],
                    folder / "target", folder, appended=False)  # fmt: skip
    print("| what | seconds, median | GB/s | of cp's speed in the same round | processor seconds | peak memory |")
    print("|---|---|---|---|---|---|")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        ratios = [base / each for base, each in zip(times["cp"], seconds, strict=True)]
        print(f"| {name} | {median:.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | {size / median / 1e9:.2f} | "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
              f"{statistics.median(processor[name]):.1f} | {peaks[name]:.0f} MB |")
    print(f"\nLimit of memory: 3 x {largest / 1e6:.0f} + 500 = {3 * largest / 1e6 + 500:.0f} MB. "
          f"A process that only imports torch and the converter: {megabytes(bare):.0f} MB.")


def command(target: str, source: Path, to: Path | None = None) -> list:
    words = [sys.executable, "-m", "megatron_nca", "convert", "format", target, "--from", source, "--to"]
    return words if to is None else [*words, to]


def timed(words: list, target: Path, folder: Path, appended: bool = True) -> tuple[float, resource.struct_rusage]:
    """Seconds until what the command wrote at `target` is on the disk, and what the command used."""
    cool(folder)
    words = [*words, target] if appended else [str(word).format(target) for word in words]
    started = time.perf_counter()
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{words} ended with {status}"
    for path in (target, *target.rglob("*")):
        sync(path)
    seconds = time.perf_counter() - started
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    return seconds, usage


def megabytes(usage: resource.struct_rusage) -> float:
    """Peak of the resident memory."""
    return usage.ru_maxrss * 1024 / 1e6


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def cool(folder: Path) -> None:
    """Nothing of `folder` in memory."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return
    print("caches could not be dropped; the source's pages are let go of one file at a time", file=sys.stderr)
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
