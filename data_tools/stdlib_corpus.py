"""The source of the running Python's standard library, or any JSONL file, as train.jsonl and validation.jsonl.

Example:
    python data_tools/stdlib_corpus.py --output-dir corpus
    python data_tools/stdlib_corpus.py --input mine.jsonl --output-dir corpus --held-out-share 0.02
"""

import argparse
import sys
from pathlib import Path

from megatron_nca.data.corpus import split_jsonl, split_stdlib
from megatron_nca.data.tool import run_tool, tool_parser


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("stdlib_corpus.py", __doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of train.jsonl and validation.jsonl")
    parser.add_argument("--held-out-share", type=float, default=0.05,
                        help="share of documents kept for validation, chosen by hash of the path "
                             "(of the text with --input)")
    parser.add_argument("--input", type=Path, help="split this JSONL file instead of the standard library")
    parser.add_argument("--json-key", default="text", help="key of the text in --input")
    return parser


def main(arguments: argparse.Namespace) -> None:
    if arguments.input is None:
        count = split_stdlib(arguments.output_dir, arguments.held_out_share)
    else:
        count = split_jsonl(arguments.input, arguments.output_dir, arguments.held_out_share, arguments.json_key)
    print(f"{arguments.output_dir}: {count.describe()}")


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
