"""`megatron-nca generate`: make an automata dataset."""

import argparse
import dataclasses
import os
import sys
import time
import typing
from pathlib import Path

from megatron_nca.cli.arguments import add_law_options, law_changes
from megatron_nca.cli.progress import Progress
from megatron_nca.config.law import NcaLaw, preset, replace
from megatron_nca.config.schema import suggest, to_yaml
from megatron_nca.errors import ConfigError, explain

if typing.TYPE_CHECKING:
    from megatron_nca.nca.bank import Bank

EXAMPLES = """examples:
  2,000 sequences of the released law, in DIR/nca.bin, .idx and .json
    megatron-nca generate --preset released --sequences 2000 --seed 7 --band 0.5 1.0 --output DIR/nca
  what it would take, without making it
    megatron-nca generate --sequences 16000 --output DIR/nca --dry-run
  a small law that is learnt in a minute
    megatron-nca generate --sequences 4000 --num-states 2 --grid 8 8 --band 0.15 0.35 --output DIR/small
  a dataset of a recipe
    megatron-nca generate --recipe launch/recipes/demo.yaml --dataset nca --part train --run-dir runs/demo
The same settings and seed give the same bytes, whatever the number of threads."""

DRY_RUN_CANDIDATES = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="PREFIX", help="path of the dataset without an ending")
    parser.add_argument("--sequences", type=int, metavar="N", help="number of sequences (documents)")
    parser.add_argument("--seed", type=int, help="seed of all that is random (default 0)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores (%(default)s)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the law, sizes and expected acceptance; write nothing"
    )
    bank = parser.add_argument_group("scores from a rule bank (`megatron-nca bank`), for the same bytes sooner")
    bank.add_argument("--bank", type=Path, metavar="BANK", help="folder of the bank")
    bank.add_argument("--extend-bank", action="store_true", help="score what the bank lacks, and add it to the bank")
    recipe = parser.add_argument_group("a recipe's dataset, in place of the options of the law")
    recipe.add_argument("--recipe", type=Path, help="YAML file")
    recipe.add_argument("--dataset", metavar="NAME", help="a dataset of the recipe")
    recipe.add_argument("--part", choices=["train", "validation"])
    recipe.add_argument("--run-dir", type=Path, help="the run's folder")
    add_law_options(parser, [field.name for field in dataclasses.fields(NcaLaw)])


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be made, and where."""

    law: NcaLaw
    sequences: int
    seed: int
    prefix: Path
    inside_run: bool
    """Whether the place is a run folder's own, where a torn dataset is made again; elsewhere it may be a user's."""


def run(arguments: argparse.Namespace) -> int:
    request = _recipe_request(arguments) if arguments.recipe else _plain_request(arguments)
    from megatron_nca.sources import nca as source_of_nca

    law, prefix = request.law, request.prefix
    torn = source_of_nca.is_torn(prefix) if request.inside_run else None
    if torn:
        print(f"made again: {torn}", file=sys.stderr)
    there = None if torn else source_of_nca.existing(prefix, law, request.sequences, request.seed)
    if there is not None and not arguments.dry_run:
        print(f"{prefix}: is there already, made with these settings ({there.documents:,} sequences)")
        return 0
    bank = _open_bank(arguments)
    if arguments.dry_run:
        source = source_of_nca.NcaSource(law, request.sequences, request.seed, threads=arguments.threads)
        return _dry_run(source, prefix, bank)
    source = source_of_nca.NcaSource(
        law,
        request.sequences,
        request.seed,
        threads=arguments.threads,
        bank=bank,
        extend_bank=arguments.extend_bank,
    )
    with Progress(request.sequences, "sequences", lambda: f"{source.examined:,} candidates") as progress:
        manifest = source_of_nca.generate(source, prefix, progress.add)
    print(
        f"{prefix}: {manifest.documents:,} sequences, {manifest.tokens:,} tokens of {manifest.dtype}; "
        f"{source.accepted:,} of {source.examined:,} candidates passed the band "
        f"({100 * source.accepted / source.examined:.1f} %)"
    )
    return 0


def _open_bank(arguments: argparse.Namespace) -> "Bank | None":
    if arguments.bank is None:
        if arguments.extend_bank:
            raise ConfigError("--extend-bank: belongs to --bank. Cure: name the bank with --bank.")
        return None
    from megatron_nca.nca.bank import Bank

    return Bank(arguments.bank)


def _plain_request(arguments: argparse.Namespace) -> Request:
    for name in ("dataset", "part", "run_dir"):
        if getattr(arguments, name) is not None:
            raise ConfigError(
                explain(
                    "--" + name.replace("_", "-"),
                    str(getattr(arguments, name)),
                    "belongs to --recipe.",
                    "give --recipe, or --output and the options of the law.",
                )
            )
    for name in ("sequences", "output"):
        if getattr(arguments, name) is None:
            raise ConfigError(f"--{name}: is required. Cure: give it, or a recipe with --recipe.")
    changes = law_changes(arguments)
    law = replace(preset(arguments.preset or "released"), **changes)
    return Request(law, arguments.sequences, arguments.seed or 0, arguments.output, inside_run=False)


def _recipe_request(arguments: argparse.Namespace) -> Request:
    from megatron_nca.config.recipe import load_recipe
    from megatron_nca.run_dir import RunFolder

    given = [name for name in ("output", "sequences", "seed", "preset") if getattr(arguments, name) is not None]
    given += list(law_changes(arguments))
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')}: the recipe says this. Cure: leave it out, or leave out --recipe."
        )
    for name in ("dataset", "part", "run_dir"):
        if getattr(arguments, name) is None:
            raise ConfigError(f"--{name.replace('_', '-')}: is required with --recipe. Cure: give it.")
    recipe = load_recipe(arguments.recipe)
    if arguments.dataset not in recipe.datasets:
        raise ConfigError(
            f"--dataset = {arguments.dataset!r}: not defined in {arguments.recipe}."
            f"{suggest(arguments.dataset, list(recipe.datasets))}"
        )
    dataset = recipe.datasets[arguments.dataset]
    if dataset.source != "nca":
        raise ConfigError(
            explain(
                "--dataset",
                arguments.dataset,
                f"its source is {dataset.source}, not nca.",
                "`megatron-nca run` makes datasets of every source.",
            )
        )
    prefix = RunFolder(arguments.run_dir).dataset(arguments.dataset).prefix(arguments.part, dataset)
    if arguments.part == "train":
        return Request(dataset.law, dataset.sequences, dataset.seed, prefix, inside_run=True)
    return Request(dataset.law, dataset.validation_sequences, dataset.validation_seed, prefix, inside_run=True)


def _dry_run(source: typing.Any, prefix: Path, bank: "Bank | None") -> int:
    from megatron_nca.sources.nca import check_space, size_bytes

    law = source.law
    begin = time.perf_counter()
    passed = int(source.acceptance(0, DRY_RUN_CANDIDATES).sum())
    seconds = (time.perf_counter() - begin) / DRY_RUN_CANDIDATES
    print("law:")
    print("".join(f"  {line}\n" for line in to_yaml(law).splitlines()), end="")
    print(
        f"a frame has {law.frame_tokens} tokens, a document {law.num_frames} frames = {law.document_tokens:,} tokens; "
        f"{law.num_tokens:,} distinct tokens, {law.vocab_size:,} vocabulary rows"
    )
    print(
        f"{source.num_sequences:,} sequences of {source.num_rules:,} rules: "
        f"{size_bytes(law, source.num_sequences) / 1e6:,.1f} MB "
        f"at {prefix}"
    )
    share = passed / DRY_RUN_CANDIDATES
    error = (max(share * (1 - share), 1 / DRY_RUN_CANDIDATES) / DRY_RUN_CANDIDATES) ** 0.5
    print(
        f"of {DRY_RUN_CANDIDATES} candidates {100 * share:.1f} % passed the band (standard error {100 * error:.1f} %)"
    )
    if passed:
        print(
            f"expected: {source.num_rules / share:,.0f} candidates, "
            f"{source.num_rules / share * seconds:,.0f} s for their scores "
            f"on {source.threads} threads"
        )
    if bank is not None:
        bank.check(law, source.seed)
        found, end = bank.accepted(law.band, 2**32), bank.end
        print(f"{bank.path}: has the scores of {end:,} candidates in order, of which {found:,} passed the band")
    check_space(law, source.num_sequences, prefix)
    return 0
