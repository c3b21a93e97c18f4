"""Looks at the machine that this runs on. Whatever may crash or hang is looked at from a process of its own."""

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_nca.doctor.machine import Attempt, Folder, Gpu, Machine, Network, TorchFacts
from megatron_nca.doctor.software import REQUIRED

DISTRIBUTIONS = {
    "megatron.core": "megatron-core",
    "transformer_engine.pytorch": "transformer-engine",
    "apex": "apex",
    "apex.optimizers": "apex",
    "amp_C": "apex",
    "deepspeed": "deepspeed",
    "megatron_nca.ops": "megatron_nca",
    "megatron_nca._generator_cuda": "megatron_nca",
}
"""Modules whose import is tried, and the package that has their version. torch is asked more."""
VARIABLES = ("OMP_NUM_THREADS", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_VISIBLE_DEVICES", "MASTER_ADDR", "MASTER_PORT")
PATIENCE_SECONDS = 120
NO_LIMIT = 2**60
"""Version 1 of cgroups writes a number near 2^63 where there is no limit."""


def probe(folder: Path) -> Machine:
    """All that the checks ask of this machine; `folder` is where a run would write, and need not be there."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        imports = dict(zip(DISTRIBUTIONS, pool.map(attempt, DISTRIBUTIONS), strict=True))
    imports |= {name: Attempt(installed=_is_there(name)) for name in REQUIRED}
    imports["torch"], torch = ask_torch()
    return Machine(
        python=sys.version_info[:3],
        system=platform.system(),
        imports=imports,
        apex_has_optimizers=_is_there("apex.optimizers"),
        torch=torch,
        driver=_driver(),
        kernels=_kernels() if imports["megatron_nca.ops"].loads else (),
        processor=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        cpu_quota=cpu_quota(),
        memory=_available_memory(),
        memory_limit=memory_limit(),
        shared_memory=shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None,
        open_files=_open_files(),
        folder=look_at_folder(folder),
        network=_network(),
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def attempt(module: str) -> Attempt:
    """Import a module in a process of its own, if it is there at all."""
    if not _is_there(module):
        return Attempt()
    error, _ = _in_a_process("-c", f"import {module}")
    return Attempt(installed=True, version=_version(DISTRIBUTIONS.get(module, module)), error=error)


def _in_a_process(*words: str) -> tuple[str | None, str]:
    """What went wrong, or None, and the output of a run of this Python."""
    command = [sys.executable, "-W", "ignore", *words]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"it was not done after {PATIENCE_SECONDS} seconds.", ""
    if result.returncode < 0:
        return f"it crashed by {signal.Signals(-result.returncode).name}.", result.stdout
    if result.returncode > 0:
        return (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1], result.stdout
    return None, result.stdout


def _is_there(module: str) -> bool:
    """Whether the module can be found, without running code of its package."""
    package, _, rest = module.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not rest:
        return spec is not None
    folders = [Path(place, *rest.split(".")[:-1]) for place in spec.submodule_search_locations or ()]
    leaf = rest.split(".")[-1]
    names = [leaf, *(leaf + suffix for suffix in importlib.machinery.all_suffixes())]  # a stub, .pyi, is no module
    return any((folder / name).exists() for folder in folders for name in names)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def ask_torch() -> tuple[Attempt, TorchFacts | None]:
    """Whether torch loads and answers, and what."""
    if not _is_there("torch"):
        return Attempt(), None
    error, output = _in_a_process("-m", "megatron_nca.doctor.torch_facts")
    found = Attempt(installed=True, version=_version("torch"), error=error)
    if error is not None:
        return found, None
    facts = json.loads(output.splitlines()[-1])
    gpus = [Gpu(**{**gpu, "capability": tuple(gpu["capability"])}) for gpu in facts.pop("gpus")]
    return found, TorchFacts(**facts, gpus=tuple(gpus))


def _kernels() -> tuple[str, ...]:
    _, output = _in_a_process("-c", "from megatron_nca import ops; print(*ops.kernel_names())")
    return tuple(output.split())


def _driver() -> str | None:
    found = re.search(r"Kernel Module.*?\s(\d+[\d.]+)\s", _read("/proc/driver/nvidia/version"))
    return found.group(1) if found else None


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: str | None = None) -> float | None:
    """Cores' worth of time that this process's cgroup grants; None: no limit. Versions 2 and 1 of cgroups."""
    two, one = _cgroup_files(root, "cpu.max", "cpu/cpu.cfs_quota_us", membership)
    for text in two:
        quota, _, period = text.partition(" ")
        if quota != "max":
            return int(quota) / int(period)
    for text in one:
        period = _read(root / "cpu" / "cpu.cfs_period_us").strip()
        if int(text) > 0 and period:
            return int(text) / int(period)
    return None


def memory_limit(root: Path = Path("/sys/fs/cgroup"), membership: str | None = None) -> int | None:
    """Bytes that this process's cgroup may use; None: no limit."""
    two, one = _cgroup_files(root, "memory.max", "memory/memory.limit_in_bytes", membership)
    limits = [int(text) for text in [*two, *one] if text != "max"]
    return min((limit for limit in limits if limit < NO_LIMIT), default=None)


def _cgroup_files(root: Path, two: str, one: str, membership: str | None) -> tuple[list[str], list[str]]:
    """What these files of versions 2 and 1 say: of this process's own group where it is visible, and of the root."""
    lines = (_read("/proc/self/cgroup") if membership is None else membership).splitlines()
    controller, name = one.split("/")
    own = {fields[1]: fields[2].lstrip("/") for fields in (line.split(":", 2) for line in lines)}
    new = [root / own.get("", "") / two, root / two]
    old = [root / controller / path / name for key, path in own.items() if controller in key.split(",")]
    old.append(root / controller / name)
    texts = [[_read(path).strip() for path in dict.fromkeys(paths)] for paths in (new, old)]
    return tuple([text for text in version if text] for version in texts)


def _available_memory() -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _open_files() -> tuple[int, int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return tuple(NO_LIMIT if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))


def look_at_folder(folder: Path) -> Folder:
    """The folder, or its nearest parent that is there; a file in its place cannot be written to as a folder can."""
    # os.path, since pathlib raises an error below a folder that is shut.
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if os.path.exists(path))
    writable = os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)
    return Folder(path=str(there), writable=writable, free=shutil.disk_usage(there).free, kind=_kind(there.resolve()))


def _kind(path: Path) -> str:
    """The type of the file system that holds the path, by the longest mount point above it."""
    mounts = [line.split()[1:3] for line in _read("/proc/mounts").splitlines()]
    # Later lines cover earlier ones; \040 is a blank in a mount point.
    above = [(point.replace("\\040", " "), kind) for point, kind in mounts]
    above = [(point, kind) for point, kind in above if path.is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]), default=("", "an unknown file system"))[1]


def _network() -> Network:
    hostname, master = socket.gethostname(), os.environ.get("MASTER_ADDR")
    ports = _read("/proc/sys/net/ipv4/ip_local_port_range").split()
    return Network(
        hostname=hostname,
        address=_resolve(hostname),
        loopback_port=_can_listen(),
        master_address=None if master is None else _resolve(master),
        **({"ephemeral_ports": (int(ports[0]), int(ports[1]))} if len(ports) == 2 else {}),
    )


def _resolve(name: str) -> str | None:
    try:
        return socket.getaddrinfo(name, None)[0][4][0]
    except OSError:
        return None


def _can_listen() -> bool:
    try:
        with socket.create_server(("localhost", 0)):
            return True
    except OSError:
        return False


def _read(path: str | Path) -> str:
    """The file's text, empty where it is not there or may not be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
