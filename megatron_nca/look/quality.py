"""Figures of a dataset's quality, and their report."""

import hashlib
from dataclasses import dataclass

import numpy as np

from megatron_nca.data.manifest import unigram_entropy_nats
from megatron_nca.look.opened import TEXT_WINDOW, Opened
from megatron_nca.nca import complexity


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Measured over the first sequences of a dataset, on the tokens that training reads."""

    measured: int
    """Sequences."""
    duplicates: int
    """Sequences equal to an earlier one, by hash of their tokens."""
    entropy_nats: float
    """Of all tokens' frequencies, delimiters included."""
    distinct_ids: int
    distinct_ids_a_sequence: float
    """Mean."""
    copy_accuracy: float | None
    """Share of patch tokens, from the second frame on, equal to those one frame before; None without frames."""
    ratios: np.ndarray
    """Official gzip ratios float64 (measured,): of automata the patch tokens of the document's first `score_frames`
    frames in the law's bytes, of others all tokens as int32."""
    in_band: float | None
    """Share of `ratios` inside the band; below 1 even for sound data, since rules were scored on other rollouts; None
    where there is no band, a document has fewer frames than the filter scores, or the filter scores delimiters too."""


def measure(dataset: Opened, limit: int) -> Quality:
    """Figures over the first `limit` sequences. Raises DataError."""
    index = np.arange(min(limit, len(dataset)))
    tokens = dataset.sequences(index)
    hashes = {hashlib.sha256(np.ascontiguousarray(row)).digest() for row in tokens}
    in_band = accuracy = None
    if (law := dataset.law) is None:
        ratios = complexity.gzip_ratio(tokens[:, None])
    else:
        accuracy = _copy_accuracy(dataset, tokens)
        frames = dataset.patches(dataset.documents(index))[:, : law.score_frames]
        ratios = complexity.gzip_ratio(frames, dtype=law.score_dtype)
        if law.num_frames >= law.score_frames and not law.score_delimiters:
            low, high = complexity.official_band(law)
            in_band = float(((low < ratios) & (ratios < high)).mean())
    counts = np.bincount(tokens.reshape(-1).astype(np.int64))
    return Quality(
        measured=len(tokens),
        duplicates=len(tokens) - len(hashes),
        entropy_nats=unigram_entropy_nats(counts),
        distinct_ids=int((counts > 0).sum()),
        distinct_ids_a_sequence=float(np.mean([len(np.unique(row)) for row in tokens])),
        copy_accuracy=accuracy,
        ratios=ratios,
        in_band=in_band,
    )


def _copy_accuracy(dataset: Opened, tokens: np.ndarray) -> float | None:
    """All patches that training reads, those of a last frame that is cut too."""
    width = dataset.law.frame_tokens
    within = np.arange(width, tokens.shape[1]) % width
    equal = (tokens[:, width:] == tokens[:, :-width])[:, (within != 0) & (within != width - 1)]
    return float(equal.mean()) if equal.size else None


def lines(dataset: Opened, quality: Quality) -> list[tuple[str, str]]:
    """(figure, value) for a reader, in order."""
    manifest, origin = dataset.manifest, dataset.manifest.origin
    share = quality.duplicates / quality.measured
    made_by = f"{origin.get('generator', manifest.kind)}, seed {origin.get('seed', '-')}"
    if merged := origin.get("merged"):
        several = " of several laws" if manifest.kind == "nca" and dataset.law is None else ""
        made_by = f"merging {len(merged)} datasets{several}"
    held, measured = "sequences", "sequences"
    if dataset.trajectory is None:  # a stream of text, which is read on over the ends of its documents
        held, measured = "documents", f"stretches of {TEXT_WINDOW:,} tokens"
    result = [
        ("what", dataset.description),
        (held, f"{manifest.documents:,}, {manifest.tokens:,} tokens of {manifest.dtype}"),
        ("made by", made_by),
    ]
    examined, accepted = origin.get("candidates_examined"), origin.get("candidates_accepted")
    if examined and accepted is not None:
        result.append(("acceptance", f"{accepted:,} of {examined:,} candidates, {accepted / examined:.1%}"))
    if rules := origin.get("rules"):
        result.append(("distinct rules", f"{rules:,}"))
    result += [
        ("measured over", f"the first {quality.measured:,} {measured}"),
        ("distinct sequences", f"{quality.measured - quality.duplicates:,}"),
        ("duplicates", f"{quality.duplicates:,} ({share:.2%})"),
        ("entropy of tokens", f"{quality.entropy_nats:.4f} nats"),
        ("entropy of scored targets", f"{manifest.unigram_entropy_nats:.4f} nats (manifest, all sequences)"),
        ("distinct ids", f"{quality.distinct_ids:,} of {manifest.num_tokens:,}"),
        ("distinct ids a sequence", f"{quality.distinct_ids_a_sequence:.1f}"),
    ]
    if quality.copy_accuracy is not None:
        result.append(("copying the previous frame", f"{quality.copy_accuracy:.2%} of patch tokens right"))
    low, middle, high = np.quantile(quality.ratios, [0.05, 0.5, 0.95])
    result.append(("gzip ratio", f"median {middle:.3f}, 5 % {low:.3f}, 95 % {high:.3f}"))
    if quality.in_band is not None:
        band = "inside the band" if manifest.kind == "nca" else "inside the base's band"
        result.append((band, f"{quality.in_band:.1%} of these rollouts (rules were scored on others)"))
    return result


def markdown(sections: list[tuple[str, list[tuple[str, str]]]], histogram: str) -> str:
    """The report: a table for each dataset, and the picture `histogram` beside it."""
    parts = ["# What the datasets look like"]
    for name, figures in sections:
        rows = "\n".join(f"| {figure} | {value} |" for figure, value in figures)
        parts.append(f"## {name}\n\n| figure | value |\n|---|---|\n{rows}")
    return "\n\n".join([*parts, f"![gzip ratios]({histogram})"]) + "\n"
