"""Turn texts into Megatron's indexed datasets: PREFIX_<key>_document.{bin,idx} with a manifest .json.

Inputs are JSONL files (plain, .gz, .zst), Parquet files, files of plain text, or folders of them; with --suffixes a
folder is a source tree whose files are a document each. Flags are those of Megatron-LM's tools/preprocess_data.py where
they mean the same. The end of a document is the tokenizer's own end-of-sentence token; what looks like a special token
in a text is encoded as text. The output does not depend on --workers. Killed, it goes on where it was when it is called
again; a dataset that is already whole is left as it is.

Examples:
    python data_tools/preprocess_corpus.py --input corpus/train.jsonl --output-prefix corpus/train \\
        --tokenizer-type SentencePieceTokenizer --tokenizer-model corpus/tokenizer.model --append-eod --workers 2
    python data_tools/preprocess_corpus.py --input c4/*.json.gz --output-prefix c4/train --append-eod --workers 16 \\
        --tokenizer-type GPT2BPETokenizer --vocab-file gpt2/vocab.json --merge-file gpt2/merges.txt \\
        --on-bad-line quarantine
    python data_tools/preprocess_corpus.py --input /usr/lib/python3.11 --suffixes .py --output-prefix code/train \\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model llama/ --append-eod
"""

import argparse
import sys
from pathlib import Path

from megatron_nca.data import encoders, stretches
from megatron_nca.data.encoding import ON_BAD_LINE, Preprocessing
from megatron_nca.data.preprocess import preprocess
from megatron_nca.data.tool import run_tool, tool_parser


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("preprocess_corpus.py", __doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="files or folders, in this order")
    parser.add_argument("--suffixes", nargs="+", default=[], metavar=".EXT",
                        help="of a folder take the files that end so, each a document of plain text")
    parser.add_argument("--output-prefix", type=Path, required=True,
                        help="path of the output without _<key>_document.*")
    parser.add_argument("--tokenizer-type", choices=encoders.TYPES, required=True)
    parser.add_argument("--tokenizer-model", type=Path, help="sentencepiece .model, or folder with tokenizer.json")
    parser.add_argument("--vocab-file", type=Path, help="vocab.json of a GPT2BPETokenizer")
    parser.add_argument("--merge-file", type=Path, help="merges.txt of a GPT2BPETokenizer")
    parser.add_argument("--json-keys", nargs="+", default=["text"],
                        help="keys, or columns, of the texts, one dataset each")
    parser.add_argument("--append-eod", action="store_true", help="end each document with the end-of-document token")
    parser.add_argument("--on-bad-line", choices=ON_BAD_LINE, default="stop",
                        help="stop (the default): one message with file and line; skip: leave out and count; "
                             "quarantine: also keep them in PREFIX_rejected.jsonl")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenize")
    parser.add_argument("--log-interval", type=int, default=1000, help="documents between two lines of progress")
    return parser


def main(arguments: argparse.Namespace) -> None:
    tokenizer = encoders.TokenizerFiles(type=arguments.tokenizer_type, model=arguments.tokenizer_model,
                                        vocab_file=arguments.vocab_file, merge_file=arguments.merge_file)
    settings = Preprocessing(inputs=stretches.recognise(arguments.input, arguments.suffixes), tokenizer=tokenizer,
                             json_keys=tuple(arguments.json_keys), append_eod=arguments.append_eod,
                             on_bad_line=arguments.on_bad_line)
    for key, manifest in zip(settings.json_keys, preprocess(settings, arguments.output_prefix, arguments.workers,
                                                            arguments.log_interval), strict=True):
        print(f"{arguments.output_prefix}_{key}_document: {manifest.documents:,} documents, "
              f"{manifest.tokens:,} tokens, "
              f"{manifest.origin['empty_documents']} empty documents and {manifest.origin['left_out_lines']} bad lines "
              f"left out, {manifest.origin['unknown_tokens']} unknown tokens, "
              f"unigram entropy {manifest.unigram_entropy_nats:.4f} nats")


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
