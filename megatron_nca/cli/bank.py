"""`megatron-nca bank`: score candidate rules once, for any band and any number of datasets."""

import argparse
import itertools
import os
import sys
import typing
from collections.abc import Collection, Sequence
from pathlib import Path

from megatron_nca.cli.arguments import add_law_options, law_changes, shard_of
from megatron_nca.cli.progress import Progress
from megatron_nca.config.law import SCORING_SETTINGS, preset, scoring_law, scoring_settings
from megatron_nca.config.schema import to_dict
from megatron_nca.errors import ConfigError, DataError, explain

if typing.TYPE_CHECKING:
    from megatron_nca.nca.bank import Bank, Survey

EXAMPLES = """examples:
  a million candidates of the released law
    megatron-nca bank fill BANK --preset released --seed 7 --candidates 1000000
  the same from eight processes side by side (or an array of jobs): each with its own I of --shard I/8
    megatron-nca bank fill BANK --preset released --seed 7 --candidates 1000000 --shard 0/8
  what it holds, and how many candidates a band accepts
    megatron-nca bank inspect BANK --band 0.3 0.4
  a dataset from it
    megatron-nca generate --seed 7 --sequences 100000 --band 0.3 0.4 --bank BANK --output DIR/nca
A fill that was stopped or killed goes on with the same command; with more candidates it grows the bank."""

TABLE = (0.0, 0.2, 0.3, 0.4, 0.5)
"""Lower bounds of the bands that the bank is described by; the last one is open above."""
BAR_STEP, BAR_WIDTH = 0.025, 50
MOST_NAMED = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    form = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    summary = "score candidates in blocks that are whole or absent; blocks that are there stay"
    fill = actions.add_parser("fill", help=summary, description=summary, **form)
    fill.add_argument("bank", type=Path, metavar="BANK", help="folder of the bank; begun if it is not there")
    fill.add_argument("--candidates", type=int, required=True, metavar="N", help="rounded up to whole blocks")
    fill.add_argument("--seed", type=int, default=0, help="seed of all that is random (default 0)")
    fill.add_argument("--shard", metavar="I/N", default="0/1", help="only the blocks b with b mod N = I (default all)")
    fill.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores (%(default)s)")
    fill.add_argument("--block", type=int, metavar="N", help="candidates of a block of a new bank (default 65536)")
    add_law_options(fill, SCORING_SETTINGS)
    fill.set_defaults(action_run=_fill)
    summary = "read every block: what is there, shares by gzip ratio, acceptance of a band"
    inspect = actions.add_parser("inspect", help=summary, description=summary, **form)
    inspect.add_argument("bank", type=Path, metavar="BANK", help="folder of the bank")
    inspect.add_argument("--band", type=float, nargs=2, metavar=("LOW", "HIGH"), help="open interval of the gzip ratio")
    inspect.set_defaults(action_run=_inspect)


def run(arguments: argparse.Namespace) -> int:
    return arguments.action_run(arguments)


def _fill(arguments: argparse.Namespace) -> int:
    shard = shard_of(arguments.shard)
    if arguments.threads < 1:
        raise ConfigError(explain("threads", arguments.threads, "must be at least 1.", "give a positive number."))
    law = scoring_law({**scoring_settings(preset(arguments.preset or "released")), **law_changes(arguments)})
    from megatron_nca.nca.bank import Bank

    bank = Bank.create(arguments.bank, law, arguments.seed, arguments.block, arguments.candidates, shard)
    numbers = bank.blocks_of(arguments.candidates, shard)
    scored = 0
    with Progress(len(numbers) * bank.block_size, "candidates", lambda: f"{scored} blocks scored") as progress:
        for _, done in bank.fill(numbers, threads=arguments.threads):
            scored += done != "was there"
            if done.startswith("made again"):
                print(done, file=sys.stderr)
            progress.add(bank.block_size)
    print(
        f"{bank.path}: {len(numbers)} blocks of {bank.block_size:,} candidates"
        f"{f' (shard {arguments.shard})' if shard[1] > 1 else ''}: {scored} scored, "
        f"{len(numbers) - scored} were there; candidates below {bank.end:,} can be used in order"
    )
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    if arguments.band is not None and not 0 <= arguments.band[0] < arguments.band[1]:
        cure = "give for example 0.5 1.0."
        raise ConfigError(explain("band", arguments.band, "is not an interval LOW < HIGH.", cure))
    from megatron_nca.nca.bank import Bank

    bank = Bank(arguments.bank)
    survey = bank.survey()
    _print_blocks(bank, survey)
    if survey.whole:
        _print_shares(bank, survey, arguments.band)
    if survey.torn:
        raise DataError(next(iter(survey.torn.values())) + f" ({len(survey.torn)} torn blocks in all)")
    return 0


def _print_blocks(bank: "Bank", survey: "Survey") -> None:
    record = bank.provenance
    print(f"{bank.path}: seed {record.seed}, law version {record.law_version}, begun with zlib {record.zlib}")
    print("law: " + ", ".join(f"{name} {value}" for name, value in to_dict(record.law).items()))
    print(
        f"blocks of {bank.block_size:,} candidates: {len(survey.whole)} whole{_named('missing', survey.absent)}"
        f"{_named('torn', [survey.torn])}; {len(survey.whole) * bank.block_bytes / 1e6:,.1f} MB"
    )
    print(f"candidates below {bank.end:,} can be used in order")


def _named(what: str, groups: Sequence[Collection[int]]) -> str:
    total = sum(map(len, groups))
    if not total:
        return f", 0 {what}"
    first = ", ".join(map(str, itertools.islice(itertools.chain(*groups), MOST_NAMED)))
    return f", {total:,} {what} ({first}{', ...' if total > MOST_NAMED else ''})"


def _print_shares(bank: "Bank", survey: "Survey", band: list[float] | None) -> None:
    import numpy as np

    from megatron_nca.nca.complexity import in_band

    counts, total = survey.counts, int(survey.counts.sum())
    ratios = np.arange(len(counts)) / bank.provenance.score_bytes
    print(f"shares of {total:,} candidates by gzip ratio:")
    for low, high in zip(TABLE, [*TABLE[1:], np.inf], strict=True):
        share = counts[(low <= ratios) & (ratios < high)].sum() / total
        name = f"below {high}" if low == 0 else f"from {low}" if high == np.inf else f"{low} to {high}"
        print(f"  {name:<12}{100 * share:5.1f} %")
    print("histogram:")
    bins = np.bincount((ratios / BAR_STEP).astype(int), weights=counts)
    first = int(np.flatnonzero(bins)[0])
    for number, inside in enumerate(bins[first:], first):
        bar = "#" * round(BAR_WIDTH * inside / bins.max())
        print(f"  {number * BAR_STEP:5.3f} {100 * inside / total:5.1f} % {bar}".rstrip())
    if band is not None:
        found = int(counts[in_band(ratios, tuple(band))].sum())
        share = found / total
        error = (share * (1 - share) / total) ** 0.5
        print(
            f"band {band[0]} to {band[1]}: {found:,} of {total:,} candidates passed, {100 * share:.1f} % "
            f"(standard error {100 * error:.2f} %)"
        )
