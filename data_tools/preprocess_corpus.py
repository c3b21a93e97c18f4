"""Turn a JSONL corpus into Megatron's indexed datasets: PREFIX_<key>_document.{bin,idx} with a manifest .json.

Flags are those of Megatron-LM's tools/preprocess_data.py where they mean the same. The end of a document is the
model's own </s>. The output does not depend on --workers, and a dataset that is already whole is left as it is.

Example:
    python data_tools/preprocess_corpus.py --input corpus/train.jsonl --output-prefix corpus/train \\
        --tokenizer-type SentencePieceTokenizer --tokenizer-model corpus/tokenizer.model --append-eod --workers 2
"""

import argparse
import sys
from pathlib import Path

from megatron_nca.data.preprocess import TOKENIZER_TYPE, Preprocessing, preprocess
from megatron_nca.data.tool import run_tool, tool_parser


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("preprocess_corpus.py", __doc__)
    parser.add_argument("--input", type=Path, required=True, help="JSONL file")
    parser.add_argument("--output-prefix", type=Path, required=True,
                        help="path of the output without _<key>_document.*")
    parser.add_argument("--tokenizer-type", choices=[TOKENIZER_TYPE], required=True)
    parser.add_argument("--tokenizer-model", type=Path, required=True, help="sentencepiece .model")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="keys of the texts, one dataset each")
    parser.add_argument("--append-eod", action="store_true", help="end each document with the end-of-document token")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenize")
    parser.add_argument("--log-interval", type=int, default=1000, help="documents between two lines of progress")
    return parser


def main(arguments: argparse.Namespace) -> None:
    settings = Preprocessing(input=arguments.input, tokenizer_model=arguments.tokenizer_model,
                             json_keys=tuple(arguments.json_keys), append_eod=arguments.append_eod)
    for key, manifest in zip(settings.json_keys, preprocess(settings, arguments.output_prefix, arguments.workers,
                                                            arguments.log_interval), strict=True):
        print(f"{arguments.output_prefix}_{key}_document: {manifest.documents:,} documents, "
              f"{manifest.tokens:,} tokens, "
              f"{manifest.origin['empty_documents']} empty documents left out, "
              f"unigram entropy {manifest.unigram_entropy_nats:.4f} nats")


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
