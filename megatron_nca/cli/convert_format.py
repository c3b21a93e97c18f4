"""`megatron-nca convert format`: the same weights in another format."""

import argparse
from pathlib import Path

from megatron_nca.errors import ConfigError

EXAMPLES = """examples:
  a checkpoint of any layout and with optimizer state as one of weights alone, in bfloat16
    megatron-nca convert format megatron-nca --from CHECKPOINT --to weights --dtype bfloat16
  for transformers, vLLM, lm-eval: a folder that AutoModelForCausalLM and AutoTokenizer load
    megatron-nca convert format hf --from CHECKPOINT --to folder --tokenizer data/text/tokenizer.model
  any Llama model of Hugging Face's as the start of a training
    megatron-nca convert format megatron-nca --from folder --to initial
  a file of the paper's released code, which does not say how many heads its model has, as a checkpoint here
    megatron-nca convert format megatron-nca --from model_10.pth --to automata --num-heads 32 --drop-head-bias
  weights for Megatron-LM's pretrain_gpt.py --load DIR, which starts from them at iteration 0
    megatron-nca convert format megatron-lm --from CHECKPOINT --to DIR
"""


def add_action(actions: argparse._SubParsersAction) -> None:
    summary = "the same weights in another format, read back and checked before they get their name"
    action = actions.add_parser("format", help=summary, description=summary, epilog=EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    action.add_argument("format", metavar="FORMAT", help="what to write: megatron-nca, hf, released or megatron-lm")
    action.add_argument("--from", dest="source", type=Path, required=True, metavar="SOURCE",
                        help="folder or file of a checkpoint; its format is told by its files")
    action.add_argument("--from-format", metavar="FORMAT", help="the source's format, where its files do not tell it")
    action.add_argument("--to", type=Path, required=True, metavar="DIR", help="the new folder; must not exist")
    action.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="type of all weights (default: as they are stored)")
    action.add_argument("--tokenizer", type=Path, metavar="PATH",
                        help="hf: a sentencepiece model, or the folder of a tokenizer, to go with the weights")
    action.add_argument("--shard-bytes", type=_size, metavar="N",
                        help="hf: a file ends before it would hold more than N bytes (default: 5000000000)")
    shape = action.add_argument_group("what the source's files do not say of its model")
    shape.add_argument("--num-heads", type=int, metavar="N", help="attention heads")
    shape.add_argument("--rope-base", type=int, metavar="BASE", help="base of the rotary frequencies")
    shape.add_argument("--norm-epsilon", type=float, metavar="EPSILON", help="epsilon of RMSNorm")
    shape.add_argument("--sequence-length", type=int, metavar="N", help="longest sequence")
    shape.add_argument("--vocab-size", type=int, metavar="N", help="rows of the embedding that are the vocabulary's")
    shape.add_argument("--drop-head-bias", action="store_const", const=True,
                       help="leave aside a bias of the head, which the released code's automata models have")
    action.add_argument("--verify", action="store_true",
                        help="read back every tensor and compare every bit, which takes about as long as writing; "
                             "without it the model and the table of tensors are read back")
    action.add_argument("--dry-run", action="store_true", help="print the account, write nothing")
    action.set_defaults(action_run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    from megatron_nca.convert import formats
    from megatron_nca.convert.canonical import cast

    target = formats.by_name(arguments.format, "FORMAT")
    if not target.writer:
        writing = ", ".join(each.name for each in formats.FORMATS.values() if each.writer)
        raise ConfigError(f"FORMAT {target.name}: can be read only. Cure: choose one of {writing}.")
    source, mark = _source_format(arguments)
    read_options = formats.check_options(source, source.read_options, _given(arguments, _READ_OPTIONS))
    write_options = formats.check_options(target, target.write_options, _given(arguments, _WRITE_OPTIONS))
    formats.refuse_inside(arguments.to, arguments.source)
    formats.refuse_existing(arguments.to)
    formats.tell_left(arguments.to)
    checkpoint = source.read(arguments.source, **read_options)
    print(f"from {checkpoint.origin}: {source.name}{mark}")
    if arguments.dtype is not None:
        checkpoint = cast(checkpoint, arguments.dtype)
    if arguments.dry_run:
        print(formats.format_account(formats.outline(source, target, checkpoint, None)))
        print(f"Dry run: {arguments.to} was not written.")
        return 0
    account = formats.convert(source, target, checkpoint, arguments.to, arguments.verify, **write_options)
    print(formats.format_account(account))
    checked = {"every bit": "every bit of its tensors", "table": "its model and its table of tensors"}
    print(f"Wrote {arguments.to}: {target.name}; read back and found right: {checked[account['verified']]}")
    return 0


_READ_OPTIONS: tuple[str, ...] = ("num_heads", "rope_base", "norm_epsilon", "sequence_length", "vocab_size",
                                  "drop_head_bias")
_WRITE_OPTIONS: tuple[str, ...] = ("tokenizer", "shard_bytes")
"""Arguments that are passed on to the spoke that reads and to the one that writes."""


def _size(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, object]:
    return {name: getattr(arguments, name) for name in names}


def _source_format(arguments: argparse.Namespace) -> tuple[object, str]:
    """The source's format, and in words what told it."""
    from megatron_nca.convert import formats

    if arguments.from_format is None:
        chosen, mark = formats.recognise(arguments.source)
        return chosen, f" (told by {mark})"
    chosen = formats.by_name(arguments.from_format, "--from-format")
    if not chosen.reader:
        raise ConfigError(f"--from-format {chosen.name}: can be written only. Cure: give another source.")
    return chosen, ""
