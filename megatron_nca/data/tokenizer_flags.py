"""The flags of Megatron-LM that name a tokenizer, for the programs that encode text."""

import argparse
from pathlib import Path

from megatron_nca.data import bad_lines, encoders
from megatron_nca.data.encoders import TokenizerFiles
from megatron_nca.data.tiktoken_files import TiktokenRules
from megatron_nca.errors import ConfigError, explain


def add_tokenizer_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tokenizer (flags and defaults are Megatron's)")
    group.add_argument("--tokenizer-type", choices=encoders.TYPES, required=True)
    group.add_argument("--tokenizer-model", type=Path,
                       help="sentencepiece .model, folder with tokenizer.json, or tiktoken's file of ranks")
    group.add_argument("--vocab-file", type=Path, help="vocab.json of a GPT2BPETokenizer")
    group.add_argument("--merge-file", type=Path, help="merges.txt of a GPT2BPETokenizer")
    group.add_argument("--use-gigatoken", action="store_true",
                       help="let the package gigatoken encode for a HuggingFaceTokenizer: the same tokens, checked on "
                            "one text in 256, many times faster; the manifest names it")
    group.add_argument("--tiktoken-pattern", help="v1, v2 (the default) or a regular expression")
    group.add_argument("--tiktoken-num-special-tokens", type=int, help="their ids come first (default 1000)")
    group.add_argument("--tiktoken-special-tokens", nargs="+", help="names of the first of them")
    group.add_argument("--vocab-size", type=int, help="of a TikTokenizer, special tokens included (default 131072)")


def tokenizer_of(arguments: argparse.Namespace) -> TokenizerFiles:
    """What the flags name. Raises DataError and ConfigError."""
    given = {"pattern": arguments.tiktoken_pattern, "num_special_tokens": arguments.tiktoken_num_special_tokens,
             "special_tokens": arguments.tiktoken_special_tokens and tuple(arguments.tiktoken_special_tokens),
             "vocab_size": arguments.vocab_size}
    given = {name: value for name, value in given.items() if value is not None}
    if given and arguments.tokenizer_type != encoders.TIKTOKEN:
        name, value = next(iter(given.items()))
        flag = "--vocab-size" if name == "vocab_size" else "--tiktoken-" + name.replace("_", "-")
        value = list(value) if isinstance(value, tuple) else value
        raise ConfigError(explain(flag, value, f"{arguments.tokenizer_type} has no use for it; it is for "
                                  f"{encoders.TIKTOKEN}.", "leave it out."))
    return TokenizerFiles(type=arguments.tokenizer_type, model=arguments.tokenizer_model,
                          vocab_file=arguments.vocab_file, merge_file=arguments.merge_file,
                          tiktoken=TiktokenRules(**given) if given else None, gigatoken=arguments.use_gigatoken)


def add_hold_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hold-out", nargs="+", default=[], type=_share, metavar="PART=SHARE",
                        help="keep this share of the documents, chosen by the hash of the text, from training: "
                             "PREFIX_PART..., for example validation=0.01 test=0.01")


def add_on_bad_line(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--on-bad-line", choices=bad_lines.POLICIES, default="stop",
                        help="stop (the default): one message with file and place; skip: leave out and count; "
                             "quarantine: also keep them in PREFIX_rejected.jsonl. A file that cannot be read to its "
                             "end (cut off, damaged Parquet) ends the run with each")


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: is no part with its share. Cure: for example "
                                         f"{name or 'validation'}=0.01.") from error
