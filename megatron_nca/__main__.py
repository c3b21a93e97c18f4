"""The command line: each verb is a file in `cli/`, imported only when it is called, so that --help is instant."""

import argparse
import gc
import importlib
import os
import select
import sys

from megatron_nca import __version__
from megatron_nca.errors import MegatronNcaError, of_system

VERBS = {
    "generate": "make a dataset of automata, or a control of one",
    "stage": "make a recipe's on-node dataset on this node",
    "bank": "score candidate rules once, for any band and any number of datasets",
    "band": "how well a text compresses in the measure of automata, and the band that matches it",
    "run": "walk a recipe: data, phases, transfers, report",
    "submit": "a recipe's whole plan as jobs of a Slurm cluster",
    "status": "how far a run is, on Slurm or not",
    "logs": "the end of a run's logs on Slurm",
    "cancel": "end a run's jobs on Slurm",
    "resubmit": "submit again what is left of a run on Slurm",
    "job": "what a batch script of a run on Slurm runs",
    "train": "train one phase of a recipe",
    "torchrun": "start the ranks of a training on this machine or several",
    "convert": "checkpoints into other ones: between phases, between formats; what they hold",
    "report": "compare the arms of finished runs",
    "estimate": "what a recipe takes: parameters, memory, FLOPs, device-hours, disk",
    "doctor": "what this machine can do, what is wrong with it, and the cure",
}


_GARBAGE_THRESHOLD = 50_000
"""New objects until the next search for cycles, by default 700: importing torch makes hundreds of thousands that stay,
and the searches in between took a tenth of its time."""


def main(argv: list[str] | None = None) -> int:
    gc.set_threshold(_GARBAGE_THRESHOLD)
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="megatron-nca",
        description="Pre-pre-training on neural cellular automata, on Megatron-Core.",
        epilog="Start with `make demo`, or see `megatron-nca VERB --help`.",
    )
    parser.add_argument("--version", action="version", version=f"megatron-nca {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        verb = verbs.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if argv[:1] == [name]:
            module = importlib.import_module(f"megatron_nca.cli.{name}")
            verb.epilog = module.EXAMPLES
            module.add_arguments(verb)
            verb.set_defaults(run=module.run)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:  # argparse would answer with the usage of all verbs
        verbs.choices.get(argv[0], parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        status = arguments.run(arguments)
        print(end="", flush=True)  # here, where the end of a reader can still be told
        return status
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail again when it ends
        return 141  # as by SIGPIPE
    except OSError as error:
        if (message := of_system(error)) is None:
            raise
        print(f"megatron-nca {arguments.verb}: {message}", file=sys.stderr)
        return 2
    except MegatronNcaError as error:
        print(f"megatron-nca {arguments.verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"megatron-nca {arguments.verb}: interrupted", file=sys.stderr)
        return 130


def _reader_has_gone() -> bool:
    """Whether it was the output that broke, and no connection of a training."""
    output = select.poll()
    output.register(sys.stdout, 0)
    return any(events & select.POLLERR for _, events in output.poll(0))


if __name__ == "__main__":
    sys.exit(main())
