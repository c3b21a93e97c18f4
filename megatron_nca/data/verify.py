"""Whether an indexed dataset is what it says: structure, ranges, hashes, manifest."""

from pathlib import Path

import numpy as np

from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.manifest import Manifest, part, unigram_entropy_nats
from megatron_nca.errors import DataError

CHUNK_TOKENS = 1 << 22


def verify(prefix: Path) -> str:
    """Read all of PREFIX.{bin,idx,json} and return a sentence about it. Raises DataError for the first thing wrong.

    Without a manifest only the structure can be checked, and the sentence says so.
    """
    reader = IndexedReader(prefix)
    documents = len(reader.document_bounds) - 1
    what = (f"{prefix}: {documents:,} documents, {len(reader):,} sequences, {reader.tokens:,} tokens "
            f"of {reader.dtype.name}")
    if not part(prefix, "json").exists():
        low, high = _scan(reader, reader.tokens)[:2]
        if low < 0:
            raise DataError(f"{part(prefix, 'bin')}: holds the negative token {low}. Cure: make the dataset again.")
        return f"{what}, ids {low}..{high}. Its structure is sound; it has no manifest, so nothing else can be checked."
    manifest = Manifest.load(prefix)
    _compare(prefix, "documents", documents, manifest.documents)
    _compare(prefix, "tokens", reader.tokens, manifest.tokens)
    _compare(prefix, "dtype", reader.dtype.name, manifest.dtype)
    low, high, histogram = _scan(reader, manifest.num_tokens)
    if low < 0 or high >= manifest.num_tokens:
        raise DataError(f"{part(prefix, 'bin')}: holds token {low if low < 0 else high}, outside "
                        f"0..{manifest.num_tokens - 1}. Cure: make the dataset again.")
    if manifest.trajectory is not None:
        for which, length in [("longest", reader.lengths.max()), ("shortest", reader.lengths.min())]:
            _compare(prefix, f"tokens of the {which} document", int(length), manifest.trajectory.document_tokens)
        histogram = _scored_histogram(reader, manifest)
    entropy = unigram_entropy_nats(histogram)
    if not np.isclose(entropy, manifest.unigram_entropy_nats, rtol=1e-9, atol=1e-12):
        _compare(prefix, "unigram entropy", entropy, manifest.unigram_entropy_nats)
    manifest.verify(prefix)
    return (f"{what}, ids {low}..{high} of {manifest.num_tokens}, kind {manifest.kind}. "
            "Structure, ranges, hashes and manifest agree.")


def _compare(prefix: Path, what: str, found: object, said: object) -> None:
    if found != said:
        raise DataError(f"{prefix}: {what}: the files hold {found}, but the manifest says {said}. "
                        "Cure: make the dataset again.")


def _scan(reader: IndexedReader, num_tokens: int) -> tuple[int, int, np.ndarray]:
    """Lowest and highest token, and the counts (num_tokens,) of those in range."""
    low, high, histogram = np.iinfo(np.int64).max, -1, np.zeros(0, dtype=np.int64)
    for start in range(0, reader.tokens, CHUNK_TOKENS):
        chunk = reader.stream(start, start + CHUNK_TOKENS)
        low, high = min(low, int(chunk.min())), max(high, int(chunk.max()))
        if low >= 0 and high < num_tokens:
            counts = np.bincount(chunk, minlength=num_tokens)
            histogram = counts if histogram.size == 0 else histogram + counts
    return low, high, histogram


def _scored_histogram(reader: IndexedReader, manifest: Manifest) -> np.ndarray:
    length = manifest.trajectory.document_tokens
    rows = max(CHUNK_TOKENS // length, 1)
    histogram = np.zeros(manifest.num_tokens, dtype=np.int64)
    for start in range(0, len(reader), rows):
        block = reader.stream(start * length, (start + rows) * length).reshape(-1, length)
        histogram += np.bincount(manifest.trajectory.scored_targets(block).reshape(-1), minlength=manifest.num_tokens)
    return histogram
