"""What `megatron-nca generate` is asked for: from options, or from a recipe's dataset."""

import argparse
import dataclasses
import typing
from pathlib import Path

from megatron_nca.cli.arguments import law_changes
from megatron_nca.config.automata import CLASSIC, ClassicLaw
from megatron_nca.config.controls import BASES, CONTROLS, DyckLaw
from megatron_nca.config.law import NcaLaw, domain_band, preset, replace
from megatron_nca.config.schema import suggest
from megatron_nca.errors import ConfigError, explain

if typing.TYPE_CHECKING:
    from megatron_nca.sources.request import Request

OPTIONS = {
    "nca": ("preset", "domain", "grid", *(field.name for field in dataclasses.fields(NcaLaw))),
    "shuffled": ("base", "permute"),
    "iid": ("base", "distribution"),
    "dyck": ("sequence_length", "symbols", "max_depth", "p_open", "end"),
    "k_shuffle_dyck": ("sequence_length", "symbols", "max_depth", "p_open", "end"),
    "elementary": ("sequence_length", "grid", "patch", "burn_in_steps", "steps_per_frame", "rules"),
    "life_like": ("sequence_length", "grid", "patch", "burn_in_steps", "steps_per_frame", "rules"),
    "corpus_copy": ("base", "sequence_length", "tokens"),
}
"""Which options belong to which source, beside --sequences, --seed and --output."""
ENDINGS = (".bin", ".idx", ".json")
OF_A_RECIPE = ("dataset", "part", "run_dir")


def request_of(arguments: argparse.Namespace) -> "tuple[Request, Path, bool]":
    """(what, prefix, whether the place is a run folder's own, where a torn dataset is made again). Raises ConfigError.

    Elsewhere what is torn may be a user's, and is not touched.
    """
    return _of_recipe(arguments) if arguments.recipe else _of_options(arguments)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def given_options(arguments: argparse.Namespace) -> list[str]:
    """Names of the options of any source that were given, in the order of OPTIONS."""
    names = dict.fromkeys(name for names in OPTIONS.values() for name in names)
    return [name for name in names if getattr(arguments, name, None) is not None]


def _of_options(arguments: argparse.Namespace) -> "tuple[Request, Path, bool]":
    for name in OF_A_RECIPE:
        if getattr(arguments, name) is not None:
            cure = "give --recipe, or --output and the options of a source."
            raise ConfigError(explain(flag(name), str(getattr(arguments, name)), "belongs to --recipe.", cure))
    source = arguments.source or "nca"
    for name in given_options(arguments):
        if name not in OPTIONS[source]:
            owners = ", ".join(owner for owner, names in OPTIONS.items() if name in names)
            raise ConfigError(f"{flag(name)}: belongs to the source {owners}, not to {source}. Cure: leave it out.")
    required = ["output", *(["base"] if source in BASES else [])]
    required += [] if source in ("shuffled", "iid") or arguments.tokens is not None else ["sequences"]
    for name in required:
        if getattr(arguments, name) is None:
            raise ConfigError(f"{flag(name)}: is required. Cure: give it, or a recipe with --recipe.")
    return _request(arguments, source), _output(arguments.output), False


def _output(text: str) -> Path:
    """The prefix that --output names. Raises ConfigError for one that is a folder, or a file of a dataset."""
    path = Path(text)
    if not path.name or path.name == ".." or text.endswith("/") or path.is_dir():
        cure = f"give a name in the folder, without an ending: {path / 'nca'}."
        raise ConfigError(explain("--output", text, "is a folder and no name of a dataset.", cure))
    if path.suffix in ENDINGS:
        reason = "ends like one file of a dataset, which has three: .bin, .idx and .json."
        raise ConfigError(explain("--output", text, reason, f"give it without the ending: {path.with_suffix('')}."))
    return path


