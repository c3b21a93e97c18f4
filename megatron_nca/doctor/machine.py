"""What is known of a machine, as plain values; sizes in bytes. None: not known, or not there."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An import tried in a process of its own, so that a crash is a fact like others."""

    installed: bool = False
    version: str | None = None
    error: str | None = None
    """Its last line, None if it loads. A process that died by a signal says so here."""

    @property
    def loads(self) -> bool:
        return self.installed and self.error is None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class TorchFacts:
    cuda_build: str | None = None
    """The CUDA version that torch was built for; None for a CPU build."""
    nccl: str | None = None
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Where a run would write; of a folder that is not there, its nearest parent."""

    path: str
    writable: bool
    free: int
    kind: str
    """The file system's type, such as ext4, nfs4, lustre, overlay, tmpfs."""


@dataclass(frozen=True, kw_only=True)
class Network:
    hostname: str
    address: str | None
    """That the hostname resolves to."""
    loopback_port: bool
    """Whether a process can listen on localhost."""
    master_address: str | None = None
    """That MASTER_ADDR resolves to."""
    ephemeral_ports: tuple[int, int] = (32_768, 60_999)
    """Which the kernel hands out to outgoing connections."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    python: tuple[int, int, int]
    system: str
    imports: dict[str, Attempt]
    """By module; one that is not a key was not looked for."""
    apex_has_optimizers: bool = False
    """Whether the installed `apex` has the folder that NVIDIA's has."""
    torch: TorchFacts | None = None
    """None where torch does not load."""
    driver: str | None = None
    """NVIDIA's, as the kernel knows it."""
    kernels: tuple[str, ...] = ()
    """Of the generator, fastest first."""
    processor: str = "x86_64"
    cores: int = 1
    """That this process may run on."""
    cpu_quota: float | None = None
    """Cores' worth of time that the cgroup grants."""
    memory: int | None = None
    """Available, by the kernel."""
    memory_limit: int | None = None
    """Of the cgroup."""
    shared_memory: int | None = None
    """Free in /dev/shm."""
    open_files: tuple[int, int] = (1024, 1024)
    """Soft and hard limit."""
    folder: Folder
    network: Network
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return self.torch.gpus if self.torch else ()

    @property
    def usable_cores(self) -> float:
        return self.cores if self.cpu_quota is None else min(self.cores, self.cpu_quota)


@dataclass(frozen=True)
class Finding:
    level: Literal["ok", "note", "problem"]
    subject: str
    says: str
    cure: str | None = None
    """Given for every problem, and for a note that asks for something."""


def ok(subject: str, says: str) -> Finding:
    return Finding("ok", subject, says)


def note(subject: str, says: str, cure: str | None = None) -> Finding:
    return Finding("note", subject, says, cure)


def problem(subject: str, says: str, cure: str) -> Finding:
    return Finding("problem", subject, says, cure)
