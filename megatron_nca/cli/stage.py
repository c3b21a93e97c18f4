"""`megatron-nca stage`: make a recipe's on-node dataset on this node."""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_nca.cli.arguments import accept_overrides_anywhere
from megatron_nca.cli.progress import Progress
from megatron_nca.config.dataset import Dataset
from megatron_nca.config.recipe import Recipe, load_recipe
from megatron_nca.config.schema import suggest
from megatron_nca.errors import ConfigError, MegatronNcaError, explain

EXAMPLES = """examples:
  ahead of a training, on each of its nodes (the training finds the data whole)
    srun --ntasks-per-node=1 megatron-nca stage RECIPE --dataset automata
  in memory, whatever the recipe says
    megatron-nca stage RECIPE --dataset automata datasets.automata.on_node.folder=/dev/shm/nca

A training whose dataset has `on_node` starts this by itself, on each node once. What is there already, made with the
same settings, is used as it is; `train` and `stage` at the same time make it once."""

if typing.TYPE_CHECKING:
    from megatron_nca.sources import staging

REPORT_SECONDS = 0.1
"""Least time between two reports to a training."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings of the recipe to change")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="a dataset of the recipe with `on_node`")
    parser.add_argument("--seed", type=int, help="of the training that reads it (default: the recipe's first)")
    parser.add_argument("--nice", type=int, default=0, metavar="N", help="lower this process's priority by N")
    parser.add_argument("--for-training", type=int, metavar="CONSUMED", help=argparse.SUPPRESS)
    accept_overrides_anywhere(parser)


def run(arguments: argparse.Namespace) -> int:
    """With --for-training it is the child of a training that has consumed so many sequences: reports and errors go to
    stdout as JSON lines, and its stdin is closed when the unfinished files have been opened."""
    # So that nothing unfinished is left. A training stops in good order when all processes of a job are told to, and
    # needs its generator until then; it has a signal of its own for it.
    ends = signal.SIGTERM if arguments.for_training is None else signal.SIGHUP
    signal.signal(ends, lambda *_: sys.exit(128 + ends))
    if arguments.for_training is not None:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    if arguments.nice < 0:
        raise ConfigError(explain("--nice", arguments.nice, "would raise the priority.", "give 0 or more."))
    os.nice(arguments.nice)
    if arguments.for_training is None:
        _stage(arguments, 0, _by_hand, lambda: None)
        return 0
    try:
        _stage(arguments, arguments.for_training, _to_training, sys.stdin.read)
    except MegatronNcaError as error:
        _send({"error": str(error)})
        return 2
    except BrokenPipeError:  # the training has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try it once more
        return 1
    return 0


def _stage(arguments: argparse.Namespace, consumed: int, reporter: Callable, before_publishing: Callable) -> None:
    """Validation first, which training needs whole before its first iteration."""
    from megatron_nca.data.order import order_from
    from megatron_nca.sources import staging, writing
    from megatron_nca.sources.nca import NcaSource

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    dataset = on_node_dataset(recipe, arguments.dataset)
    seed = recipe.seeds[0] if arguments.seed is None else arguments.seed
    if not 0 <= seed < 2**32:
        cure = f"give that of the training, such as {recipe.seeds[0]}."
        raise ConfigError(explain("--seed", seed, "must lie in 0..2^32-1.", cure))
    for part, part_seed in (("validation", dataset.validation_seed), ("train", dataset.seed)):
        sequences = recipe.part_sequences(arguments.dataset, part)
        place = staging.staged(dataset, part, sequences)
        torn = writing.is_torn(place.prefix)
        if torn:
            print(f"made again, unless another process is about to finish it: {torn}", file=sys.stderr, flush=True)
        source = NcaSource(dataset.law, sequences, part_seed, threads=dataset.on_node.num_threads())
        order = order_from(seed, consumed if part == "train" else 0, sequences)
        with reporter(part, place, sequences) as report:
            staging.stage(source, place, order, report, before_publishing if part == "train" else lambda: None)


def on_node_dataset(recipe: Recipe, name: str) -> Dataset:
    """The dataset of that name. Raises ConfigError unless it is one that nodes make."""
    if name not in recipe.datasets:
        raise ConfigError(f"--dataset = {name!r}: not defined in the recipe.{suggest(name, list(recipe.datasets))}")
    dataset = recipe.datasets[name]
    if dataset.on_node is None:
        cure = "give it on_node.folder, or make it in the run folder with `megatron-nca generate`."
        raise ConfigError(explain("--dataset", name, "is not made on the nodes: it has no on_node.", cure))
    return dataset


@contextlib.contextmanager
def _by_hand(part: str, place: "staging.Staged", sequences: int) -> Iterator[Callable]:
    """Progress on stderr, the outcome on stdout."""
    latest = None

    def note() -> str:
        return f"{part}: {latest.state}, {latest.candidates:,} candidates"

    with Progress(sequences, "sequences", note) as progress:

        def report(now: "staging.Progress") -> None:
            nonlocal latest
            latest = now
            progress.add(now.made - progress.done)

        yield report
    print(f"{place.prefix}: {part}, {sequences:,} sequences, whole", flush=True)


@contextlib.contextmanager
def _to_training(part: str, place: "staging.Staged", _sequences: int) -> Iterator[Callable]:
    """Lines for the training that started this: each change of state, and how far it is now and then."""
    sent, state = 0.0, None

    def report(now: "staging.Progress") -> None:
        nonlocal sent, state
        if now.state != state or time.monotonic() - sent >= REPORT_SECONDS:
            sent, state = time.monotonic(), now.state
            _send({"part": part, **dataclasses.asdict(now), "processor seconds": time.process_time()})

    yield report


def _send(values: dict) -> None:
    print(json.dumps(values), flush=True)
