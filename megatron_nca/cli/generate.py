"""`megatron-nca generate`: make a dataset of automata, or a control of one."""

import argparse
import dataclasses
import os
import sys
import time
import typing
from pathlib import Path

from megatron_nca.cli.arguments import add_law_options, option, shard_of
from megatron_nca.cli.progress import Progress
from megatron_nca.cli.requests import request_of
from megatron_nca.config.automata import CLASSIC
from megatron_nca.config.controls import CONTROLS, Distribution, DyckLaw, Permute
from megatron_nca.config.law import DOMAINS, NcaLaw
from megatron_nca.config.schema import to_yaml
from megatron_nca.errors import ConfigError

if typing.TYPE_CHECKING:
    from megatron_nca.nca.bank import Bank
    from megatron_nca.sources.shards import Parts

EXAMPLES = """examples:
  2,000 sequences of the released law, in DIR/nca.bin, .idx and .json
    megatron-nca generate --preset released --sequences 2000 --seed 7 --band 0.5 1.0 --output DIR/nca
  what it would take, without making it
    megatron-nca generate --sequences 16000 --output DIR/nca --dry-run
  a small law that is learnt in a minute
    megatron-nca generate --sequences 4000 --num-states 2 --grid 8 8 --band 0.15 0.35 --output DIR/small
  controls: its tokens shuffled within each sequence; independent draws of its tokens; brackets; text of a corpus
    megatron-nca generate --source shuffled --base DIR/nca --output DIR/shuffled
    megatron-nca generate --source iid --base DIR/nca --output DIR/iid
    megatron-nca generate --source k_shuffle_dyck --sequences 2000 --output DIR/dyck
    megatron-nca generate --source corpus_copy --base DIR/text_document --tokens 2000000 --output DIR/copy
  classic automata: of all elementary rules, and the Game of Life
    megatron-nca generate --source elementary --sequences 2000 --output DIR/elementary
    megatron-nca generate --source life_like --rules B3/S23 --sequences 2000 --output DIR/life
  a dataset of a recipe
    megatron-nca generate --recipe launch/recipes/demo.yaml --dataset automata --part train --run-dir runs/demo
  the same dataset by many processes, or an array of jobs: each makes its share, then one joins them
    megatron-nca generate --sequences 160000 --output DIR/nca --shard 3/8
    megatron-nca generate --sequences 160000 --output DIR/nca --merge
The same settings and seed give the same bytes, whatever the device and however many threads, processes and machines."""

DRY_RUN_CANDIDATES = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", choices=["nca", *CLASSIC, *CONTROLS], help="what is made (default nca: neural automata)"
    )
    parser.add_argument("--output", metavar="PREFIX", help="path of the dataset without an ending")
    parser.add_argument("--sequences", type=int, metavar="N", help="number of sequences (documents)")
    parser.add_argument("--seed", type=int, help="seed of all that is random (default 0)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores (%(default)s)")
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="what rolls automata out; the bytes are the same (default %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the law, sizes and expected acceptance; write nothing"
    )
    bank = parser.add_argument_group("scores from a rule bank (`megatron-nca bank`), for the same bytes sooner")
    bank.add_argument("--bank", type=Path, metavar="BANK", help="folder of the bank")
    bank.add_argument("--extend-bank", action="store_true", help="score what the bank lacks, and add it to the bank")
    share = parser.add_argument_group("automata by many processes, for the same bytes (all else as for one)")
    share.add_argument("--shard", metavar="I/N", help="make the parts of process I of N, those that are not there")
    share.add_argument("--merge", action="store_true", help="join the parts of all processes, and remove them")
    share.add_argument("--parts", type=Path, nargs="+", metavar="DIR", help="where parts are (default PREFIX.parts); "
                       "a node-local folder each node for --shard, all of them for --merge")
    recipe = parser.add_argument_group("a recipe's dataset, in place of the options of the law")
    recipe.add_argument("--recipe", type=Path, help="YAML file")
    recipe.add_argument("--dataset", metavar="NAME", help="a dataset of the recipe")
    recipe.add_argument("--part", choices=["train", "validation"])
    recipe.add_argument("--run-dir", type=Path, help="the run's folder")
    _add_controls(parser.add_argument_group("controls"))
    parser.add_argument("--domain", metavar="NAME", help=f"the band for a text of that domain: {', '.join(DOMAINS)}")
    add_law_options(parser, [field.name for field in dataclasses.fields(NcaLaw)])


def _add_controls(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--rules", nargs="+", metavar="RULE", help="elementary: of 0..255; life_like: B3/S23 (default all)"
    )
    group.add_argument("--base", type=Path, metavar="PREFIX",
                       help="shuffled, iid, corpus_copy: a dataset, with or without .bin")
    group.add_argument("--permute", choices=typing.get_args(Permute), help="shuffled: what moves (default tokens)")
    group.add_argument("--distribution", choices=typing.get_args(Distribution), help="iid (default unigram)")
    group.add_argument("--tokens", type=int, metavar="N", help="corpus_copy: a budget in place of "
                       "--sequences, rounded up to whole sequences; each is written with one token more, its last "
                       "target")
    helps = {
        "symbols": "dyck, k_shuffle_dyck: kinds of brackets (default 64)",
        "max_depth": "dyck, k_shuffle_dyck: most open at once (default 16)",
        "p_open": "dyck, k_shuffle_dyck: chance to open (default 0.5)",
        "end": "dyck, k_shuffle_dyck: whether brackets close in time (default balanced)",
    }
    for name, text in helps.items():
        group.add_argument("--" + name.replace("_", "-"), help=text, **option(name, DyckLaw))


