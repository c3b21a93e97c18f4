"""`megatron-nca generate`: make an automata dataset."""

import argparse
import dataclasses
import os
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path

from megatron_nca.config.law import PRESETS, NcaLaw, preset, replace
from megatron_nca.config.schema import suggest, to_yaml
from megatron_nca.errors import ConfigError, explain

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

HELP = {
    "num_states": "values a cell can take",
    "patch": "side of a square patch of cells that becomes one token",
    "sequence_length": "tokens that training takes as input",
    "burn_in_steps": "updates before the first frame",
    "steps_per_frame": "updates from one frame to the next",
    "temperature": "of the sampling of the next state",
    "identity_bias": "added to the logit of the present state",
    "initial_state": "how a rollout starts",
    "channel_padding": "whether the state channels are padded by wrap",
    "allocated_vocab_size": "rows of the model's vocabulary",
    "scored_positions": "which target tokens carry loss",
    "score_frames": "frames that the filter compresses",
    "score_dtype": "layout of the bytes that are compressed",
    "score_delimiters": "compress the delimiters too",
    "band": "open interval of the gzip ratio",
    "num_rules": "distinct rules, cycled",
}
REPORT_SECONDS = 5
DRY_RUN_CANDIDATES = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="PREFIX", help="path of the dataset without an ending")
    parser.add_argument("--sequences", type=int, metavar="N", help="number of sequences (documents)")
    parser.add_argument("--seed", type=int, help="seed of all that is random (default 0)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores (%(default)s)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the law, sizes and expected acceptance; write nothing"
    )
    recipe = parser.add_argument_group("a recipe's dataset, in place of the options of the law")
    recipe.add_argument("--recipe", type=Path, help="YAML file")
    recipe.add_argument("--dataset", metavar="NAME", help="a dataset of the recipe")
    recipe.add_argument("--part", choices=["train", "validation"])
    recipe.add_argument("--run-dir", type=Path, help="the run's folder")
    law = parser.add_argument_group("law (defaults: the preset's)")
    law.add_argument("--preset", metavar="NAME", help=f"{', '.join(PRESETS)} (default released)")
    law.add_argument("--grid", type=int, nargs=2, metavar=("H", "W"), help="cells of the grid")
    for field in dataclasses.fields(NcaLaw):
        if field.name not in ("height", "width"):
            law.add_argument("--" + field.name.replace("_", "-"), help=HELP[field.name], **_option(field.name))


def _option(name: str) -> dict:
    """How argparse reads a field of the law."""
    hint = typing.get_type_hints(NcaLaw)[name]
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": list(typing.get_args(hint))}
    if typing.get_origin(hint) is tuple:
        return {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
    if type(None) in typing.get_args(hint):
        return {"type": _int_or_none, "metavar": "N|none"}
    return {"type": hint, "metavar": "N" if hint is int else "X"}


def _int_or_none(text: str) -> int | str:
    return "none" if text.lower() == "none" else int(text)


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
    source = source_of_nca.NcaSource(law, request.sequences, request.seed, threads=arguments.threads)
    if arguments.dry_run:
        return _dry_run(source, prefix)
    with _Progress(request.sequences, lambda: source.examined) as progress:
        manifest = source_of_nca.generate(source, prefix, progress.add)
    print(
        f"{prefix}: {manifest.documents:,} sequences, {manifest.tokens:,} tokens of {manifest.dtype}; "
        f"{source.accepted:,} of {source.examined:,} candidates passed the band "
        f"({100 * source.accepted / source.examined:.1f} %)"
    )
    return 0


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
    changes = _law_changes(arguments)
    law = replace(preset(arguments.preset or "released"), **changes)
    return Request(law, arguments.sequences, arguments.seed or 0, arguments.output, inside_run=False)


def _law_changes(arguments: argparse.Namespace) -> dict:
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(NcaLaw)}
    changes = {name: value for name, value in values.items() if value is not None}
    for name, value in changes.items():
        if value == "none":
            changes[name] = None
        elif isinstance(value, list):
            changes[name] = tuple(value)
    if arguments.grid is not None:
        changes["height"], changes["width"] = arguments.grid
    return changes


def _recipe_request(arguments: argparse.Namespace) -> Request:
    from megatron_nca.config.recipe import load_recipe
    from megatron_nca.run_dir import RunFolder

    given = [name for name in ("output", "sequences", "seed", "preset") if getattr(arguments, name) is not None]
    given += list(_law_changes(arguments))
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


def _dry_run(source: typing.Any, prefix: Path) -> int:
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
    check_space(law, source.num_sequences, prefix)
    return 0


class _Progress:
    """Rate and time left on stderr: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, total: int, examined: Callable[[], int]) -> None:
        self.total, self.examined = total, examined
        self.done, self.begin, self.reported = 0, time.monotonic(), time.monotonic()
        self.bar = None

    def __enter__(self) -> "_Progress":
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return self  # tqdm belongs to the extra `log`; the lines say the same
            self.bar = tqdm(total=self.total, unit="seq", file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, sequences: int) -> None:
        self.done += sequences
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.examined():,} candidates", refresh=False)
            self.bar.update(sequences)
        elif time.monotonic() - self.reported >= REPORT_SECONDS:
            self.reported = time.monotonic()
            rate = self.done / (self.reported - self.begin)
            left = f"{(self.total - self.done) / rate:,.0f} s left" if self.done else "no rule has passed yet"
            print(
                f"{self.done:,} of {self.total:,} sequences, {self.examined():,} candidates, "
                f"{rate:,.0f} sequences/s, {left}",
                file=sys.stderr,
                flush=True,
            )
