"""`megatron-nca convert transfer`: the phase transition."""

import argparse
import dataclasses
import json
from pathlib import Path

from megatron_nca.config.model import ModelConfig
from megatron_nca.errors import CheckpointError, ConfigError, MegatronNcaError, explain

EXAMPLES = """examples (docs/converters.md has the tables of components, laws and maps):
  the paper's transition: all layers and the final norm go on, the vocabulary is new
    megatron-nca convert transfer --from CHECKPOINT --to initial --carry all --vocab-size 4096 --seed 1
  attention of some layers and all MLPs; only say what would happen
    megatron-nca convert transfer --from CHECKPOINT --to initial --carry attention@0:4,8:12 mlp --seed 1 --dry-run
  everything but the queries and keys of the first layer; each new embedding is the mean of the old ones
    megatron-nca convert transfer --from CHECKPOINT --to initial --carry all --reinit q@0 k@0 \\
        --law embedding=mean --vocab-size 4096 --seed 1
  controls: the source's layers in another order, or its numbers at other places
    megatron-nca convert transfer --from CHECKPOINT --to initial --carry final_norm \\
        --law layers=shuffled_layers --seed 1
  twice as deep, each layer twice
    megatron-nca convert transfer --from CHECKPOINT --to initial --carry all --layer-map 0,0,1,1,2,2 --seed 1
  nothing carried: the start of a model trained from scratch
    megatron-nca convert transfer --to initial --carry none --recipe RECIPE --phase text --seed 1
"""
OURS = "megatron-nca"
WORDS = ("of attention (or q, k, v, o), mlp (gate, up, down), norms (attention_norm, mlp_norm), final_norm, embedding, "
         "head; layers = the first three, all = layers final_norm; or none. WORD@FIRST:LAST,... are those of some "
         "layers of the new model, LAST not included")


