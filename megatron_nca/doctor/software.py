"""Python, torch, Megatron-Core, what is optional beside them, and the compiled generator."""

import re

from megatron_nca.doctor.machine import Attempt, Finding, Machine, note, ok, problem

REINSTALL = "in the project's folder: rm -rf .venv && make setup, or pip install the pins of requirements/."
REQUIRED = {
    "numpy": "for all arrays",
    "yaml": "for recipes",
    "sentencepiece": "for tokenizers",
    "psutil": "without it Megatron's checkpoint writer hangs for ever",
}


def python(machine: Machine) -> Finding:
    version = ".".join(map(str, machine.python))
    if machine.system != "Linux":
        return problem("Python", f"{version} on {machine.system}; only Linux is supported.", "use a Linux machine.")
    if not (3, 10) <= machine.python[:2] <= (3, 12):
        return problem("Python", f"{version} is not 3.10 to 3.12.", "make PYTHON=python3.12, or python3.11.")
    return ok("Python", version)


def torch(machine: Machine) -> Finding:
    attempt = machine.imports["torch"]
    if not attempt.loads:
        return _does_not_load("torch", attempt, REINSTALL)
    if numbers(attempt.version) < (2, 10):
        says = f"{attempt.version} can be made to run code by a file that is loaded with weights_only=True."
        return problem("torch", says, "install 2.10 or newer.")
    build = machine.torch.cuda_build
    return ok("torch", f"{attempt.version}, {f'built for CUDA {build}' if build else 'CPU build'}")


def gpus(machine: Machine) -> Finding:
    """The devices, or why there are none."""
    if machine.torch is None:
        return note("GPUs", "not known without torch.")
    if not machine.gpus:
        if machine.driver is None:
            return note("GPUs", "none: training runs on the CPU, through Gloo.")
        if machine.torch.cuda_build is None:
            says = f"the driver {machine.driver} is there, but this torch is a CPU build."
            return problem("GPUs", says, "install a CUDA build of the pinned torch.")
        says = f"the driver {machine.driver} is there, but torch for CUDA {machine.torch.cuda_build} sees no device."
        cure = "see nvidia-smi; check CUDA_VISIBLE_DEVICES, the container's --gpus, and that the driver is new enough."
        return problem("GPUs", says, cure)
    listed = ", ".join(
        f"{gpu.name} ({gpu.memory / 2**30:.0f} GiB, {gpu.capability[0]}.{gpu.capability[1]})" for gpu in machine.gpus
    )
    says = f"{len(machine.gpus)}: {listed}; driver {machine.driver}, NCCL {machine.torch.nccl}"
    if any(gpu.capability < (8, 0) for gpu in machine.gpus):
        return note("GPUs", f"{says}; below capability 8.0 bf16 is emulated.", "set precision: fp16.")
    if machine.torch.nccl is None and len(machine.gpus) > 1:
        return problem("GPUs", f"{says}: this torch has no NCCL.", "install torch's own CUDA build for Linux.")
    return ok("GPUs", says)


def megatron(machine: Machine) -> Finding:
    attempt = machine.imports["megatron.core"]
    if not attempt.loads:
        return _does_not_load("Megatron-Core", attempt, REINSTALL)
    version = numbers(attempt.version)
    if not (0, 16, 1) <= version < (0, 20):
        says = f"{attempt.version} is not one of 0.16.1 to 0.19, with which this project is tested."
        return problem("Megatron-Core", says, REINSTALL)
    if version < (0, 17, 1):
        says = f"{attempt.version}: loading a checkpoint of unknown origin can run its maker's code (SECURITY.md)."
        cure = "load only checkpoints of people you trust, or use 0.17.1 or newer, which needs Python 3.12."
        if machine.python[:2] >= (3, 12):
            return problem("Megatron-Core", says, "install the pins of requirements/base-py312.txt.")
        return note("Megatron-Core", says, cure)
    return ok("Megatron-Core", attempt.version)


def required(machine: Machine) -> Finding:
    missing = [name for name in REQUIRED if not machine.imports[name].installed]
    if missing:
        says = ", ".join(f"{name} ({REQUIRED[name]})" for name in missing)
        return problem("packages", f"not installed: {says}.", REINSTALL)
    return ok("packages", ", ".join(REQUIRED))


def transformer_engine(machine: Machine) -> Finding:
    attempt = machine.imports["transformer_engine.pytorch"]
    if attempt.installed and not attempt.loads:
        cure = "build it for this torch (pip install --no-build-isolation 'transformer-engine[pytorch]'), or remove it."
        return problem("Transformer Engine", f"{attempt.version} does not load: {attempt.error}", cure)
    return ok("Transformer Engine", attempt.version or "not installed; torch's own kernels serve")


def apex(machine: Machine) -> Finding:
    """By what it can do, not by its name: the package of that name on PyPI is another one."""
    if not machine.imports["apex"].installed:
        return ok("NVIDIA Apex", "not installed; torch's own fused Adam serves")
    if not machine.apex_has_optimizers:
        says = "the installed apex has no apex.optimizers: it is not NVIDIA's, but a dead project of that name on PyPI."
        return problem("NVIDIA Apex", says, "pip uninstall apex; see requirements/apex.txt for the right one.")
    for name in ("apex.optimizers", "amp_C"):
        if not machine.imports[name].loads:
            says = f"{name} does not load ({machine.imports[name].error or 'not installed'})."
            cure = "build it with its CUDA extensions for this torch (requirements/apex.txt), or pip uninstall apex."
            return problem("NVIDIA Apex", says, cure)
    return ok("NVIDIA Apex", "apex.optimizers and amp_C load")


def deepspeed(machine: Machine) -> Finding:
    attempt = machine.imports["deepspeed"]
    if attempt.installed and not attempt.loads:
        cure = "pip install -r requirements/deepspeed.txt, or remove it."
        return problem("DeepSpeed", f"{attempt.version} does not load: {attempt.error}", cure)
    return ok("DeepSpeed", attempt.version or "not installed; it is optional")


def generator(machine: Machine) -> Finding:
    attempt = machine.imports["megatron_nca.ops"]
    build = "pip install --no-build-isolation -e . in the project's folder; it needs g++ and zlib1g-dev."
    if not attempt.loads:
        error = (attempt.error or "not installed").partition(" Cure:")[0]  # the message of ops.py has its own
        return problem("generator", f"the compiled module does not load: {error}", build)
    kernels = ", ".join(machine.kernels)
    if machine.kernels == ("portable",) and machine.processor == "x86_64":
        return note("generator", "only the portable kernel: this processor has no AVX2, so it is slow.")
    return ok("generator", f"kernels {kernels}")


def cuda_generator(machine: Machine) -> Finding:
    attempt = machine.imports["megatron_nca._generator_cuda"]
    if attempt.installed and not attempt.loads:
        cure = "build it again with the CUDA toolkit that is here, or remove the file; the CPU's generator serves."
        return problem("generator on CUDA", f"built, but does not load: {attempt.error}", cure)
    return ok("generator on CUDA", "loads" if attempt.loads else "not built; the CPU's generator serves")


def _does_not_load(subject: str, attempt: Attempt, cure: str) -> Finding:
    if not attempt.installed:
        return problem(subject, "is not installed.", cure)
    return problem(subject, f"{attempt.version or 'an unknown version'} does not load: {attempt.error}", cure)


def numbers(version: str | None) -> tuple[int, ...]:
    """The leading numbers of a version: '2.13.0+cpu' gives (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version or "").group().split(".") if part)


CHECKS = (
    python, torch, gpus, megatron, required, transformer_engine, apex, deepspeed, generator, cuda_generator,
)
