"""`megatron-nca train`: one phase of a recipe, on the ranks that the launcher started."""

import argparse
import logging
import sys
import typing
from functools import partial
from pathlib import Path

from megatron_nca import plan
from megatron_nca.cli.arguments import accept_overrides_anywhere, add_time_limit, add_watchdog, run_dir
from megatron_nca.config.recipe import Recipe, load_recipe
from megatron_nca.config.schema import suggest
from megatron_nca.errors import NOT_FINISHED, ConfigError, MegatronNcaError, explain
from megatron_nca.files import highest_number
from megatron_nca.run_dir import PhaseFolder, RunFolder
from megatron_nca.train.stopping import Stop

if typing.TYPE_CHECKING:
    from megatron_nca.train.loop import Job
    from megatron_nca.train.supply import OnNodeData

EXAMPLES = """examples:
  one process
    megatron-nca train launch/recipes/demo.yaml --phase nca --run-dir runs/demo
  four ranks, as the phase's parallel settings ask for
    megatron-nca torchrun --nproc-per-node 4 -m megatron_nca train RECIPE --phase text --arm nca --run-dir runs/demo
  in a job of four hours
    megatron-nca train launch/recipes/demo.yaml --phase nca --run-dir runs/demo --time-limit 3h55m
  settings on the command line
    megatron-nca train launch/recipes/demo.yaml --phase nca --run-dir runs/x phases.nca.parallel.tensor=1
  DeepSpeed instead of Megatron's engine: ZeRO-2 over two copies of the model (docs/parallelism.md)
    megatron-nca torchrun --nproc-per-node 2 -m megatron_nca train RECIPE --phase text --run-dir runs/x \\
        'phases.text.parallel={engine: deepspeed, zero_stage: 2, data: 2}'

The phase starts from RUN/arms/ARM/seedN/PHASE/initial (see `megatron-nca convert transfer`) and resumes from its own
newest whole checkpoint. `megatron-nca run` makes data and initial checkpoints and calls this in order.
SIGTERM, SIGUSR2 or Ctrl-C, to any rank: the iteration is finished, all is saved, and the exit code is 75. When a rank
fails or is killed, all end, with one message (docs/exits.md).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument("--phase", required=True, help="which phase of the recipe")
    parser.add_argument("--run-dir", type=run_dir, required=True, help="the run's folder")
    parser.add_argument("--arm", help="which arm (default: the first that runs this phase)")
    parser.add_argument("--seed", type=int, help="which seed (default: the recipe's first)")
    parser.add_argument("--copy-data-to", metavar="FOLDER", help="read the dataset from a copy on the own disk of "
                        "each node, made and checked by hash before the first iteration; variables such as "
                        "$SLURM_TMPDIR are filled in on the node")
    add_time_limit(parser)
    add_watchdog(parser)
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings of the recipe to change")
    accept_overrides_anywhere(parser)


def run(arguments: argparse.Namespace) -> int:
    stop = Stop()
    stop.heed_signals()
    from megatron_nca.mcore import parallel
    from megatron_nca.train import boards

    if arguments.time_limit is not None:
        stop.deadline = parallel.launched_at() + arguments.time_limit
    parallel.end_with_launcher()
    ranks = parallel.read_ranks()
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        arm, seed = choose(recipe, arguments.phase, arguments.arm, arguments.seed)
        parallel.check_world_size(recipe.phases[arguments.phase].parallel, ranks)
        boards.check(recipe)
        _, others = plan.differences(plan.resolve_paths(recipe), RunFolder(arguments.run_dir))
    except MegatronNcaError:
        if ranks.is_first:
            raise
        return 2  # every rank finds the same; one message is enough
    from megatron_nca.mcore.watchdog import Watchdog
    from megatron_nca.train.loop import Job, train

    run_folder, on_node = RunFolder(arguments.run_dir), None
    if recipe.datasets[recipe.phases[arguments.phase].dataset].on_node is not None:
        on_node = partial(_on_node, arguments, recipe, seed)
    job = Job(recipe=recipe, phase=arguments.phase, arm=arm, seed=seed, run=run_folder, on_node=on_node,
              copy_data_to=arguments.copy_data_to, attempt=parallel.attempt())
    if ranks.is_first:
        _log_to(job)
        _say_what_differs(others, run_folder)
    folder = run_folder.phase(arm, seed, arguments.phase)
    watchdog = Watchdog(ranks, folder.failed, arguments.watchdog, lambda: _is_newest(job, folder))
    watchdog.start()
    try:
        whole = train(job, ranks, stop, watchdog.at)
    except BaseException as error:  # Megatron's checkpoints raise one that is no Exception
        code = watchdog.failed(error)
        parallel.leave_at_once(code)
        return code
    finally:
        watchdog.close()
        parallel.shut_down()
        stop.ignore_signals()
    return 0 if whole else NOT_FINISHED


def choose(recipe: Recipe, phase: str, arm: str | None, seed: int | None) -> tuple[str, int]:
    """The arm whose folder holds the phase, and the seed. Raises ConfigError."""
    if phase not in recipe.phases:
        raise ConfigError(f"--phase = {phase!r}: not a phase of this recipe.{suggest(phase, list(recipe.phases))}")
    having = {
        name: [step.phase for step in candidate.steps].index(phase)
        for name, candidate in recipe.arms.items()
        if phase in [step.phase for step in candidate.steps]
    }
    if arm is None and len({recipe.home_arm(name, position) for name, position in having.items()}) > 1:
        raise ConfigError(
            explain(
                "--arm",
                None,
                f"phase {phase!r} is trained separately in the arms {', '.join(having)}.",
                "say which one with --arm.",
            )
        )
    if not having:
        raise ConfigError(explain("--phase", phase, "no arm of this recipe runs it.", "add it to an arm's steps."))
    arm = arm or next(iter(having))
    if arm not in having:
        raise ConfigError(f"--arm = {arm!r}: no arm of this recipe with phase {phase!r}.{suggest(arm, list(having))}")
    seed = recipe.seeds[0] if seed is None else seed
    if seed not in recipe.seeds:
        raise ConfigError(
            explain("--seed", seed, f"the recipe's seeds are {list(recipe.seeds)}.", "choose one of them or add it.")
        )
    return recipe.home_arm(arm, having[arm]), seed


def _is_newest(job: "Job", folder: PhaseFolder) -> bool:
    """Whether no other attempt has begun, as far as this rank can know."""
    return job.attempt is None or highest_number(folder.attempts) <= job.attempt


def _on_node(arguments: argparse.Namespace, recipe: Recipe, seed: int) -> "OnNodeData":
    """How this node makes the phase's data, and where. Raises ConfigError."""
    from megatron_nca.sources.staging import staged
    from megatron_nca.train.supply import OnNodeData

    name = recipe.phases[arguments.phase].dataset
    dataset = recipe.datasets[name]
    parts = {part: staged(dataset, part, recipe.part_sequences(name, part)) for part in plan.PARTS}
    return OnNodeData(
        command=plan.stage_command(arguments.recipe, arguments.overrides, name, dataset, seed),
        train_prefix=parts["train"].prefix,
        validation_prefix=parts["validation"].prefix,
        sequences=recipe.part_sequences(name, "train"),
        digest=parts["train"].digest,
        background=dataset.on_node.when == "background",
        record=RunFolder(arguments.run_dir).dataset(name).path,
    )


def _log_to(job: object) -> None:
    path = job.run.phase(job.arm, job.seed, job.phase).log
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("megatron_nca")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [logging.StreamHandler(sys.stderr), logging.FileHandler(path)]
    logger.propagate = False


def _say_what_differs(others: list[str], run_folder: RunFolder) -> None:
    """A training by hand may have settings that are not those by which the report of its run folder describes it."""
    if others:
        lines = "".join(f"\n  {line}" for line in others)
        logging.getLogger("megatron_nca").warning(
            f"warning: other settings than in {run_folder.recipe}, by which a report speaks of this training:{lines}"
        )
