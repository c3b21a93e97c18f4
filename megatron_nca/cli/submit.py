"""`megatron-nca submit`: a recipe's whole plan as jobs of a Slurm cluster."""

import argparse
import os
import sys
from pathlib import Path

from megatron_nca import plan
from megatron_nca.cli.arguments import accept_overrides_anywhere, run_dir
from megatron_nca.cli.sending import send
from megatron_nca.cluster import submission
from megatron_nca.cluster.profile import load_cluster
from megatron_nca.cluster.script import Place
from megatron_nca.cluster.submission import Planned
from megatron_nca.config.recipe import load_recipe
from megatron_nca.run_dir import RunFolder

EXAMPLES = """examples:
  megatron-nca submit launch/recipes/demo.yaml --cluster slurm/clusters/local.yaml --run-dir runs/demo
  what would be submitted, without asking Slurm
    megatron-nca submit launch/recipes/demo.yaml --cluster slurm/clusters/gpu.yaml --run-dir runs/demo --dry-run

What is whole is left out, so the same command goes on after a failure, as `megatron-nca resubmit RUN` does. Then:
`megatron-nca status RUN`, `logs RUN`, `cancel RUN` (slurm/README.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="YAML file, such as launch/recipes/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings of the recipe to change")
    parser.add_argument("--cluster", type=Path, required=True, metavar="FILE", help="such as slurm/clusters/gpu.yaml")
    parser.add_argument("--run-dir", type=run_dir, help="folder of everything that the run writes, seen by all nodes "
                        "(default runs/NAME of the recipe)")
    parser.add_argument("--dry-run", action="store_true", help="print jobs and scripts; write and ask nothing")
    accept_overrides_anywhere(parser)


def run(arguments: argparse.Namespace) -> int:
    recipe = plan.resolve_paths(load_recipe(arguments.recipe, arguments.overrides))
    cluster = load_cluster(arguments.cluster)
    path = Path(os.path.abspath(arguments.run_dir or Path("runs") / recipe.name))
    run_folder = RunFolder(path)
    changed = plan.check_frozen(recipe, run_folder)
    place = Place(run=path, working=Path.cwd(), python=sys.executable, name=recipe.name)
    planned = submission.planned(recipe, cluster, run_folder, place)
    if arguments.dry_run:
        print("".join(f"{line}\n" for line in plan.announce(changed, run_folder)), end="")
        describe(planned)
        print("".join(f"warning: {message}\n" for message in plan.absent(recipe)), end="")
        return 0
    return send(planned)


def describe(planned: Planned) -> None:
    """The jobs, what each waits for, and the script of each."""
    for job in planned.to_do:
        shape = f"{job.ranks} ranks" if job.trains else "1 task"
        many = f"array of {len(job.numbers)}, " if job.is_array else ""
        series = f"series of {planned.cluster.series}, " if planned.is_series(job) else ""
        waits = f", after {', '.join([*job.after, *job.pairwise])}" if job.after or job.pairwise else ""
        print(f"==== {job.name}: {many}{series}{shape}{waits}")
        for tasks in job.elements[:1]:
            print("".join(f"# {' '.join([task.step, *task.flags])}\n" for task in tasks), end="")
        for text in list(planned.scripts(job).values())[:1]:
            print(text)
    total = sum(len(job.numbers) for job in planned.to_do)
    whole = len(planned.jobs) - len(planned.to_do)
    print(f"{len(planned.to_do)} submissions, {total} jobs{f'; {whole} are whole already' if whole else ''}")
