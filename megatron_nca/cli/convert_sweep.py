"""`megatron-nca convert sweep`: several phase transitions from one source in one pass over it."""

import argparse
from pathlib import Path

from megatron_nca.cli.convert_transfer import check_whole, existing_account, open_source, target_of_recipe
from megatron_nca.errors import CheckpointError, MegatronNcaError

EXAMPLES = """examples:
  a folder for each transfer of a plan, each with its account
    megatron-nca convert sweep --from CHECKPOINT --plan sweep.yaml --to starts
  sweep.yaml
    seed: 1
    vocab_size: 4096
    transfers:
      attention: {carry: [attention]}
      mlp: {carry: [mlp], laws: {embedding: mean}}
      deeper: {carry: [all], layer_map: spread, num_layers: 8}
"""


def add_action(actions: argparse._SubParsersAction) -> None:
    summary = "several phase transitions from one source, each of whose tensors is read once"
    sweep = actions.add_parser("sweep", help=summary, description=summary, epilog=EXAMPLES,
                               formatter_class=argparse.RawDescriptionHelpFormatter)
    sweep.add_argument("--from", dest="source", type=Path, required=True, metavar="CHECKPOINT",
                       help="of any format, or a series: its newest whole one is taken")
    sweep.add_argument("--plan", type=Path, required=True, metavar="FILE",
                       help="YAML: seed, vocab_size, num_layers, tied_embeddings for all, and transfers by name, with "
                            "the words of `convert transfer`")
    sweep.add_argument("--to", type=Path, required=True, metavar="DIR",
                       help="a folder for each transfer goes into it; those that are there and whole are left alone")
    sweep.add_argument("--recipe", type=Path, help="take the new models from this recipe ...")
    sweep.add_argument("--phase", help="... and this phase of it")
    sweep.add_argument("--dry-run", action="store_true", help="print the accounts, write nothing")
    sweep.set_defaults(action_run=_sweep, vocab_size=None, num_layers=None, tied_embeddings=None)


def _sweep(arguments: argparse.Namespace) -> int:
    from megatron_nca.convert import formats, sweep
    from megatron_nca.convert.account import format_account

    formats.refuse_inside(arguments.to, arguments.source)
    plan = sweep.load_plan(arguments.plan)
    model, recipe = target_of_recipe(arguments)
    shared = sweep.Shared(open_source(arguments.source))
    source, folders = shared.checkpoint, {}
    for name in plan.transfers:
        formats.tell_left(arguments.to / name)
        transfer = _planned(plan, name, source, model or source.model)
        if _is_there(arguments.to / name, transfer):
            print(f"{name}: is already there with this account")
            continue
        folders[arguments.to / name] = transfer
        if arguments.dry_run:
            print(f"{name}:\n{format_account(transfer.outline())}\n")
    if arguments.dry_run:
        print(f"Dry run: {len(folders)} transfers were not written.")
        return 0
    if folders:
        configs = {folder: transfer.run_config(recipe, arguments.phase) for folder, transfer in folders.items()}
        sweep.write_sweep(folders, configs)
        for folder, transfer in folders.items():
            print(f"{folder.name}:\n{format_account(transfer.outline())}\n")
    print(f"Wrote {len(folders)} of {len(plan.transfers)} transfers to {arguments.to}; "
          f"{len(shared.reads)} tensors of the source were read, {shared.reads.total()} times in all.")
    return 0


def _planned(plan: object, name: str, source: object, model: object) -> object:
    """The transfer of that name. Raises MegatronNcaError naming it."""
    from megatron_nca.convert.transfer import Transfer

    entry = plan.transfers[name]
    try:
        return Transfer(source, plan.target(entry, model), entry.start, plan.seed if entry.seed is None else entry.seed)
    except MegatronNcaError as error:
        raise type(error)(f"transfers.{name}: {error}") from error


def _is_there(folder: Path, transfer: object) -> bool:
    """Whether the transfer was made before: its account but for the hashes, which would need the source read again,
    and a whole checkpoint. Raises CheckpointError if something else is there."""
    from megatron_nca.convert.account import without_hashes

    existing = existing_account(folder)
    if existing is None:
        return False
    one, other = without_hashes(existing), without_hashes(transfer.outline())
    different = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    if different:
        raise CheckpointError(f"--to {folder}: exists and was made otherwise: {', '.join(different)} differ, see its "
                              "account.json. Cure: choose another folder, or remove it.")
    check_whole(folder)
    return True
