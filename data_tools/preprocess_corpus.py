"""Turn texts into Megatron's indexed datasets: PREFIX_<key>_document.{bin,idx} with a manifest .json.

Inputs are JSONL files (plain, .gz, .zst), Parquet files, files of plain text, or folders of them; with --suffixes a
folder is a source tree whose files are a document each. Flags are those of Megatron-LM's tools/preprocess_data.py where
they mean the same. The end of a document is the tokenizer's own end-of-sentence token; what looks like a special token
in a text is encoded as text. The output does not depend on --workers. Killed, it goes on where it was when it is called
again; a dataset that is already whole is left as it is. At the end it says what became of the documents.

As a Slurm array each task has --shard $SLURM_ARRAY_TASK_ID/N, and one more job, when all are done, the same flags with
--merge; or with --separate each task makes datasets of its own share, to be trained on as a blend. A compressed file is
read from its beginning by every task. De-duplication compares hashes of 16 bytes; it takes 41 bytes of disk a document
and, whatever their number, about 120 MB of memory.

Examples:
    python data_tools/preprocess_corpus.py --input corpus/train.jsonl --output-prefix corpus/train \\
        --tokenizer-type SentencePieceTokenizer --tokenizer-model corpus/tokenizer.model --append-eod --workers 2
    python data_tools/preprocess_corpus.py --input c4/*.json.gz --output-prefix c4/train --append-eod --workers 16 \\
        --tokenizer-type GPT2BPETokenizer --vocab-file gpt2/vocab.json --merge-file gpt2/merges.txt \\
        --on-bad-line quarantine
    python data_tools/preprocess_corpus.py --corpus openwebtext --input owt/*.parquet --output-prefix owt/gpt2 \\
        --tokenizer-type GPT2BPETokenizer --vocab-file gpt2/vocab.json --merge-file gpt2/merges.txt --workers 16
    python data_tools/preprocess_corpus.py --input /usr/lib/python3.11 --suffixes .py --output-prefix code/train \\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model llama/ --append-eod
"""

import argparse
import sys
from pathlib import Path

from megatron_nca.cli.arguments import shard_of
from megatron_nca.data import known_corpora, stretches
from megatron_nca.data.encoding import Preprocessing
from megatron_nca.data.given import outputs_of
from megatron_nca.data.preprocess import datasets_of_share, make_share, merge, name_of_share, preprocess
from megatron_nca.data.preprocess_report import report
from megatron_nca.data.tokenizer_flags import add_hold_out, add_on_bad_line, add_tokenizer_flags, tokenizer_of
from megatron_nca.data.tool import output_prefix, run_tool, tool_parser
from megatron_nca.errors import ConfigError, explain


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("preprocess_corpus.py", __doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True,
                        help="files or folders, in this order; of a folder not what belongs to the output")
    parser.add_argument("--corpus", metavar="NAME",
                        help="openwebtext, openwebmath, codeparrot or c4 (data_tools/corpora.yaml): sets --json-keys, "
                             "--append-eod and, where it is not given, --hold-out, and compares the tokens with what "
                             "is known")
    parser.add_argument("--suffixes", nargs="+", default=[], metavar=".EXT",
                        help="of a folder take the files that end so, each a document of plain text")
    parser.add_argument("--output-prefix", type=output_prefix, required=True,
                        help="path of the output without _<key>_document.*")
    add_tokenizer_flags(parser)
    parser.add_argument("--json-keys", nargs="+",
                        help="keys, or columns, of the texts, one dataset each (default text)")
    parser.add_argument("--append-eod", action="store_true", help="end each document with the end-of-document token")
    add_on_bad_line(parser)
    parser.add_argument("--longest-document", type=int, default=stretches.LONGEST, metavar="BYTES",
                        help="a line, file or row of more is a bad line (default %(default)s, 64 MiB); tokenizers take "
                             "up to a hundred times as much memory")
    add_hold_out(parser)
    parser.add_argument("--deduplicate", action="store_true", help="of documents with equal texts keep the first")
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--shard", metavar="I/N", help="encode the share of process I of N, what lacks of it")
    parser.add_argument("--separate", action="store_true",
                        help="with --shard, make datasets of the share by itself, PREFIX_00002-of-00008_...; without "
                             "a --merge, and not with --deduplicate")
    share.add_argument("--merge", action="store_true", help="join the parts of all processes, and remove them")
    parser.add_argument("--parts", type=Path, nargs="+", default=[], metavar="DIR",
                        help="where parts are (default PREFIX.parts); a node-local folder each node for --shard, all "
                             "of them for --merge")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenize")
    parser.add_argument("--log-interval", type=int, default=1000, help="documents between two lines of progress")
    return parser


def _apply_known(arguments: argparse.Namespace) -> known_corpora.KnownCorpus | None:
    """Fill in what the table says of --corpus, and say so."""
    if arguments.corpus is None:
        return None
    known = known_corpora.load(Path(__file__).with_name("corpora.yaml"), arguments.corpus)
    if arguments.json_keys not in (None, [known.json_key]):
        raise ConfigError(explain("--json-keys", arguments.json_keys, f"the text of {arguments.corpus} is in "
                                  f"{known.json_key!r}.", "leave it out, or leave out --corpus."))
    arguments.json_keys, arguments.append_eod = [known.json_key], True
    arguments.hold_out = arguments.hold_out or list(known.hold_out.items())
    parts = " ".join(f"{name}={share}" for name, share in arguments.hold_out)
    print(f"{arguments.corpus}: {known.about}\nwith --json-keys {known.json_key} --append-eod --hold-out {parts}",
          file=sys.stderr)
    return known


def main(arguments: argparse.Namespace) -> None:
    known = _apply_known(arguments)
    is_output = outputs_of(arguments.output_prefix, arguments.parts)
    settings = Preprocessing(inputs=stretches.recognise(arguments.input, arguments.suffixes, is_output),
                             tokenizer=tokenizer_of(arguments),
                             json_keys=tuple(arguments.json_keys or ["text"]), append_eod=arguments.append_eod,
                             on_bad_line=arguments.on_bad_line, hold_out=tuple(arguments.hold_out),
                             deduplicate=arguments.deduplicate, longest_document=arguments.longest_document)
    prefix, workers, interval = arguments.output_prefix, arguments.workers, arguments.log_interval
    if arguments.separate and (arguments.shard is None or arguments.parts):
        raise ConfigError("--separate: belongs to --shard, and not with --parts. Cure: leave it or --parts out.")
    if arguments.parts and arguments.shard is None and not arguments.merge:
        raise ConfigError("--parts: belongs to --shard or --merge. Cure: leave it out.")
    if arguments.shard is not None:
        shard, shards = shard_of(arguments.shard)
        if arguments.separate:
            prefix = name_of_share(prefix, shard, shards)
            print(report(datasets_of_share(settings, prefix, shard, shards, workers, interval), prefix))
            return
        print(make_share(settings, prefix, shard, shards, arguments.parts, workers, interval))
        return
    if arguments.merge:
        manifests = merge(settings, prefix, arguments.parts, interval)
    else:
        manifests = preprocess(settings, prefix, workers, interval)
    print(report(manifests, prefix))
    if known is not None:
        print(known.compare(manifests))


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