def run(arguments: argparse.Namespace) -> int:
    request, prefix, inside_run = request_of(arguments)
    from megatron_nca.sources import writing

    torn = writing.is_torn(prefix) if inside_run else None
    if torn:
        print(f"made again: {torn}", file=sys.stderr)
    sharing = _shares(arguments, request.source)
    bank = _open_bank(arguments)
    if arguments.dry_run:
        source = request.open(threads=arguments.threads, device=arguments.device)
        _say_plain_zlib(source, bank)
        return _dry_run(source, prefix, bank)
    how = {"threads": arguments.threads, "device": arguments.device}
    source = request.open(**how, bank=bank, extend_bank=arguments.extend_bank)
    there = None if torn else writing.existing(prefix, source.identity())
    if there is not None:
        print(f"{prefix}: is there already, made with these settings ({there.documents:,} sequences)")
        return 0
    searches = source.kind == "nca"
    _say_plain_zlib(source, bank)
    parts = _open_parts(arguments, source, prefix) if sharing else None
    if arguments.shard is not None:
        return _make_share(arguments, parts)
    note = (lambda: f"{source.examined:,} candidates") if searches else (lambda: source.kind)
    with Progress(source.num_sequences, "sequences", note) as progress:
        manifest = parts.merge(prefix, progress.add) if parts else writing.generate(source, prefix, progress.add)
    made = f"{prefix}: {manifest.documents:,} sequences, {manifest.tokens:,} tokens of {manifest.dtype}"
    if searches:
        made += (
            f"; {source.accepted:,} of {source.examined:,} candidates passed the band "
            f"({100 * source.accepted / source.examined:.1f} %)"
        )
    print(made if searches else f"{made}, {source.kind}; unigram entropy {manifest.unigram_entropy_nats:.3f} nats")
    return 0


def _shares(arguments: argparse.Namespace, source: str) -> bool:
    """Whether this is one of many processes, or joins what they made. Raises ConfigError."""
    if arguments.shard is None and not arguments.merge:
        if arguments.parts:
            raise ConfigError("--parts: belongs to --shard or --merge. Cure: leave it out.")
        return False
    if arguments.shard is not None and arguments.merge:
        raise ConfigError("--merge: comes after all shards are made. Cure: leave out --shard, or --merge.")
    if source != "nca":
        raise ConfigError(f"--shard, --merge: are for automata, and the source is {source}. Cure: leave them out.")
    if arguments.shard is not None:
        shard_of(arguments.shard)
    return True


def _open_parts(arguments: argparse.Namespace, source: typing.Any, prefix: Path) -> "Parts":
    from megatron_nca.sources.shards import Parts

    return Parts(source, arguments.parts or [Path(f"{prefix}.parts")])


def _make_share(arguments: argparse.Namespace, parts: "Parts") -> int:
    shard, shards = shard_of(arguments.shard)
    share = len(range(shard, parts.num_chunks, shards))
    with Progress(share * parts.chunk, "sequences", lambda: f"{parts.source.examined:,} candidates") as progress:
        made = parts.make_share(shard, shards, progress.add)
    print(f"{parts.folders[0]}: shard {arguments.shard}: {share} of {parts.num_chunks} chunks, {made} made now")
    return 0


def _say_plain_zlib(source: typing.Any, bank: "Bank | None") -> None:
    """Said once where candidates are scored outside what the fast filter is proven for."""
    if source.kind == "nca" and bank is None and not source.fast_filter:
        from megatron_nca.sources.nca import PLAIN_ZLIB

        print(PLAIN_ZLIB, file=sys.stderr)


def _open_bank(arguments: argparse.Namespace) -> "Bank | None":
    if arguments.bank is None:
        if arguments.extend_bank:
            raise ConfigError("--extend-bank: belongs to --bank. Cure: name the bank with --bank.")
        return None
    from megatron_nca.nca.bank import Bank

    return Bank(arguments.bank)


def _dry_run(source: typing.Any, prefix: Path, bank: "Bank | None") -> int:
    from megatron_nca.sources.writing import check_space, size_bytes

    if source.kind == "nca":
        _describe_law(source)
        what = f"{source.num_sequences:,} sequences of {source.num_rules:,} rules"
    else:
        print(f"{source.kind}:")
        print("".join(f"  {line}\n" for line in to_yaml(source.identity()).splitlines()), end="")
        layout = source.trajectory
        print(
            f"a document has {layout.document_tokens:,} tokens, {layout.num_scored:,} of them scored; ids below "
            f"{source.num_tokens:,}, {source.vocab_size:,} vocabulary rows"
        )
        what = f"{source.num_sequences:,} sequences"
    print(f"{what}: {size_bytes(source) / 1e6:,.1f} MB at {prefix}")
    if source.kind == "nca":
        _estimate_acceptance(source)
    if bank is not None:
        bank.check(source.law, source.seed)
        found, end = bank.accepted(source.band, 2**32), bank.end
        print(f"{bank.path}: has the scores of {end:,} candidates in order, of which {found:,} passed the band")
    check_space(source, prefix)
    return 0


def _describe_law(source: typing.Any) -> None:
    law = source.law
    print("law:")
    print("".join(f"  {line}\n" for line in to_yaml(law).splitlines()), end="")
    print(
        f"a frame has {law.frame_tokens} tokens, a document {law.num_frames} frames = {law.document_tokens:,} tokens; "
        f"{law.num_tokens:,} distinct tokens, {law.vocab_size:,} vocabulary rows"
    )
    if law.band_scale == "calibrated":
        print("the band is {:.4f} to {:.4f} in official ratios".format(*source.band))


def _estimate_acceptance(source: typing.Any) -> None:
    begin = time.perf_counter()
    passed = int(source.acceptance(0, DRY_RUN_CANDIDATES).sum())
    seconds = (time.perf_counter() - begin) / DRY_RUN_CANDIDATES
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
