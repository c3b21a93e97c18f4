"""A cluster file: all that differs from one Slurm to another, as frozen settings that are checked when built."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_nca.account.devices import DEVICES
from megatron_nca.config.duration import seconds_of
from megatron_nca.config.schema import build, named, read_yaml, suggest
from megatron_nca.errors import ConfigError, explain

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
WORD = re.compile(r"[\w.,:@/+=&|*!()\[\]-]+")
"""What stands after `--account=` and the like; nothing that a shell or sbatch would take apart."""
OWN_OPTIONS = {
    *("job-name", "output", "error", "open-mode", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gres"),
    *("gpus-per-node", "gpus", "mem", "time", "signal", "requeue", "no-requeue", "array", "export", "chdir"),
    *("dependency", "kill-on-invalid-dep", "partition", "account", "qos", "parsable", "wrap", "exclude"),
}
LONGEST = 366 * 86_400.0
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(^|_)KEY($|_)|API_?KEY", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of the partition."""

    devices: int
    """Ranks that it takes: its GPUs, or without any as many processes as shall share it."""
    device: str = "cpu"
    """What a rank has, by its name in account/devices.py: the memory that a recipe must fit in."""
    request: Literal["gpus-per-node", "gres", "none"] = "none"
    """How devices are asked for: --gpus-per-node=N, --gres=gpu:N, or not at all."""
    gpu_type: str | None = None
    """As Slurm knows it: --gpus-per-node=TYPE:N."""
    cpus_per_device: int = 1
    memory: str | None = None
    """--mem, of a node; `0` is all. None: the partition's default."""
    disk: str | None = None
    """A folder on the node's own disk or in its memory, such as $SLURM_TMPDIR, where a recipe's `on_node.folder` is;
    a node on which it cannot be written is passed over."""
    disk_gb: float = 0.0
    """That must be free there, in 10^9 bytes, or the node is passed over."""
    copy_data: bool = False
    """Whether trainings read their datasets from copies on `disk`, made and checked by hash on each node. What they
    take should be in `disk_gb`; too little space then ends the training."""
    internet: bool = True
    """Whether compute nodes reach it; if not, hubs and Weights & Biases are told to stay offline."""

    def __post_init__(self) -> None:
        for name in ("devices", "cpus_per_device"):
            if getattr(self, name) < 1:
                raise ConfigError(explain(f"node.{name}", getattr(self, name), "must be at least 1.", "count them."))
        if self.device not in DEVICES:
            known = suggest(self.device, list(DEVICES))
            raise ConfigError(f"node.device = {self.device!r}: is not in account/devices.py.{known}")
        if (self.device == "cpu") != (self.request == "none"):
            cure = "say with node.request how GPUs are asked for, or device: cpu where there are none."
            raise ConfigError(explain("node.request", self.request, f"does not go with device {self.device!r}.", cure))
        if self.gpu_type is not None and self.request == "none":
            cure = "set node.request too, or leave it out."
            raise ConfigError(explain("node.gpu_type", self.gpu_type, "no GPUs are asked for.", cure))
        _check_words({"node.gpu_type": self.gpu_type, "node.memory": self.memory})
        if self.disk is not None and not self.disk.startswith(("/", "$")):
            cure = "give one that begins with / or with a variable, such as $SLURM_TMPDIR."
            raise ConfigError(explain("node.disk", self.disk, "is not the absolute path of a node's folder.", cure))
        if self.copy_data and self.disk is None:
            cure = "name the folder with node.disk, such as $SLURM_TMPDIR."
            raise ConfigError(explain("node.copy_data", True, "there is no disk to copy to.", cure))
        if not 0 <= self.disk_gb < math.inf or (self.disk_gb and self.disk is None):
            cure = "give a number from 0 on, beside node.disk."
            raise ConfigError(explain("node.disk_gb", self.disk_gb, "is no size of a folder that is named.", cure))


