"""`megatron-nca torchrun`: torchrun, with the ranks' exit code, their one message, and signals that reach them."""

import argparse
import logging
import os
import signal
import sys
import tempfile
import typing
from pathlib import Path

from megatron_nca.errors import NOT_FINISHED

if typing.TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

EXAMPLES = """examples:
  megatron-nca torchrun --standalone --nproc-per-node 4 -m megatron_nca train RECIPE --phase text --run-dir runs/demo

Flags are those of torchrun (torchrun --help). SIGTERM, SIGUSR2 and SIGINT are passed on to the ranks, as often as they
come; training then saves and ends with 75. It ends as its ranks did: 0, 75, 2 after a user's error, 1 after any other
failure. torchrun itself ends with 1 for all of these and kills ranks that save for more than 30 seconds.
"""

PASSED_ON = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "megatron-nca torchrun [flags of torchrun] -m megatron_nca train ..."
    parse = parser.parse_known_args

    def parse_known_args(words: list[str], namespace: argparse.Namespace) -> tuple[argparse.Namespace, list[str]]:
        if not words or words[0] in ("-h", "--help"):
            return parse(["--help"], namespace)
        return argparse.Namespace(run=run, words=words), []  # argparse would take torchrun's flags for its own

    parser.parse_known_args = parse_known_args


def run(arguments: argparse.Namespace) -> int:
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from megatron_nca.mcore.watchdog import SAID

    flags = torchrun.parse_args(arguments.words)
    # The agent would answer a signal by giving the ranks 30 seconds; its ranks know better when they have saved.
    flags.signals_to_handle = "SIGHUP,SIGQUIT"
    for number in PASSED_ON:
        signal.signal(number, _pass_on)
    for part in ("multiprocessing.api", "agent.server.api"):  # say again, at length, what a rank has said
        logging.getLogger(f"torch.distributed.elastic.{part}").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        os.environ[SAID] = str(said)
        if flags.log_dir is None and flags.redirects == flags.tee == "0":
            flags.log_dir = folder  # nothing is logged there, but torchrun would make one and leave it
        try:
            torchrun.run(flags)
        except ChildFailedError as error:
            return exit_code(error, said.exists())
    return 0


def _pass_on(number: int, _frame: object) -> None:
    import psutil

    for rank in psutil.Process().children():
        rank.send_signal(number)


def exit_code(error: "ChildFailedError", said: bool) -> int:
    """Of all ranks: the first one's that failed; ranks that stop in good order are no failure beside one that did.

    `said`: whether a rank has said why.
    """
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    bad = [(rank, failure) for rank, failure in failures if failure.exitcode != NOT_FINISHED]
    if not bad:
        return NOT_FINISHED
    rank, failure = bad[0]
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        if not said:
            print(f"megatron-nca torchrun: rank {rank} (process {failure.pid}) was ended by {name}", file=sys.stderr)
        return 1
    return failure.exitcode
