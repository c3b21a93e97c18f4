"""The gzip measure of automata on windows of a text, and the band of automata that compress about as well.

A ratio depends on the alphabet: independent uniform tokens of 10^4 ids score 0.67, bytes 1.02. So a window's ratio is
divided by that of uniform tokens of the text's own alphabet and of a window's length, which is what `band_scale:
calibrated` does with automata. N windows, W tokens of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_nca import files
from megatron_nca.config.law import NcaLaw, replace
from megatron_nca.data.given import check_file
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.manifest import Manifest, part, prefix_of
from megatron_nca.errors import ConfigError, DataError, explain
from megatron_nca.nca import complexity, simulate

CHUNK = 256
"""Windows that are read and compressed at a time."""
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
DECIMALS = 3
"""Of the band; its bounds are rounded outwards."""
STEP = 0.025
"""Width of the histogram's bins, in calibrated ratios."""
PACKED = (".jsonl", ".json", ".gz", ".zst", ".parquet")


class TokenCorpus:
    """An indexed dataset as one stream, as training reads it, cut into windows of `length` tokens of the law's bytes.

    `alphabet`: ids that can occur; None: as the manifest says. Raises DataError, and ConfigError for an alphabet that
    is not known.
    """

    unit = "tokens"

    def __init__(self, prefix: Path, law: NcaLaw, alphabet: int | None) -> None:
        self.name, self.dtype, self.length = str(prefix), law.score_dtype, window_tokens(law)
        if part(prefix, "json").exists():
            manifest = Manifest.load(prefix)
            if manifest.trajectory is not None:
                reason = f"is {manifest.kind}, sequences that were generated."
                raise ConfigError(explain("CORPUS", str(prefix), reason, "give a dataset of text."))
            alphabet = alphabet or manifest.num_tokens
        if alphabet is None:
            reason = "has no manifest, so how many ids its tokenizer has is not known."
            raise ConfigError(explain("CORPUS", str(prefix), reason, "say it with --alphabet."))
        self.alphabet, self._reader = alphabet, IndexedReader(prefix)
        self.windows = self._reader.tokens // self.length

    def window(self, number: int) -> np.ndarray:
        return self._reader.stream(number * self.length, (number + 1) * self.length)


