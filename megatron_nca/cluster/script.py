"""The text of one batch script: a pure function of a job, a cluster and a few paths."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from megatron_nca.cluster.jobs import Job
from megatron_nca.cluster.profile import Cluster
from megatron_nca.errors import ConfigError, explain
from megatron_nca.run_dir import SlurmFolder

PASSED = ("PATH", "HOME", "PYTHONPATH", "SLURM_CONF")
"""Variables that jobs see as they were at submission, beside those that the cluster file names."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "offline"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a plan is and what runs it."""

    run: Path
    """The run folder, absolute."""
    working: Path
    """The folder of the submission, in which jobs start."""
    python: str
    name: str
    """Of the recipe."""


def text(job: Job, cluster: Cluster, place: Place, element: int = 0) -> str:
    """One script. All that comes from names and paths stands in quotes; nothing of it is run as code.

    `element`: of a series, which has a script for each of its jobs. Raises ConfigError for a path that Slurm cannot
    take.
    """
    lines = ["#!/usr/bin/env bash", *(f"#SBATCH {option}" for option in options(job, cluster, place)), ""]
    lines += ["set -eo pipefail", *(f"module load {shlex.quote(name)}" for name in cluster.modules)]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in _environment(cluster).items()]
    words = [cluster.python or place.python, "-m", "megatron_nca", "job", str(place.run), job.name]
    if element:
        words += ["--of-series", str(element)]
    return "\n".join([*lines, f"exec {shlex.join(words)}", ""])


def options(job: Job, cluster: Cluster, place: Place) -> list[str]:
    """Options of sbatch, as they stand after #SBATCH."""
    node, nodes = cluster.node, cluster.nodes(job.ranks)
    log = "%A_%a" if job.is_array else "%j"
    result = [
        f"--job-name={job_name(job, place)}",
        f"--output={_path(SlurmFolder(place.run / 'slurm').logs / job.name)[:-1]}-{log}.log\"",
        "--open-mode=append",
        f"--chdir={_path(place.working, pattern=False)}",
    ]
    result += [f"--{key}={getattr(cluster, key)}" for key in ("partition", "account", "qos") if getattr(cluster, key)]
    devices = -(-job.ranks // nodes)
    if job.trains:
        tasks = devices if cluster.launcher == "srun" else 1
        result += [f"--nodes={nodes}", f"--ntasks-per-node={tasks}"]
        result.append(f"--cpus-per-task={cluster.node.cpus_per_device * devices // tasks}")
        if node.request != "none":
            kind = f"{node.gpu_type}:" if node.gpu_type else ""
            prefix = "--gpus-per-node=" if node.request == "gpus-per-node" else "--gres=gpu:"
            result.append(f"{prefix}{kind}{devices}")
    else:
        result += ["--nodes=1", "--ntasks-per-node=1", f"--cpus-per-task={node.cpus_per_device * node.devices}"]
    if node.memory is not None:
        result.append(f"--mem={node.memory}")
    result.append(f"--time={max(1, int(-(-cluster.seconds(job.trains) // 60)))}")
    result.append(f"--signal=B:USR2@{cluster.warn_seconds}")
    result.append("--requeue" if cluster.resume_by == "requeue" else "--no-requeue")
    result.append(f"--export={','.join(dict.fromkeys((*PASSED, *cluster.pass_environment)))}")
    if job.is_array:
        at_once = f"%{cluster.array_at_once}" if cluster.array_at_once else ""
        result.append(f"--array={ranges(job.numbers)}{at_once}")
    return result + [f"--{key}" if value is None else f"--{key}={value}" for key, value in cluster.options.items()]


def job_name(job: Job, place: Place) -> str:
    """As squeue shows it. A series is known by it, so it holds where the run is."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{place.name}.{place.run.name}")[:40] + f".{job.name}"


def ranges(numbers: tuple[int, ...]) -> str:
    """`0-3,7` of ascending numbers."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _environment(cluster: Cluster) -> dict[str, str]:
    """Settings of the file come last."""
    offline = {} if cluster.node.internet else OFFLINE
    return {**offline, **cluster.environment}


def _path(path: Path, pattern: bool = True) -> str:
    """A path as sbatch reads it in a directive: in double quotes, where only a quote is special.

    `pattern`: it is one, in which % stands before letters.
    """
    name = str(path)
    if "\\" in name or any(not character.isprintable() for character in name):
        reason = "has a backslash or a character that cannot be printed, which Slurm cannot take in a script."
        raise ConfigError(explain("path", name, reason, "choose another folder."))
    name = name.replace('"', '\\"')
    return f'"{name.replace("%", "%%") if pattern else name}"'
