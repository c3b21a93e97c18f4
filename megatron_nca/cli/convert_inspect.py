"""`megatron-nca convert inspect`: what a checkpoint holds, or what has changed from one to another."""

import argparse
import json
from pathlib import Path

from megatron_nca.errors import ConfigError, explain

EXAMPLES = """examples:
  what a checkpoint of any format holds, in figures
    megatron-nca convert inspect CHECKPOINT
    megatron-nca convert inspect CHECKPOINT --tensors --json
  which parts have moved in training, and how far
    megatron-nca convert inspect runs/x/arms/nca/seed0/text/initial runs/x/arms/nca/seed0/text/checkpoints \\
        --plot change.png
"""


def add_action(actions: argparse._SubParsersAction) -> None:
    summary = "what a checkpoint holds, or what has changed from one to another"
    action = actions.add_parser("inspect", help=summary, description=summary, epilog=EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    action.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of any format, told by its files")
    action.add_argument("other", type=Path, nargs="?", metavar="OTHER", help="compare with this one")
    action.add_argument("--tensors", action="store_true", help="a line for each tensor instead of each component")
    action.add_argument("--json", action="store_true", help="print JSON, which has every tensor with its sha256")
    action.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the change of each part by layer")
    action.set_defaults(action_run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from megatron_nca.cli.convert_transfer import open_any
    from megatron_nca.convert import difference, inspect

    if arguments.plot is not None:
        _check_plot(arguments)
    checkpoint, name = open_any(arguments.checkpoint)
    if arguments.other is None:
        found = inspect.inspect(checkpoint, name)
        text = inspect.format_inspection(found, arguments.tensors)
    else:
        found = difference.difference(checkpoint, open_any(arguments.other)[0])
        text = difference.format_difference(found, arguments.tensors)
    print(json.dumps(found, indent=1) if arguments.json else text)
    if arguments.plot is not None:
        difference.plot(found, arguments.plot)
    return 0


def _check_plot(arguments: argparse.Namespace) -> None:
    from megatron_nca.look import picture

    if arguments.other is None:
        raise ConfigError(explain("--plot", str(arguments.plot), "draws what has changed.", "give OTHER too."))
    picture.check(arguments.plot, "--plot")
