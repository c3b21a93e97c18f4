"""Is this node fit for a training: its devices, its disk, the run folder, apptainer. Quick, and without torch."""

import json
import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

from megatron_nca.cluster.profile import Cluster
from megatron_nca.run_dir import SlurmFolder


def report(cluster: Cluster, folder: SlurmFolder) -> str:
    """One line of JSON: this node's name and what is wrong with it."""
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return json.dumps({"node": name, "problems": problems(cluster, folder)})


def problems(cluster: Cluster, folder: SlurmFolder) -> list[str]:
    """In words; empty: none."""
    found = [_of_folder(folder.path), _of_disk(cluster), _of_devices(cluster), _of_container(cluster)]
    return [problem for problem in found if problem]


def _of_folder(path: Path) -> str | None:
    probe = path / f".probe-{secrets.token_hex(4)}"
    try:
        probe.write_text("probe", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    return None


def _of_disk(cluster: Cluster) -> str | None:
    if cluster.node.disk is None:
        return None
    path = os.path.expandvars(cluster.node.disk)
    if not os.path.isdir(path) or not os.access(path, os.W_OK):
        return f"{path} is no folder that can be written"
    free = shutil.disk_usage(path).free / 1e9
    if free < cluster.node.disk_gb:
        return f"{path} has {free:.1f} GB free, less than {cluster.node.disk_gb:g}"
    return None


def _of_devices(cluster: Cluster) -> str | None:
    """By the driver's own program, which sees what the job was given."""
    if cluster.node.device == "cpu":
        return None
    try:
        result = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer: {error}"
    if result.returncode:
        return f"nvidia-smi: {(result.stdout + result.stderr).strip()[:200]}"
    seen = sum(line.startswith("GPU ") for line in result.stdout.splitlines())
    given = len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")) if os.environ.get("CUDA_VISIBLE_DEVICES") else seen
    wanted = min(cluster.node.devices, given)
    return f"{seen} GPUs answer of {wanted}" if seen < wanted else None


def _of_container(cluster: Cluster) -> str | None:
    """Of srun a missing program is exit code 2, which looks like a user's error. Pyxis is a part of Slurm there."""
    wanted = cluster.container is not None and cluster.container.runtime == "apptainer"
    return "apptainer is not in its PATH" if wanted and shutil.which("apptainer") is None else None