def add_action(actions: argparse._SubParsersAction) -> None:
    summary = "the phase transition: carry named parts, re-initialise the rest, account for every tensor"
    transfer = actions.add_parser("transfer", help=summary, description=summary, epilog=EXAMPLES,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    transfer.add_argument("--from", dest="source", type=Path, metavar="CHECKPOINT",
                          help="a checkpoint, or a series of them: its newest whole one is taken; "
                               "not needed if nothing is carried")
    transfer.add_argument("--to", type=Path, required=True, metavar="DIR", help="the new checkpoint; must not exist")
    transfer.add_argument("--carry", nargs="+", action="extend", required=True, metavar="WORD", help=WORDS)
    transfer.add_argument("--reinit", nargs="+", action="extend", default=[], metavar="WORD",
                          help="what of --carry is not carried after all")
    transfer.add_argument("--layers", metavar="FIRST:LAST,...",
                          help="layers of the words of --carry that name none (default: all)")
    transfer.add_argument("--law", nargs="+", action="extend", default=[], metavar="WORD=LAW",
                          help="how what is not carried starts: own (the model's law, the default), released, "
                               "normal:STD, mean (of the source's embedding), permuted, shuffled_layers")
    transfer.add_argument("--layer-map", metavar="MAP",
                          help="the source's layer for each new one: first, spread, repeat, or a list as 0,0,1,new")
    transfer.add_argument("--shared-rows", action="store_true",
                          help="of embedding and head carry the rows that both vocabularies have, by id")
    transfer.add_argument("--vocab-size", type=int,
                          help="vocabulary of the new model (default: the source's, or the recipe's)")
    transfer.add_argument("--num-layers", type=int, help="depth of the new model (default: as --vocab-size)")
    transfer.add_argument("--tied-embeddings", action=argparse.BooleanOptionalAction,
                          help="whether the new model's head is its embedding (default: as --vocab-size)")
    transfer.add_argument("--recipe", type=Path, help="take the new model from this recipe ...")
    transfer.add_argument("--phase", help="... and this phase of it")
    transfer.add_argument("--seed", type=int, required=True, help="of what is re-initialised; recorded")
    transfer.add_argument("--dry-run", action="store_true", help="print the account, write nothing")
    transfer.set_defaults(action_run=_transfer)


def _transfer(arguments: argparse.Namespace) -> int:
    from megatron_nca.convert import account as accounts
    from megatron_nca.convert import formats
    from megatron_nca.convert import transfer as phase_transition

    formats.refuse_inside(arguments.to, arguments.source)
    formats.tell_left(arguments.to)
    start = start_of(arguments)
    target, recipe_name = target_of_recipe(arguments)
    source = open_source(arguments.source)
    if target is None:
        target = _target_of_source(arguments, source)
    transfer = phase_transition.Transfer(source, target, start, arguments.seed)
    existing = existing_account(arguments.to)
    if existing is not None:
        compare(arguments.to, existing, transfer)
        print(f"{arguments.to}: is already there with this account, nothing to do.")
        return 0
    if arguments.dry_run:
        print(accounts.format_account(transfer.outline()))
        print(f"Dry run: {arguments.to} was not written.")
        return 0
    run_config = transfer.run_config(recipe_name, arguments.phase)
    account = phase_transition.write_transfer(arguments.to, transfer, run_config)
    print(accounts.format_account(account))
    print(f"Wrote {arguments.to}")
    return 0


def start_of(arguments: argparse.Namespace) -> object:
    from megatron_nca.config.components import at_layers, check_words
    from megatron_nca.config.start import Start

    laws: dict[str, str] = {}
    for entry in arguments.law:
        word, equals, law = entry.partition("=")
        if not equals or word in laws:
            raise ConfigError(explain("--law", entry, "is not WORD=LAW." if not equals else f"{word} has a law.",
                                      "give for example embedding=mean, each word once."))
        laws[word] = law
    carry, layers = tuple(arguments.carry), None
    if arguments.layers is not None:
        check_words([f"layers@{arguments.layers}"], "layers")
        check_words(carry, "carry")
        first, _, last = arguments.layers.partition(":")
        if first.isdigit() and last.isdigit():
            layers = int(first), int(last)
        else:
            carry = at_layers(carry, arguments.layers, "carry")
    return Start(carry=carry, reinit=tuple(arguments.reinit), layers=layers, laws=laws, layer_map=arguments.layer_map,
                 shared_rows=arguments.shared_rows)


def target_of_recipe(arguments: argparse.Namespace) -> tuple[ModelConfig | None, str | None]:
    """The model of --recipe's --phase and the recipe's name, or nothing if neither was given."""
    if arguments.recipe is None:
        if arguments.phase is not None:
            raise ConfigError(explain("--phase", arguments.phase, "belongs to no recipe.", "add --recipe RECIPE."))
        return None, None
    from megatron_nca.config.recipe import load_recipe
    from megatron_nca.config.schema import suggest

    recipe = load_recipe(arguments.recipe)
    if arguments.phase is None:
        raise ConfigError(f"--phase: is needed beside --recipe. Cure: give one of {', '.join(recipe.phases)}.")
    if arguments.phase not in recipe.phases:
        near = suggest(arguments.phase, list(recipe.phases))
        raise ConfigError(f"--phase {arguments.phase}: not a phase of {arguments.recipe}.{near}")
    model = recipe.model_config(arguments.phase)
    for name in ("vocab_size", "num_layers", "tied_embeddings"):
        if getattr(arguments, name) not in (None, getattr(model, name)):
            reason = f"phase {arguments.phase} of the recipe has {getattr(model, name)}."
            setting = f"--{name.replace('_', '-')}"
            raise ConfigError(explain(setting, getattr(arguments, name), reason, "leave it out."))
    return model, recipe.name


def _target_of_source(arguments: argparse.Namespace, source: object) -> ModelConfig:
    if source is None:
        raise ConfigError("convert transfer: neither --from nor --recipe says which model to make. "
                          "Cure: give --from CHECKPOINT, or --recipe RECIPE --phase NAME.")
    layers, layer_map = arguments.num_layers, arguments.layer_map or ""
    if layers is None and "," in layer_map:
        layers = layer_map.count(",") + 1
    return changed_model(source.model, arguments.vocab_size, layers, arguments.tied_embeddings)


def changed_model(model: ModelConfig, vocab_size: int | None, num_layers: int | None, tied: bool | None) -> ModelConfig:
    """`model` with what is not None in place of its own."""
    changes = {"vocab_size": vocab_size, "num_layers": num_layers, "tied_embeddings": tied}
    return dataclasses.replace(model, **{name: value for name, value in changes.items() if value is not None})


def open_source(path: Path | None) -> object:
    """The checkpoint to take from, with what there is to say of it on stdout; None for no path."""
    if path is None:
        return None
    checkpoint, name = open_any(path)
    for note in checkpoint.notes:
        print(note)
    if name != OURS:
        print(f"from {checkpoint.origin}: {name}")
    return checkpoint


def open_any(path: Path) -> tuple[object, str]:
    """A checkpoint of any format, and the format's name; what no file marks is opened as one of this project's, whose
    reader says what lacks."""
    from megatron_nca.convert import formats

    told = path.exists() and any(each.tells(path) for each in formats.FORMATS.values() if each.reader)
    chosen = formats.recognise(path)[0] if told else formats.FORMATS[OURS]
    try:
        return chosen.read(path), chosen.name
    except MegatronNcaError as error:
        if not any(f"--{name.replace('_', '-')}" in str(error) for name in chosen.read_options):
            raise
        raise type(error)(f"{error} `convert format` has that flag: make a {OURS} checkpoint first.") from error


def existing_account(folder: Path) -> dict | None:
    """The account of the checkpoint already at `folder`; None if the place is free."""
    from megatron_nca.convert.account import ACCOUNT_FILE, FORMAT

    if not (folder.exists() or folder.is_symlink()) or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        account = json.loads((folder / ACCOUNT_FILE).read_text(encoding="utf-8"))
        if account["format"] != FORMAT or not all(isinstance(row, dict) for row in account["tensors"]):
            raise ValueError("is no account of a transfer")
        return account
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"--to {folder}: exists and was not made by convert transfer. "
                              "Cure: choose another folder, or remove it.") from error


def compare(folder: Path, existing: dict, transfer: object) -> None:
    """Raise CheckpointError unless the checkpoint there is whole and has the account that `transfer` would write."""
    from megatron_nca.convert.account import same_account

    different = same_account(existing, transfer.account())
    if different:
        raise CheckpointError(f"--to {folder}: exists and was made otherwise: {', '.join(different)} differ, see its "
                              "account.json. Cure: choose another folder, or remove it.")
    check_whole(folder)


def check_whole(folder: Path) -> None:
    """Raise CheckpointError if a checkpoint that is there already is not whole, as no training would take it."""
    from megatron_nca import file_list

    if flaws := file_list.flaws(folder):
        raise CheckpointError(f"--to {folder}: exists with this account and is not whole: {'; '.join(flaws)}. "
                              "Cure: remove it, and it is made again.")
