"""`megatron-nca job`: what a batch script of a plan on Slurm runs, inside its allocation."""

import argparse
import os
from pathlib import Path

from megatron_nca.errors import ConfigError
from megatron_nca.run_dir import RunFolder

EXAMPLES = """Called by the scripts in RUN/slurm/scripts, which `megatron-nca submit` writes. Each task of the job is
started by srun if it is not whole; then the job is over, requeued, or fails (docs/exits.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("name", metavar="JOB", help="a job of RUN/slurm/jobs.json")
    parser.add_argument("--of-series", type=int, default=0, metavar="N", help="which of a series of jobs this is")
    parser.add_argument("--check-node", action="store_true", help="only say whether this node is fit for it")


def run(arguments: argparse.Namespace) -> int:
    if "SLURM_JOB_ID" not in os.environ:
        raise ConfigError("SLURM_JOB_ID: is not set; this is no job of Slurm. Cure: `megatron-nca submit` makes jobs.")
    run_folder = RunFolder(arguments.run_dir)
    if arguments.check_node:
        from megatron_nca.cluster import node
        from megatron_nca.cluster.profile import load_cluster

        print(node.report(load_cluster(run_folder.slurm.cluster), run_folder.slurm), flush=True)
        return 0
    from megatron_nca.cluster.worker import Worker

    return Worker(run_folder, arguments.name, arguments.of_series).work()
