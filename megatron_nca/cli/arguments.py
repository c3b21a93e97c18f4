"""What several verbs ask of argparse."""

import argparse
import dataclasses
import os
import typing
from collections.abc import Iterable
from pathlib import Path

from megatron_nca.config.duration import seconds_of
from megatron_nca.config.law import PRESETS, NcaLaw
from megatron_nca.errors import ConfigError, explain
from megatron_nca.run_dir import RunFolder

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
    "band_scale": "official: the ratio; calibrated: over that of uniform tokens of the same law",
    "emitted_rollout": "a fresh rollout of the rule, or the one that was scored",
    "num_rules": "distinct rules, cycled",
}


def accept_overrides_anywhere(parser: argparse.ArgumentParser) -> None:
    """Take `a.b=value` after options too: argparse itself ends `nargs="*"` at the first option. What is not of that
    form is left to the recipe's reader, which says so."""
    parse = parser.parse_known_args

    def parse_known_args(*positional, **named):
        arguments, rest = parse(*positional, **named)
        arguments.overrides += [word for word in rest if not word.startswith("-")]
        return arguments, [word for word in rest if word.startswith("-")]

    parser.parse_known_args = parse_known_args


def duration(text: str) -> float:
    """Seconds of `3h50m`, `90s`, `1d12h` or a plain number of seconds; for argparse's `type`."""
    try:
        return seconds_of(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def patience(text: str) -> float:
    """A duration that leaves time for signs of life."""
    seconds = duration(text)
    if seconds < 5:
        raise argparse.ArgumentTypeError(f"{text!r} is too short for ranks to be heard. Cure: give at least 5s.")
    return seconds


def add_watchdog(parser: argparse.ArgumentParser) -> None:
    help_ = "end all ranks, naming it, when a rank gives no sign of life for so long (default 2m)"
    parser.add_argument("--watchdog", type=patience, metavar="DURATION", help=help_)


def add_time_limit(parser: argparse.ArgumentParser) -> None:
    help_ = "end with 75 before so much time has passed since the start, with all saved; for example 3h50m"
    parser.add_argument("--time-limit", type=duration, metavar="DURATION", help=help_)


def run_dir(text: str) -> Path:
    """A run's folder, there or to be made; for argparse's `type`."""
    if not text:
        raise argparse.ArgumentTypeError("is empty. Cure: name a folder; a variable may not be set.")
    path = Path(text)
    there = next((above for above in (path, *path.parents) if os.path.lexists(above)), Path())
    if not os.path.isdir(there):
        raise argparse.ArgumentTypeError(f"{text!r}: {str(there)!r} is a file. Cure: choose another path.")
    return path


def opened(path: Path) -> RunFolder:
    """The run folder there. Raises ConfigError if there is none."""
    run_folder = RunFolder(path)
    if not run_folder.recipe.is_file():
        raise ConfigError(explain("RUN", str(path), "is no run folder: it has no recipe.yaml.", "check the path."))
    return run_folder


def shard_of(text: str) -> tuple[int, int]:
    """I and N of `I/N`. Raises ConfigError."""
    try:
        index, shards = map(int, text.split("/"))
    except ValueError as error:
        raise ConfigError(explain("shard", text, "is not I/N.", "give for example 0/8.")) from error
    if not 0 <= index < shards:
        raise ConfigError(explain("shard", text, "I/N needs 0 <= I < N.", "give for example 0/8."))
    return index, shards


def add_law_options(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """--preset, --grid and an option for each of these settings of the law."""
    law = parser.add_argument_group("law (defaults: the preset's)")
    law.add_argument("--preset", metavar="NAME", help=f"{', '.join(PRESETS)} (default released)")
    law.add_argument("--grid", type=int, nargs=2, metavar=("H", "W"), help="cells of the grid")
    for name in names:
        if name not in ("height", "width"):
            law.add_argument("--" + name.replace("_", "-"), help=HELP[name], **option(name))


def law_changes(arguments: argparse.Namespace) -> dict:
    """The settings of the law that were given, by their names in NcaLaw."""
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


def option(name: str, settings: type = NcaLaw) -> dict:
    """How argparse reads a field of these settings."""
    hint = typing.get_type_hints(settings)[name]
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