@dataclass(frozen=True, kw_only=True)
class Container:
    """Where steps run, if not in the environment that submits. The job itself, which asks Slurm, stays outside."""

    runtime: Literal["pyxis", "apptainer"]
    image: str
    """A file or, for pyxis, an address; as the runtime takes it."""
    mounts: tuple[str, ...] = ()
    """HOST:INSIDE beside the run folder, which keeps its path."""
    python: str = "python3"
    """The one inside that has megatron_nca."""

    def __post_init__(self) -> None:
        for name in ("image", "python"):
            if not getattr(self, name).strip():
                raise ConfigError(explain(f"container.{name}", getattr(self, name), "is empty.", "name it."))
        for mount in self.mounts:
            if not re.fullmatch(r"/[^:,]*:/[^:,]*(:r[ow])?", mount):
                raise ConfigError(
                    explain("container.mounts", mount, "is not HOST:INSIDE.", "give two absolute paths, such as /a:/b.")
                )


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How datasets of automata are shared out over an array of jobs."""

    shards: int = 1
    """Jobs of the array."""
    from_sequences: int = 20_000
    """Smaller datasets are made by one job."""
    banks: dict[str, str] = field(default_factory=dict)
    """Dataset -> the rule bank (docs/bank.md) that its training part is cut from, and which grows by what it lacks."""

    def __post_init__(self) -> None:
        for name in ("shards", "from_sequences"):
            if getattr(self, name) < 1:
                reason, cure = "must be at least 1.", "give a positive number."
                raise ConfigError(explain(f"generation.{name}", getattr(self, name), reason, cure))
        for name, bank in self.banks.items():
            if not bank.startswith("/"):
                cure = "give an absolute path that all nodes see."
                raise ConfigError(explain(f"generation.banks.{name}", bank, "is a relative path.", cure))


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A partition of a cluster, and how jobs live there."""

    name: str
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    options: dict[str, str | None] = field(default_factory=dict)
    """Further options of sbatch, without dashes: {constraint: h100, mail-type: FAIL}. None, which YAML reads where
    nothing is written: one that takes no value, such as `exclusive:`."""
    node: Node
    max_nodes: int | None = None
    """That one job may take."""
    storage_gb: float | None = None
    """What a run may take of the file system of run folders, in 10^9 bytes, such as the rest of a quota, which free
    space does not tell; None: what is free."""
    time: str
    """Limit of a training job, such as 23h50m; Slurm counts whole minutes."""
    data_time: str | None = None
    """Of all other jobs; None: as for training."""
    warn: str = "2m"
    """How long before the limit Slurm warns a job; trainings stop by themselves, as late as their saves allow."""
    resume_by: Literal["requeue", "series"] = "requeue"
    """How a training goes on after its time limit: the same job again, or where that is forbidden a `series` of jobs
    of one name, one after the other."""
    series: int = 4
    """Jobs of a series."""
    tries: int = 3
    """Attempts without progress, after which a job fails and all that depends on it is cancelled."""
    launcher: Literal["srun", "torchrun"] = "srun"
    """Who starts ranks: one task of srun each, or one torchrun a node."""
    array_limit: int = 1001
    """MaxArraySize of the cluster; 1: no arrays."""
    array_at_once: int | None = None
    """Elements of an array that run at the same time; None: as many as Slurm lets."""
    modules: tuple[str, ...] = ()
    """Loaded by `module load`, in this order."""
    python: str | None = None
    """On compute nodes; None: the path of the Python that submits."""
    container: Container | None = None
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of all jobs, such as NCCL_SOCKET_IFNAME. They stand in scripts: no secrets."""
    pass_environment: tuple[str, ...] = ()
    """Variables whose values at submission jobs see too; values stand in no file of ours, so secrets go here."""
    generation: Generation = field(default_factory=Generation)

    def __post_init__(self) -> None:
        words = {name: getattr(self, name) for name in ("name", "partition", "account", "qos")}
        _check_words({**words, **{f"modules[{i}]": name for i, name in enumerate(self.modules)}})
        _check_words({f"options.{key}": value for key, value in self.options.items()})
        for key in self.options:
            if key in OWN_OPTIONS or not re.fullmatch(r"[a-z][a-z-]*", key):
                cure = "use the setting of this file, or leave it out."
                raise ConfigError(explain(f"options.{key}", self.options[key], "is no free option of sbatch.", cure))
        for name in ("max_nodes", "series", "tries", "array_limit", "array_at_once"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(explain(name, getattr(self, name), "must be at least 1.", "give a positive number."))
        if self.storage_gb is not None and not 0 < self.storage_gb < math.inf:
            cure = "give 10^9 bytes, or leave it out."
            raise ConfigError(explain("storage_gb", self.storage_gb, "is no size that a run may take.", cure))
        for name in ("time", "data_time", "warn"):
            _seconds(name, getattr(self, name))
        if 2 * self.warn_seconds > min(self.seconds(True), self.seconds(False)):
            cure = "shorten it, or ask for more time."
            raise ConfigError(explain("warn", self.warn, "is more than half of the time limit.", cure))
        if self.python is not None and not (self.python.strip() and self.python.isprintable()):
            cure = "name the program, or leave it out for the one that submits."
            raise ConfigError(explain("python", self.python, "is empty, or cannot be printed.", cure))
        self._check_environment()

    def _check_environment(self) -> None:
        for name in (*self.environment, *self.pass_environment):
            if not NAME.fullmatch(name):
                raise ConfigError(explain("environment", name, "is no name of a variable.", "use letters, digits, _."))
        for name, value in self.environment.items():
            if SECRET.search(name):
                reason = "looks like a secret, and what stands here is written to scripts and to the run folder."
                cure = f"export {name} where you submit, and write pass_environment: [{name}]."
                raise ConfigError(f"environment.{name}: {reason} Cure: {cure}")
            if "\n" in value or "\0" in value:
                raise ConfigError(explain(f"environment.{name}", value, "has more than one line.", "give one line."))

    def seconds(self, trains: bool) -> float:
        """Time limit of a job."""
        return seconds_of(self.time if trains or self.data_time is None else self.data_time)

    @property
    def warn_seconds(self) -> int:
        return int(seconds_of(self.warn))

    def nodes(self, ranks: int) -> int:
        """Nodes of a job of so many ranks. Raises ConfigError where they do not fill them."""
        nodes = -(-ranks // self.node.devices)
        if nodes > 1 and ranks % self.node.devices:
            reason = f"does not divide the {ranks} ranks of a training that needs {nodes} nodes."
            cure = "change the phase's parallel settings, or let a node take fewer."
            raise ConfigError(explain("node.devices", self.node.devices, reason, cure))
        if self.max_nodes is not None and nodes > self.max_nodes:
            cure = "change the phase's parallel settings, or take another partition."
            raise ConfigError(explain("max_nodes", self.max_nodes, f"{ranks} ranks need {nodes} nodes.", cure))
        return nodes


def _seconds(name: str, text: str | None) -> None:
    try:
        seconds = 1.0 if text is None else seconds_of(text)
    except ConfigError as error:
        raise ConfigError(f"{name} = {error}") from error
    if seconds <= 0:
        raise ConfigError(explain(name, text, "is no time at all.", "give for example 3h50m."))
    if seconds > LONGEST:
        raise ConfigError(explain(name, text, "is more than a year.", "give for example 3h50m."))


def _check_words(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is not None and not WORD.fullmatch(value):
            reason = "is empty, or has characters that a batch script would take apart."
            raise ConfigError(explain(name, value, reason, "use letters, digits and . , : @ / + = - _."))


def load_cluster(path: Path) -> Cluster:
    """A cluster file. Raises ConfigError naming the file and the setting."""
    with named(path):
        return build(Cluster, read_yaml(path))
