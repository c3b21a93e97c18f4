"""Check indexed datasets, ours or another tool's: structure, token ranges, and hashes where there is a manifest.

Of a dataset without one, such as Megatron-LM's preprocess_data.py makes, it says what it found and what it could not
check; --vocab-size gives the range of its ids. Every byte is read once.

Ends with 0 if all are sound and with 2 otherwise; every prefix is checked and reported.

Example:
    python data_tools/verify_dataset.py corpus/train_text_document data/nca
    python data_tools/verify_dataset.py owt/train_text_document --vocab-size 50257
"""

import argparse
import sys
from pathlib import Path

from megatron_nca.data.manifest import prefix_of
from megatron_nca.data.tool import run_tool, tool_parser
from megatron_nca.data.verify import verify
from megatron_nca.errors import ConfigError, DataError, explain


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("verify_dataset.py", __doc__)
    parser.add_argument("prefixes", metavar="PREFIX", nargs="+", type=Path,
                        help="path of the dataset; an ending .bin, .idx or .json is dropped")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="ids must be below N too")
    return parser


def main(arguments: argparse.Namespace) -> None:
    if arguments.vocab_size is not None and arguments.vocab_size < 1:
        raise ConfigError(explain("--vocab-size", arguments.vocab_size, "must be at least 1.", "50257 is GPT-2's."))
    bad = 0
    for prefix in arguments.prefixes:
        try:
            print(verify(prefix_of(prefix), arguments.vocab_size))
        except DataError as error:
            print(error, file=sys.stderr)
            bad += 1
    if bad:
        raise DataError(f"{bad} of {len(arguments.prefixes)} datasets are not sound.")


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
