"""`megatron-nca status`: how far a run is, on Slurm or not."""

import argparse
from pathlib import Path

from megatron_nca import plan
from megatron_nca.cli.arguments import opened
from megatron_nca.cluster import record, status
from megatron_nca.config.recipe import load_recipe

EXAMPLES = """examples:
  megatron-nca status runs/demo

Steps are told by the run's own files. The queue is asked at most once in 30 seconds, whoever asks, and what it does not
remember of ended jobs is in RUN/slurm/progress.txt."""

EVENTS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run's folder")


def run(arguments: argparse.Namespace) -> int:
    run_folder = opened(arguments.run_dir)
    recipe = load_recipe(run_folder.recipe)
    steps = plan.steps(recipe, run_folder)
    iterations = {name: phase.iterations for name, phase in recipe.phases.items()}
    print(f"{run_folder.path}: {sum(step.whole for step in steps)} of {len(steps)} steps are whole")
    print("\n".join(status.of_steps(steps, iterations)))
    submission = record.read(run_folder.slurm)
    if submission is not None:
        print(f"jobs of submission {submission.name}:")
        print("\n".join(status.of_jobs(run_folder, submission)))
    if run_folder.slurm.progress.is_file():
        events = run_folder.slurm.progress.read_text(encoding="utf-8", errors="replace").splitlines()[-EVENTS:]
        print(f"last of {run_folder.slurm.progress}:")
        print("\n".join(f"  {event}" for event in events))
    return 0