def _request(arguments: argparse.Namespace, source: str) -> "Request":
    from megatron_nca.sources.request import Request

    law = _law(arguments) if source == "nca" else NcaLaw()
    values = {name: getattr(arguments, name) for name in ("base", "permute", "distribution", "sequence_length")}
    if arguments.base is not None and arguments.base.suffix in ENDINGS:
        values["base"] = arguments.base.with_suffix("")
    dyck = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(DyckLaw)}
    return Request(
        source=source,
        sequences=_sequences(arguments),
        seed=arguments.seed or 0,
        law=law,
        dyck=DyckLaw(**{name: value for name, value in dyck.items() if value is not None}),
        automaton=_classic_law(arguments, source) if source in CLASSIC else ClassicLaw(),
        **{name: value for name, value in values.items() if value is not None},
    )


def _classic_law(arguments: argparse.Namespace, source: str) -> ClassicLaw:
    height, width = arguments.grid or (None, None)
    if source == "elementary" and height == 1:
        height = None
    values = {name: getattr(arguments, name) for name in ("patch", "burn_in_steps", "steps_per_frame")}
    rules = None if arguments.rules is None else tuple(arguments.rules)
    given = {name: value for name, value in values.items() if value is not None}
    return ClassicLaw(height=height, width=width, rules=rules, **given)


def _sequences(arguments: argparse.Namespace) -> int | None:
    if arguments.tokens is None:
        return arguments.sequences
    if arguments.sequences is not None:
        raise ConfigError(explain("--tokens", arguments.tokens, "--sequences says it too.", "give one of the two."))
    if arguments.tokens < 1:
        raise ConfigError(explain("--tokens", arguments.tokens, "must be at least 1.", "give a positive number."))
    length = 1024 if arguments.sequence_length is None else arguments.sequence_length
    return -(-arguments.tokens // max(1, length))


def _law(arguments: argparse.Namespace) -> NcaLaw:
    changes = law_changes(arguments)
    if arguments.domain is not None:
        if "band" in changes:
            raise ConfigError(explain("--domain", arguments.domain, "names a band, and --band does too.", "drop one."))
        changes["band"] = domain_band(arguments.domain)
    return replace(preset(arguments.preset or "released"), **changes)


def _of_recipe(arguments: argparse.Namespace) -> "tuple[Request, Path, bool]":
    from megatron_nca.config.recipe import load_recipe
    from megatron_nca.run_dir import RunFolder
    from megatron_nca.sources.request import Request

    given = [name for name in ("source", "output", "sequences", "seed") if getattr(arguments, name) is not None]
    given += given_options(arguments)
    if given:
        raise ConfigError(f"{flag(given[0])}: the recipe says this. Cure: leave it out, or leave out --recipe.")
    for name in OF_A_RECIPE:
        if getattr(arguments, name) is None:
            raise ConfigError(f"{flag(name)}: is required with --recipe. Cure: give it.")
    recipe, name, part = load_recipe(arguments.recipe), arguments.dataset, arguments.part
    if name not in recipe.datasets:
        raise ConfigError(
            f"--dataset = {name!r}: not defined in {arguments.recipe}.{suggest(name, list(recipe.datasets))}"
        )
    dataset = recipe.datasets[name]
    if not dataset.is_generated:
        reason = f"its source is {dataset.source}, not nca or one of {', '.join((*CLASSIC, *CONTROLS))}."
        raise ConfigError(explain("--dataset", name, reason, "`megatron-nca run` makes datasets of every source."))
    if dataset.on_node is not None:
        cure = f"`megatron-nca stage {arguments.recipe} --dataset {name}` on the node, or leave out on_node."
        raise ConfigError(explain("--dataset", name, "is made on the nodes of its training (on_node).", cure))
    run_folder = RunFolder(arguments.run_dir)
    base = None
    if dataset.base is not None:
        # A distribution is that of the training data; validation must not know more.
        base_part = "train" if dataset.source == "iid" else part
        base = run_folder.dataset(dataset.base).prefix(base_part, recipe.datasets[dataset.base])
    request = Request(
        source=dataset.source,
        sequences=recipe.part_sequences(name, part),
        seed=dataset.seed if part == "train" else dataset.validation_seed,
        law=dataset.law or NcaLaw(),
        base=base,
        sequence_length=recipe.model.sequence_length,
        permute=dataset.permute,
        distribution=dataset.distribution,
        dyck=dataset.dyck or DyckLaw(),
        automaton=dataset.automaton or ClassicLaw(),
    )
    return request, run_folder.dataset(name).prefix(part, dataset), True
