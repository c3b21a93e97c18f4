"""`megatron-nca convert transfer`: the phase transition."""

import argparse
import json
from pathlib import Path

from megatron_nca.config.model import ModelConfig
from megatron_nca.errors import CheckpointError, ConfigError, explain

EXAMPLES = """examples:
  the paper's transition: all layers and the final norm go on, the vocabulary is new
    megatron-nca convert transfer --from CHECKPOINT --to initial --carry all --vocab-size 4096 --seed 1
  attention only, of the first four layers; only say what would happen
    megatron-nca convert transfer --from CHECKPOINT --to initial --carry attention --layers 0:4 --seed 1 --dry-run
  nothing carried: the start of a model trained from scratch
    megatron-nca convert transfer --to initial --carry none --recipe RECIPE --phase text --seed 1
"""


def add_action(actions: argparse._SubParsersAction) -> None:
    summary = "the phase transition: carry named parts, re-initialise the rest, account for every tensor"
    transfer = actions.add_parser("transfer", help=summary, description=summary, epilog=EXAMPLES,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    transfer.add_argument("--from", dest="source", type=Path, metavar="CHECKPOINT",
                          help="a checkpoint, or a series of them: its newest whole one is taken; "
                               "not needed if nothing is carried")
    transfer.add_argument("--to", type=Path, required=True, metavar="DIR", help="the new checkpoint; must not exist")
    transfer.add_argument("--carry", nargs="+", required=True, metavar="COMPONENT",
                          help="of attention, mlp, norms (of the layers), final_norm, embedding, head; "
                               "all = attention mlp norms final_norm; or none")
    transfer.add_argument("--layers", type=_layer_range, metavar="FIRST:LAST",
                          help="carry only these layers, LAST not included (default: all)")
    transfer.add_argument("--vocab-size", type=int,
                          help="vocabulary of the new model (default: the source's, or the recipe's)")
    transfer.add_argument("--recipe", type=Path, help="take the new model from this recipe ...")
    transfer.add_argument("--phase", help="... and this phase of it")
    transfer.add_argument("--seed", type=int, required=True, help="of what is re-initialised; recorded")
    transfer.add_argument("--dry-run", action="store_true", help="print the account, write nothing")
    transfer.set_defaults(action_run=_transfer)


def _transfer(arguments: argparse.Namespace) -> int:
    from megatron_nca.convert import transfer as phase_transition

    selection = phase_transition.select(arguments.carry, arguments.layers)
    target, recipe_name = _target_of_recipe(arguments)
    source = _open_source(arguments.source)
    if target is None:
        target = _target_of_source(arguments, source)
    transfer = phase_transition.Transfer(source, target, selection, arguments.seed)
    existing = _existing_account(arguments.to)
    if existing is not None:
        return _compare(arguments.to, existing, transfer)
    if arguments.dry_run:
        print(phase_transition.format_account(transfer.outline()))
        print(f"Dry run: {arguments.to} was not written.")
        return 0
    run_config = transfer.run_config(recipe_name, arguments.phase)
    account = phase_transition.write_transfer(arguments.to, transfer, run_config)
    print(phase_transition.format_account(account))
    print(f"Wrote {arguments.to}")
    return 0


def _target_of_recipe(arguments: argparse.Namespace) -> tuple[ModelConfig | None, str | None]:
    """The model of --recipe's --phase and the recipe's name, or nothing if neither was given."""
    if arguments.recipe is None:
        if arguments.phase is not None:
            raise ConfigError(explain("--phase", arguments.phase, "belongs to no recipe.", "add --recipe RECIPE."))
        return None, None
    from megatron_nca.config.recipe import load_recipe
    from megatron_nca.config.schema import suggest

    recipe = load_recipe(arguments.recipe)
    if arguments.phase not in recipe.phases:
        near = suggest(str(arguments.phase), list(recipe.phases))
        raise ConfigError(f"--phase {arguments.phase}: not a phase of {arguments.recipe}.{near}")
    model = recipe.model_config(arguments.phase)
    if arguments.vocab_size not in (None, model.vocab_size):
        reason = f"phase {arguments.phase} of the recipe has {model.vocab_size}."
        raise ConfigError(explain("--vocab-size", arguments.vocab_size, reason, "leave it out."))
    return model, recipe.name


def _target_of_source(arguments: argparse.Namespace, source: object) -> ModelConfig:
    if source is None:
        raise ConfigError("convert transfer: neither --from nor --recipe says which model to make. "
                          "Cure: give --from CHECKPOINT, or --recipe RECIPE --phase NAME.")
    if arguments.vocab_size is None:
        return source.model
    return source.model.with_vocabulary(arguments.vocab_size)


def _open_source(path: Path | None) -> object:
    if path is None:
        return None
    from megatron_nca.convert import megatron

    folder, note = megatron.find_checkpoint(path)
    if note:
        print(note)
    return megatron.read(folder)


def _existing_account(folder: Path) -> dict | None:
    """The account of the checkpoint already at `folder`; None if the place is free."""
    from megatron_nca.convert.transfer import ACCOUNT_FILE

    if not (folder.exists() or folder.is_symlink()) or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        return json.loads((folder / ACCOUNT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--to {folder}: exists and was not made by convert transfer. "
                              "Cure: choose another folder, or remove it.") from error


def _compare(folder: Path, existing: dict, transfer: object) -> int:
    """Done already if the checkpoint there is whole and has the account that this call would write."""
    from megatron_nca.convert import megatron
    from megatron_nca.convert.transfer import same_account

    different = same_account(existing, transfer.account())
    if different:
        raise CheckpointError(f"--to {folder}: exists and was made otherwise: {', '.join(different)} differ, see its "
                              "account.json. Cure: choose another folder, or remove it.")
    megatron.read(folder)
    print(f"{folder}: is already there with this account, nothing to do.")
    return 0


def _layer_range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST, for example 0:4")
    return int(first), int(last)
