"""Check indexed datasets, ours or another tool's: structure, token ranges, and hashes where there is a manifest.

Ends with 0 if all are sound and with 2 otherwise; every prefix is checked and reported.

Example:
    python data_tools/verify_dataset.py corpus/train_text_document data/nca
"""

import argparse
import sys
from pathlib import Path

from megatron_nca.data.tool import run_tool, tool_parser
from megatron_nca.data.verify import verify
from megatron_nca.errors import DataError


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("verify_dataset.py", __doc__)
    parser.add_argument("prefixes", metavar="PREFIX", nargs="+", type=Path,
                        help="path of the dataset; an ending .bin, .idx or .json is dropped")
    return parser


def main(arguments: argparse.Namespace) -> None:
    bad = 0
    for prefix in arguments.prefixes:
        if prefix.suffix in (".bin", ".idx", ".json"):
            prefix = prefix.with_suffix("")
        try:
            print(verify(prefix))
        except DataError as error:
            print(error, file=sys.stderr)
            bad += 1
    if bad:
        raise DataError(f"{bad} of {len(arguments.prefixes)} datasets are not sound.")


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