class ByteCorpus:
    """Text files, each cut into windows of as many bytes as the law's measure compresses; tokens are bytes."""

    unit = "bytes"

    def __init__(self, paths: Sequence[Path], law: NcaLaw, alphabet: int | None) -> None:
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        self.name, self.dtype, self.alphabet = f"{paths[0]}{others}", "uint8", alphabet or 256
        self.length = window_tokens(law) * np.dtype(law.score_dtype).itemsize
        self._paths = paths
        try:
            whole = [path.stat().st_size // self.length for path in paths]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Cure: check the path.") from error
        self._ends = np.cumsum(whole)
        self.windows = int(self._ends[-1])

    def window(self, number: int) -> np.ndarray:
        which = int(np.searchsorted(self._ends, number, "right"))
        first = int(self._ends[which - 1]) if which else 0
        try:
            with open(self._paths[which], "rb") as file:
                file.seek((number - first) * self.length)
                return np.frombuffer(file.read(self.length), dtype=np.uint8)
        except OSError as error:
            path = self._paths[which]
            raise DataError(f"{path}: cannot be read ({error.strerror}). Cure: check the path.") from error


Corpus = TokenCorpus | ByteCorpus


def open_corpus(paths: Sequence[Path], law: NcaLaw, alphabet: int | None = None) -> Corpus:
    """An indexed dataset, if there is PREFIX.idx, or text files as one corpus. Raises DataError and ConfigError."""
    prefixes = list(map(prefix_of, paths))
    indexed = [prefix for prefix in prefixes if part(prefix, "idx").exists()]
    if indexed and len(paths) > 1:
        cure = "give one of them, or merge them first (data_tools/merge_datasets.py)."
        raise ConfigError(explain("CORPUS", str(indexed[0]), "is an indexed dataset among others.", cure))
    for path in () if indexed else paths:
        check_file(path)
        if path.suffix in PACKED:
            cure = "make an indexed dataset of it (data_tools/preprocess_corpus.py), or give its text alone."
            raise ConfigError(explain("CORPUS", str(path), "is no plain text, and its packing would count.", cure))
    corpus = TokenCorpus(indexed[0], law, alphabet) if indexed else ByteCorpus(paths, law, alphabet)
    if corpus.windows == 0:
        raise DataError(f"{corpus.name}: is shorter than one window of {corpus.length:,} {corpus.unit}. "
                        "Cure: give more text.")
    if not 2 <= corpus.alphabet <= 2**32:
        raise ConfigError(explain("--alphabet", corpus.alphabet, "is no number of ids.", "give 2 or more."))
    return corpus


def window_tokens(law: NcaLaw) -> int:
    """Tokens that the law's measure compresses (360 as released)."""
    return law.score_frames * (law.patches_per_frame + 2 * law.score_delimiters)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of windows that lie evenly spread in a corpus, at random places."""

    corpus: Corpus
    ratios: np.ndarray
    """gzip ratios float64 (N,)."""
    uniform: float
    """Mean ratio of independent uniform tokens of the corpus' alphabet: what the calibrated scale calls 1."""
    unigram: float
    """Mean ratio of independent draws from the tokens of all these windows."""

    @property
    def calibrated(self) -> np.ndarray:
        return self.ratios / self.uniform


def measure(corpus: Corpus, windows: int, seed: int, threads: int = 1,
            progress: Callable[[int], None] = lambda count: None) -> Measured:
    """Compress so many windows, or all there are. The same seed gives the same windows. Raises DataError."""
    complexity.check_zlib()
    numbers = places(corpus.windows, windows, seed)
    counts, ratios = np.zeros(corpus.alphabet, dtype=np.int64), np.empty(len(numbers))
    for start in range(0, len(numbers), CHUNK):
        block = np.stack([corpus.window(int(number)) for number in numbers[start : start + CHUNK]])
        if block.max() >= corpus.alphabet or block.min() < 0:
            reason = f"{corpus.name} holds the token {int(block.max())}."
            raise DataError(explain("--alphabet", corpus.alphabet, reason, "give the size of its tokenizer."))
        counts += np.bincount(block.reshape(-1), minlength=corpus.alphabet)
        ratios[start : start + len(block)] = _ratios(corpus, block, threads)
        progress(len(block))
    total = corpus.length * np.dtype(corpus.dtype).itemsize
    units = [complexity.mean_ratio(_ratios(corpus, tokens, threads), total) for tokens in (
        complexity.uniform_tokens(corpus.alphabet, corpus.length),
        np.searchsorted(counts.cumsum(), complexity.uniform_tokens(int(counts.sum()), corpus.length), "right"))]
    return Measured(corpus=corpus, ratios=ratios, uniform=units[0], unigram=units[1])


def _ratios(corpus: Corpus, tokens: np.ndarray, threads: int) -> np.ndarray:
    return complexity.gzip_ratio(tokens[:, None], dtype=corpus.dtype, threads=threads)


def places(there: int, wanted: int, seed: int) -> np.ndarray:
    """Numbers int64 (N,), rising, N = min(there, wanted): one at random in each of N equal stretches of 0..there-1."""
    count = min(there, wanted)
    bounds = np.arange(count + 1) * there // count
    words = np.random.Philox(key=seed).random_raw(count) >> np.uint64(32)
    return bounds[:-1] + (words * np.diff(bounds).astype(np.uint64) >> np.uint64(32)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Match:
    """A law with the band of a corpus, and what its rules make of it."""

    law: NcaLaw
    rules: np.ndarray
    """Calibrated ratios float64 (candidates,) of rules of this law."""
    passed: int
    """Of them, inside the band."""


def match(measured: Measured, law: NcaLaw, quantiles: tuple[float, float], candidates: int, seed: int,
          threads: int = 1) -> Match:
    """The law's calibrated band from one quantile of the corpus' calibrated ratios to the other."""
    unit = 10**DECIMALS
    low, high = np.quantile(measured.calibrated, quantiles)
    band = (float(np.floor(low * unit)) / unit, float(np.ceil(high * unit)) / unit)
    law = replace(law, band=band if band[0] < band[1] else (band[0], band[1] + 1 / unit), band_scale="calibrated")
    scores = simulate.score(law, seed, 0, candidates, threads=threads)
    passed = int(complexity.in_band(scores, complexity.official_band(law)).sum())
    return Match(law=law, rules=scores / complexity.uniform_ratio(law), passed=passed)


def _edges(measured: Measured, matched: Match) -> np.ndarray:
    """Of the bins of both histograms, in calibrated ratios: float64, from 0 to beyond 1 and all of them."""
    return np.arange(0, max(measured.calibrated.max(), matched.rules.max(), 1) + STEP, STEP)


def record(measured: Measured, matched: Match, seed: int) -> dict:
    """All figures as plain values; no dates, so the same command makes the same bytes."""
    edges = _edges(measured, matched)
    histograms = {name: np.histogram(values, edges)[0].tolist()
                  for name, values in (("corpus", measured.calibrated), ("rules", matched.rules))}
    corpus = measured.corpus
    readings = {"official": measured.ratios, "calibrated": measured.calibrated,
                "over unigram draws": measured.ratios / measured.unigram}
    return {
        "format": "megatron_nca band", "version": 1, "corpus": corpus.name, "windows": len(measured.ratios),
        "windows there": corpus.windows, "window tokens": corpus.length, "dtype": corpus.dtype,
        "alphabet": corpus.alphabet, "seed": seed, "uniform ratio": measured.uniform,
        "unigram ratio": measured.unigram,
        "quantiles": {name: {str(q): float(np.quantile(values, q)) for q in QUANTILES}
                      for name, values in readings.items()},
        "histogram": {"edges": np.round(edges, 6).tolist(), **histograms},
        "band": list(matched.law.band), "band_scale": "calibrated",
        "official band": list(complexity.official_band(matched.law)),
        "candidates": len(matched.rules), "candidates passed": matched.passed,
    }


def draw(measured: Measured, matched: Match, path: Path) -> None:
    """Both histograms over the calibrated scale as a PNG, whole or not at all, the band shaded. Raises DataError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    edges = _edges(measured, matched)
    for values, name in ((measured.calibrated, "windows of the text"), (matched.rules, "rules of the law, unfiltered")):
        shares = np.full(len(values), 1 / len(values))
        axes.hist(values, bins=edges, weights=shares, histtype="step", label=f"{name} (n = {len(values):,})")
    axes.axvspan(*matched.law.band, alpha=0.15, color="C2", label="band {:g} to {:g}".format(*matched.law.band))
    axes.set(xlabel="gzip ratio over that of uniform tokens of the same alphabet", ylabel="share",
             title=f"{Path(measured.corpus.name).name}: windows of {measured.corpus.length:,} tokens as "
                   f"{measured.corpus.dtype}")
    axes.legend()
    with files.publish(path) as aside:
        figure.savefig(aside, dpi=120, format="png")
