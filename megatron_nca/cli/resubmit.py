"""`megatron-nca resubmit`: submit again what is left of a run on Slurm."""

import argparse
import sys
from pathlib import Path

from megatron_nca.cli.arguments import opened
from megatron_nca.cli.sending import send
from megatron_nca.cluster import submission
from megatron_nca.cluster.profile import load_cluster
from megatron_nca.cluster.script import Place
from megatron_nca.config.recipe import load_recipe
from megatron_nca.errors import ConfigError, explain

EXAMPLES = """examples:
  megatron-nca resubmit runs/demo
  on another cluster, or with a longer time limit
    megatron-nca resubmit runs/demo --cluster my-cluster.yaml

What is whole is left out, trainings go on from their newest whole checkpoint, and tries are counted anew. Also for a
run that was begun elsewhere, with --cluster."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="default: the one of the last submission")


def run(arguments: argparse.Namespace) -> int:
    run_folder = opened(arguments.run_dir.absolute())
    if arguments.cluster is None and not run_folder.slurm.cluster.is_file():
        words = f"`megatron-nca submit {run_folder.recipe} --cluster FILE --run-dir {run_folder.path}`"
        cure = f"{words}, or name the cluster with --cluster."
        raise ConfigError(explain("RUN", str(run_folder.path), "was never submitted to a cluster.", cure))
    recipe = load_recipe(run_folder.recipe)
    cluster = load_cluster(arguments.cluster or run_folder.slurm.cluster)
    place = Place(run=run_folder.path, working=Path.cwd(), python=sys.executable, name=recipe.name)
    return send(submission.planned(recipe, cluster, run_folder, place))
