"""Look at datasets of any source: a report of their quality, pictures of frames, sequences as text.

The report goes to the terminal, with --report to a folder too, as quality.md and a
histogram of gzip ratios. Several datasets, such as bands of one law, are drawn one below
the other.

Example:
    python data_tools/show_dataset.py runs/low runs/high --sequences 0 1 2 --picture frames.png
    python data_tools/show_dataset.py runs/nca --report runs/nca_quality
    python data_tools/show_dataset.py runs/nca --decode 5
    python data_tools/show_dataset.py corpus/train_text_document --decode 0 --tokenizer-model corpus/tokenizer.model

--document prints one document of a corpus, made here or by Megatron-LM's own tool:
    python data_tools/show_dataset.py owt/train_text_document --document 7 \\
        --tokenizer-type GPT2BPETokenizer --vocab-file vocab.json --merge-file merges.txt
"""

import argparse
import sys
from pathlib import Path

from megatron_nca.data import encoders
from megatron_nca.data.manifest import prefix_of
from megatron_nca.data.tool import run_tool, tool_parser
from megatron_nca.errors import ConfigError, explain
from megatron_nca.files import check_replaced, publish
from megatron_nca.look import decoding, documents, picture, quality
from megatron_nca.look.opened import Opened
from megatron_nca.nca import complexity

REPORT = ("quality.md", "gzip_ratios.png")


def build_parser() -> argparse.ArgumentParser:
    parser = tool_parser("show_dataset.py", __doc__)
    parser.add_argument("prefixes", metavar="PREFIX", nargs="+", type=Path,
                        help="path of a dataset; an ending .bin, .idx or .json is dropped")
    parser.add_argument("--sequences", type=int, nargs="+", metavar="I",
                        help="which are drawn (default: the first four)")
    parser.add_argument("--picture", type=Path, metavar="OUT.png", help="a row a sequence, a column a frame")
    parser.add_argument("--report", type=Path, metavar="DIR", help="folder for quality.md and gzip_ratios.png")
    parser.add_argument("--limit", type=int, default=4096, help="sequences that are measured (default %(default)s)")
    parser.add_argument("--decode", type=int, metavar="I", help="print this sequence as text, and nothing else")
    parser.add_argument("--document", type=int, metavar="I",
                        help="print this document of a corpus, and nothing else; ids without a tokenizer")
    parser.add_argument("--tokenizer-type", choices=encoders.TYPES, help=f"default {encoders.SENTENCEPIECE}")
    parser.add_argument("--tokenizer-model", type=Path,
                        help="of the text that --decode or --document prints: a .model, or folder with tokenizer.json")
    parser.add_argument("--vocab-file", type=Path, help="vocab.json of a GPT2BPETokenizer")
    parser.add_argument("--merge-file", type=Path, help="merges.txt of a GPT2BPETokenizer")
    return parser


def main(arguments: argparse.Namespace) -> None:
    drawn = {"--picture": arguments.picture, "--report": arguments.report}
    check_alone(arguments)
    if arguments.picture is not None:
        picture.check(arguments.picture, "--picture")
    if arguments.report is not None:
        picture.check_matplotlib(arguments.report, "--report")
    if arguments.limit < 1:
        raise ConfigError(explain("--limit", arguments.limit, "must be at least 1.", "4096 is usual."))
    if arguments.document is not None:
        return document(arguments)
    for name in ("tokenizer_type", "vocab_file", "merge_file"):
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: belongs to --document. Cure: give it, or leave it out.")
    datasets = [Opened(prefix_of(prefix)) for prefix in arguments.prefixes]
    if arguments.decode is not None:
        return decode(datasets, arguments)
    if arguments.sequences is not None and arguments.picture is None:
        raise ConfigError("--sequences: belongs to --picture. Cure: say where to draw them, or leave it out.")
    if arguments.tokenizer_model is not None:
        raise ConfigError("--tokenizer-model: belongs to --decode. Cure: give --decode, or leave it out.")
    if arguments.picture is not None:
        picture.draw([(one, arguments.sequences or range(min(4, len(one)))) for one in datasets], arguments.picture)
    report(datasets, arguments.limit, arguments.report)
    for path in filter(None, drawn.values()):
        print(f"written: {path}")


def check_alone(arguments: argparse.Namespace) -> None:
    """Raise ConfigError if something is asked for beside text, which is printed and nothing else."""
    given = [name for name in ("document", "decode", "picture", "report", "sequences")
             if getattr(arguments, name) is not None]
    if len(given) > 1 and given[0] in ("document", "decode"):
        reason = f"prints text and nothing else, so --{given[1]} would not be heeded."
        raise ConfigError(explain(f"--{given[0]}", getattr(arguments, given[0]), reason, "call the tool twice."))


def decode(datasets: list[Opened], arguments: argparse.Namespace) -> None:
    if len(datasets) > 1:
        raise ConfigError("--decode: several datasets were given. Cure: give one.")
    print(decoding.decode(datasets[0], arguments.decode, arguments.tokenizer_model), end="")


def document(arguments: argparse.Namespace) -> None:
    if len(arguments.prefixes) > 1:
        raise ConfigError("--document: several datasets were given. Cure: give one.")
    given = {"model": arguments.tokenizer_model, "vocab_file": arguments.vocab_file, "merge_file": arguments.merge_file}
    chosen = None
    if arguments.tokenizer_type is not None or any(given.values()):
        chosen = encoders.TokenizerFiles(type=arguments.tokenizer_type or encoders.SENTENCEPIECE, **given)
    text, note = documents.document(prefix_of(arguments.prefixes[0]), arguments.document, chosen)
    if note is not None:
        print(note, file=sys.stderr)
    print(text)


def report(datasets: list[Opened], limit: int, folder: Path | None) -> None:
    """Print the figures of each dataset, and write them with a histogram if there is a folder."""
    if folder is not None:
        check_replaced(folder, REPORT, "--report")
    measured = [quality.measure(dataset, limit) for dataset in datasets]
    sections = [(str(dataset.prefix), quality.lines(dataset, one))
                for dataset, one in zip(datasets, measured, strict=True)]
    for name, figures in sections:
        print(name)
        print("".join(f"  {figure:28} {value}\n" for figure, value in figures))
    if folder is None:
        return
    with publish(folder) as aside:
        aside.mkdir()
        ratios = [(dataset.name, one.ratios) for dataset, one in zip(datasets, measured, strict=True)]
        bands = [None if dataset.law is None else complexity.official_band(dataset.law) for dataset in datasets]
        page, histogram = REPORT
        picture.draw_histogram(ratios, bands, aside / histogram)
        (aside / page).write_text(quality.markdown(sections, histogram), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_tool(build_parser(), main))
