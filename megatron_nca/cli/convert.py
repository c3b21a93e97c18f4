"""`megatron-nca convert`: checkpoints into other checkpoints, without a GPU, a process group or a model.

Each action is a file beside this one.
"""

import argparse

from megatron_nca.cli import convert_format, convert_inspect, convert_sweep, convert_transfer

EXAMPLES = convert_transfer.EXAMPLES + "".join(
    each.EXAMPLES.removeprefix("examples:\n") for each in (convert_sweep, convert_format, convert_inspect)
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    convert_transfer.add_action(actions)
    convert_sweep.add_action(actions)
    convert_format.add_action(actions)
    convert_inspect.add_action(actions)


def run(arguments: argparse.Namespace) -> int:
    return arguments.action_run(arguments)
