"""How the programs of data_tools/ begin and end."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_nca.errors import DataError, MegatronNcaError, of_system


@contextlib.contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Around an import that only some users need. Raises DataError naming what is not installed."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"{what}: needs the package {error.name}, which is not installed. "
                        "Cure: pip install 'megatron_nca[corpora]'.") from error


def tool_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser whose --help shows the program's own docstring as it is written."""
    return argparse.ArgumentParser(prog=prog, description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def output_prefix(text: str) -> Path:
    """The path with which the names of what is written begin; for argparse's `type`."""
    path = Path(text)
    if path.name in ("", "..") or text.endswith(("/", "/.")):
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, and names of files are to begin with it. "
                                         f"Cure: give their beginning too, for example {path / 'train'}.")
    if text.startswith("~/"):
        raise argparse.ArgumentTypeError(f"{text!r} has a ~ that the shell left as it is, as it does behind a =. "
                                         "Cure: put a space before it, or write $HOME.")
    return path


def run_tool(parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None]) -> int:
    """Parse the command line, call `main` with it, and return the exit code.

    0 when all is there, 2 with one message on stderr after a user's error, 130 when interrupted, 141 when whoever read
    the output has ended, as by SIGPIPE.
    """
    arguments = parser.parse_args()
    with contextlib.suppress(AttributeError):  # names of files as they are, also those that are no UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        main(arguments)
        sys.stdout.flush()
    except MegatronNcaError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail again when it ends
        return 141
    except OSError as error:
        if (message := of_system(error)) is None:
            raise
        print(f"{parser.prog}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    return 0
