"""Merge indexed datasets into one: the documents of all, in the order in which they are named.

They must be whole, of one kind and vocabulary, made with one tokenizer, and no two of them equal. Memory does not grow
with their size.

Example:
    python data_tools/merge_datasets.py c4/part0_text_document c4/part1_text_document --output-prefix c4/all
"""

import argparse
import sys
from pathlib import Path

from megatron_nca.data.manifest import prefix_of
from megatron_nca.data.merge import merge
from megatron_nca.data.tool import output_prefix, run_tool, tool_parser


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("merge_datasets.py", __doc__)
    parser.add_argument("prefixes", metavar="PREFIX", nargs="+", type=Path,
                        help="path of a dataset; an ending .bin, .idx or .json is dropped")
    parser.add_argument("--output-prefix", type=output_prefix, required=True,
                        help="path of the merged dataset; must not exist")
    return parser


def main(arguments: argparse.Namespace) -> None:
    output = prefix_of(arguments.output_prefix)
    manifest = merge(list(map(prefix_of, arguments.prefixes)), output)
    print(f"{output}: {manifest.documents:,} documents, {manifest.tokens:,} tokens of "
          f"{len(arguments.prefixes)} datasets")


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
