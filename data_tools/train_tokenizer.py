"""Train a sentencepiece model that keeps a text's layout: white space, tabs, newlines
and all of Unicode come back as they were.

Example:
    python data_tools/train_tokenizer.py --input corpus/train.jsonl --model-prefix corpus/tokenizer --vocab-size 4096
"""

import argparse
import sys
from pathlib import Path

from megatron_nca import files
from megatron_nca.data import tokenizer
from megatron_nca.data.tool import output_prefix, run_tool, tool_parser


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("train_tokenizer.py", __doc__)
    parser.add_argument("--input", type=Path, required=True, help="JSONL file")
    parser.add_argument("--model-prefix", type=output_prefix, required=True, help="makes PREFIX.model and PREFIX.vocab")
    parser.add_argument("--vocab-size", type=int, required=True, help="pieces, 256 bytes and 2 special ones included")
    parser.add_argument("--json-key", default="text", help="key of the text")
    parser.add_argument("--train-megabytes", type=float, default=10.0,
                        help="train on about this many million characters, taken evenly from the "
                             "input (bounds memory and time)")
    return parser


def main(arguments: argparse.Namespace) -> None:
    for ending in ("model", "vocab"):
        files.refuse_folder(Path(f"{arguments.model_prefix}.{ending}"))
    model, left_out = tokenizer.train(arguments.input, arguments.vocab_size, arguments.train_megabytes,
                                      arguments.json_key)
    if left_out:
        print(f"{arguments.input}: {left_out} documents hold U+2581, which sentencepiece cannot tell from a space: "
              "there it will come back as a space.", file=sys.stderr)
    tokenizer.save(model, arguments.model_prefix)
    print(f"{arguments.model_prefix}.model: {arguments.vocab_size} pieces; the round trip keeps layout.")


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
