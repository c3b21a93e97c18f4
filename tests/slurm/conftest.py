"""One real Slurm for all tests that need it: three nodes on this machine, with daemons and ports of their own."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import plans
import pytest

NEEDED = "MEGATRON_NCA_NEEDS_SLURM"
"""Set where a machine must have Slurm: a test that cannot run there fails."""


@pytest.fixture(scope="session")
def slurm():
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name, path=path) is None]
    if missing:
        reason = f"{', '.join(missing)} is not installed (apt-get install slurm-wlm munge)"
        if os.environ.get(NEEDED):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # sockets have short names, and pytest's folders long ones
    script = [str(plans.ROOT / "slurm" / "dev_cluster.sh")]
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PYTHONPATH")}
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    os.environ["PYTHONPATH"] = str(plans.ROOT)
    try:
        subprocess.run([*script, "up", str(folder), "3"], check=True, timeout=120)
        yield plans.Slurm(folder)
    finally:
        subprocess.run([*script, "down", str(folder)], check=False, timeout=120)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder, ignore_errors=True)
