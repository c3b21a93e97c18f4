"""The documentation of this Debian machine as train.jsonl and validation.jsonl: /usr/share/doc and manual pages.

Example:
    python data_tools/debian_corpus.py --output-dir corpus
"""

import argparse
import sys
from pathlib import Path

from megatron_nca.data.corpus import split_files
from megatron_nca.data.debian import debian_files
from megatron_nca.data.tool import run_tool, tool_parser


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("debian_corpus.py", __doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of train.jsonl and validation.jsonl")
    parser.add_argument("--held-out-share", type=float, default=0.05,
                        help="share of documents kept for validation, chosen by hash of the path")
    parser.add_argument("--root", type=Path, default=Path("/usr"), help="folder of share/doc and share/man")
    return parser


def main(arguments: argparse.Namespace) -> None:
    count = split_files(debian_files(arguments.root), arguments.output_dir, arguments.held_out_share)
    print(f"{arguments.output_dir}: {count.describe()}")


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
