"""`megatron-nca band`: how well a text compresses in the automata's measure, and the band that matches it."""

import argparse
import json
import os
import typing
from pathlib import Path

from megatron_nca.cli.arguments import add_law_options, law_changes
from megatron_nca.cli.progress import Progress
from megatron_nca.config.law import SCORING_SETTINGS, preset, replace
from megatron_nca.errors import ConfigError, DataError, explain

if typing.TYPE_CHECKING:
    from megatron_nca.look.band import Match

EXAMPLES = """examples:
  of an indexed dataset of text, for the released law
    megatron-nca band corpus/train_text_document
  with a plot and all figures, for a small law
    megatron-nca band corpus/train_text_document --num-states 4 --grid 8 8 --json band.json --plot band.png
  of text files, byte by byte
    megatron-nca band essays/*.txt --windows 5000
  of a dataset that Megatron-LM's own tool made, which has no manifest
    megatron-nca band owt/train_text_document --alphabet 50257
The band holds the middle 80 % of windows (--quantiles). That a text learns best from automata of its own complexity is
a heuristic of the paper's (best for code 0.3 to 0.4, for web text and mathematics above 0.5), and this program shows no
more than where a text lies on the automata's scale: see docs/bands.md."""

BAR_STEP, BAR_WIDTH = 0.05, 50
MOST_CANDIDATES = 1 << 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", nargs="+", type=Path, metavar="CORPUS",
                        help="an indexed dataset without its ending, or text files that together are one text")
    parser.add_argument("--alphabet", type=int, metavar="N",
                        help="ids that can occur (default: the manifest's; 256 for text files)")
    parser.add_argument("--windows", type=int, default=2000, metavar="N",
                        help="windows that are compressed, spread evenly (default %(default)s)")
    parser.add_argument("--quantiles", type=float, nargs=2, default=(0.1, 0.9), metavar=("LOW", "HIGH"),
                        help="of the windows' ratios, between which the band lies (default 0.1 0.9)")
    parser.add_argument("--candidates", type=int, default=2048, metavar="N",
                        help="rules that are scored to see how many the band accepts (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the windows' places and the rules (default 0)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT.json", help="all figures")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="histograms of the windows and of the rules")
    add_law_options(parser, [name for name in SCORING_SETTINGS if name not in ("height", "width")])


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from megatron_nca import files
    from megatron_nca.look import band, picture

    if arguments.plot is not None:
        picture.check(arguments.plot, "--plot")
    if arguments.json is not None:
        files.refuse_folder(arguments.json)
    name, changes = arguments.preset or "released", law_changes(arguments)
    law = replace(preset(name), **changes)
    corpus = band.open_corpus(arguments.corpus, law, arguments.alphabet)
    how = {"seed": arguments.seed, "threads": arguments.threads}
    with Progress(min(corpus.windows, arguments.windows), "windows", lambda: corpus.dtype) as progress:
        measured = band.measure(corpus, arguments.windows, **how, progress=progress.add)
    matched = band.match(measured, law, tuple(arguments.quantiles), arguments.candidates, **how)
    figures = band.record(measured, matched, arguments.seed)
    _say(figures)
    if arguments.json is not None:
        files.write_text(arguments.json, json.dumps(figures, indent=1) + "\n")
    if arguments.plot is not None:
        band.draw(measured, matched, arguments.plot)
    for path in filter(None, (arguments.json, arguments.plot)):
        print(f"written: {path}")
    if not matched.passed:
        reason = f"no rule of {arguments.candidates:,} candidates lies there, so it is of no use for this law."
        cure = "choose other --quantiles, or a law of more states (docs/bands.md)."
        raise DataError(explain("band", "{:g} to {:g} calibrated".format(*matched.law.band), reason, cure))
    print("\n" + recipe_lines(name, changes, matched), end="")
    return 0


def recipe_lines(name: str, changes: dict, matched: "Match") -> str:
    """The law of a recipe's dataset, as its YAML says it, and the same for `generate`."""
    import yaml

    settings = {"preset": name, **changes, "band": list(matched.law.band), "band_scale": "calibrated"}
    lines = yaml.safe_dump({"law": settings}, sort_keys=False, default_flow_style=None, width=1000)
    flags = [f"--band {matched.law.band[0]:g} {matched.law.band[1]:g} --band-scale calibrated"]
    return f"in a recipe's dataset of source nca:\n{lines}for generate, beside the law: {' '.join(flags)}\n"


def _check(arguments: argparse.Namespace) -> None:
    for name in ("windows", "candidates", "threads"):
        if getattr(arguments, name) < 1:
            reason = "must be at least 1."
            raise ConfigError(explain(f"--{name}", getattr(arguments, name), reason, "give a positive number."))
    low, high = arguments.quantiles
    if not 0 <= low < high <= 1:
        raise ConfigError(explain("--quantiles", [low, high], "are not 0 <= LOW < HIGH <= 1.", "0.1 0.9 is usual."))
    if not 0 <= arguments.seed < 2**63:
        raise ConfigError(explain("--seed", arguments.seed, "must lie in 0..2^63 - 1.", "0 is usual."))
    if arguments.candidates > MOST_CANDIDATES:
        reason = f"are more than {MOST_CANDIDATES:,}, whose sizes are held in memory."
        raise ConfigError(explain("--candidates", arguments.candidates, reason, "2048 are usual."))


def _say(figures: dict) -> None:
    """For a reader: what was measured, quantiles on three scales, a histogram, and the band."""
    print(f"{figures['corpus']}: {figures['windows']:,} of {figures['windows there']:,} windows of "
          f"{figures['window tokens']:,} tokens as {figures['dtype']}, alphabet {figures['alphabet']:,}")
    print(f"gzip ratio of uniform tokens of that alphabet {figures['uniform ratio']:.4f}, "
          f"of independent draws from this text's tokens {figures['unigram ratio']:.4f}")
    quantiles = figures["quantiles"]
    print(f"{'quantile':<28}" + "".join(f"{q:>8}" for q in quantiles["official"]))
    for scale, meaning in (("official", "gzip ratio"), ("calibrated", "over uniform tokens"),
                           ("over unigram draws", "over draws of its tokens")):
        print(f"  {meaning:<26}" + "".join(f"{value:8.3f}" for value in quantiles[scale].values()))
    print("histogram over uniform tokens: of the windows #, of unfiltered rules of the law o")
    edges, bars = figures["histogram"]["edges"], {"#": "corpus", "o": "rules"}
    step = max(round(BAR_STEP / (edges[1] - edges[0])), 1)
    shares = {sign: [sum(counts[i : i + step]) / sum(counts) for i in range(0, len(counts), step)]
              for sign, name in bars.items() for counts in [figures["histogram"][name]]}
    most = max(max(values) for values in shares.values())
    for number, pair in enumerate(zip(*shares.values(), strict=True)):
        for sign, share in zip(shares, pair, strict=True):
            if share:
                print(f"  {edges[number * step]:5.2f} {100 * share:5.1f} % {sign * round(BAR_WIDTH * share / most)}")
    low, high = figures["band"]
    share = figures["candidates passed"] / figures["candidates"]
    print(f"band {low:g} to {high:g} calibrated, for this law " + "{:.4f} to {:.4f} official: ".format(
        *figures["official band"]) + f"{figures['candidates passed']:,} of {figures['candidates']:,} rules lie in it "
        f"({100 * share:.1f} %)")
