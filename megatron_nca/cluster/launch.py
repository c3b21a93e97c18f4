"""How a step of the plan is started inside an allocation: the command line of srun and what ranks are told."""

import os
import socket
from pathlib import Path

from megatron_nca import plan
from megatron_nca.cluster.jobs import Job, Task
from megatron_nca.cluster.profile import Cluster, Container
from megatron_nca.errors import ConfigError, explain
from megatron_nca.plan import Step

FIRST_PORT, PORTS = 12_000, 8_000
"""Ports where ranks meet: below the range from which systems take those of connections (Linux: 32768 and up)."""
LAUNCHER, ATTEMPT = "MEGATRON_NCA_LAUNCHER", "MEGATRON_NCA_ATTEMPT"


def command(
    job: Job, task: Task, step: Step, cluster: Cluster, run: Path, *, more: tuple[str, ...] = (), meet: tuple[str, int]
) -> list[str]:
    """srun with the step's command in as many tasks as it has ranks.

    `more` are further words of the command; `meet` the address and port at which the ranks of torchrun meet.
    """
    words = list(step.command)
    nodes = cluster.nodes(job.ranks)
    per_node = -(-job.ranks // nodes)
    if not step.trains:
        cpus = cluster.node.cpus_per_device * (per_node if job.trains else cluster.node.devices)
        return [*srun(cluster, 1, 1, cpus), *_inside([*words, *task.flags, *more], cluster, run)]
    words = [*words[:3], *words[words.index("train") :]] if "torchrun" in words else words
    words += [*task.flags, *more]
    if cluster.node.copy_data:
        # Each rank fills in variables of its own node. Nodes are shared with other users, whose folders are theirs.
        words += ["--copy-data-to", f"{cluster.node.disk}/megatron_nca-{os.getuid()}"]
    if cluster.launcher == "srun":
        return [*srun(cluster, nodes, job.ranks, cluster.node.cpus_per_device), *_inside(words, cluster, run)]
    meeting = ["--nnodes", str(nodes), "--nproc-per-node", str(per_node)]
    meeting += ["--master-addr", meet[0], "--master-port", str(meet[1])]
    words = [*words[:3], "torchrun", *meeting, *words[1:]]
    # Each task is told its number by Slurm, and torchrun reads flags from variables of these names.
    shell = ["sh", "-c", 'PET_NODE_RANK="$SLURM_NODEID" exec "$@"', "sh"]
    cpus = cluster.node.cpus_per_device * per_node
    return [*srun(cluster, nodes, nodes, cpus), *_inside([*shell, *words], cluster, run)]


def srun(cluster: Cluster, nodes: int, tasks: int, cpus: int) -> list[str]:
    """Its own words, of a step over so many nodes."""
    return ["srun", "--export=ALL", f"--nodes={nodes}", f"--ntasks={tasks}", f"--ntasks-per-node={tasks // nodes}",
            f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1", "--unbuffered"]


def _inside(words: list[str], cluster: Cluster, run: Path) -> list[str]:
    """The command, in the container if the cluster has one."""
    container = cluster.container
    if container is None:
        return words
    ours = words.index("-m") - 1
    words = [*words[:ours], container.python, *words[ours + 1 :]]
    return [*_runtime(container, mounts(container, run), cluster.node.device != "cpu"), *words]


def mounts(container: Container, run: Path) -> list[str]:
    """HOST:INSIDE of all that is seen in it. Raises ConfigError for a path at which the runtime would part the list."""
    paths = {"--run-dir": run, "folder of megatron_nca": plan.DATA_TOOLS.parent}
    for setting, path in paths.items():
        if "," in str(path) or ":" in str(path):
            reason = "has a comma or a colon, which no mount of a container can have."
            raise ConfigError(explain(setting, str(path), reason, "choose another folder."))
    return [*(f"{path}:{path}" for path in paths.values()), *container.mounts]


def _runtime(container: Container, mounts: list[str], gpus: bool) -> list[str]:
    if container.runtime == "pyxis":  # flags of srun itself
        return [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}"]
    binds = [word for mount in mounts for word in ("--bind", mount)]
    return ["apptainer", "exec", *(["--nv"] if gpus else []), *binds, container.image]


def free_port(number: int) -> int:
    """A port that is free on this node, the first, from a place that two jobs seldom share."""
    for offset in range(PORTS):
        port = FIRST_PORT + (7 * number + offset) % PORTS
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise OSError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free")
