"""Make Megatron's indices of a recipe's text ahead of its trainings, on a CPU, so that no accelerator waits for them.

Of each phase and seed that reads text: the document, sample and shuffle index of training and
validation data, and of a blend the order in which its datasets follow. They appear whole or not
at all in RUN/data/DATASET/index_cache, where the training finds them if the recipe's iterations,
batch sizes, sequence length, seeds and weights are the same. Automata need none. The data must
be there: `megatron-nca run` makes a corpus, or name indexed datasets.

Example:
    python data_tools/prepare_cache.py launch/recipes/demo.yaml --run-dir runs/demo
    python data_tools/prepare_cache.py recipe.yaml --run-dir runs/mine --phase text phases.text.iterations=20000
"""

import argparse
import os
import sys
from pathlib import Path

from megatron_nca.cli.arguments import accept_overrides_anywhere
from megatron_nca.config.recipe import load_recipe
from megatron_nca.config.schema import suggest
from megatron_nca.data.tool import run_tool, tool_parser
from megatron_nca.errors import ConfigError
from megatron_nca.run_dir import RunFolder


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("prepare_cache.py", __doc__)
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument("--run-dir", type=Path, required=True, help="the run's folder")
    parser.add_argument("--phase", help="this phase's alone (default: every phase that reads text)")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings of the recipe to change")
    accept_overrides_anywhere(parser)
    return parser


def main(arguments: argparse.Namespace) -> None:
    recipe, run = load_recipe(arguments.recipe, arguments.overrides), RunFolder(arguments.run_dir)
    if arguments.phase is not None and arguments.phase not in recipe.phases:
        raise ConfigError(f"--phase = {arguments.phase!r}: not a phase.{suggest(arguments.phase, list(recipe.phases))}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
    from megatron_nca.train import reading

    for phase, settings in recipe.phases.items():
        if arguments.phase not in (None, phase):
            continue
        if recipe.datasets[settings.dataset].is_generated:
            print(f"phase {phase}: reads {recipe.datasets[settings.dataset].source}, which needs no index")
            continue
        for seed in recipe.seeds:
            made = reading.prepare_indices(recipe, run, phase, seed)
            print(f"phase {phase}, seed {seed}: {made} files made in {reading.index_cache(recipe, run, phase)}")


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
