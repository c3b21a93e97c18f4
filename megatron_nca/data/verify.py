"""Whether an indexed dataset is what it says: structure, ranges, hashes, manifest. Its bytes are read once."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_nca import files, ops
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.manifest import Manifest, part, unigram_entropy_nats
from megatron_nca.errors import DataError

CHUNK_TOKENS = 1 << 22
MOST_IDS = 1 << 26
"""More than any vocabulary has: what a manifest says must not decide how much memory is taken."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What all tokens of a .bin say."""

    low: int
    high: int
    histogram: np.ndarray
    """Counts int64 (high + 1,) of the scored tokens; without a manifest, empty."""
    sha256: str


def verify(prefix: Path, vocab_size: int | None = None) -> str:
    """Read all of PREFIX.{bin,idx,json} and return what there is to say of it. Raises DataError for the first thing
    that is wrong.

    Without a manifest, as other tools write datasets, structure and ranges are checked, ids against `vocab_size` if it
    is given, and the report says what was not.
    """
    reader = IndexedReader(prefix)
    documents = len(reader.document_bounds) - 1
    what = (f"{prefix}: {documents:,} documents, {len(reader):,} sequences, {reader.tokens:,} tokens "
            f"of {reader.dtype.name}")
    if not part(prefix, "json").exists():
        return f"{what}, {_without_manifest(reader, vocab_size)}"
    manifest = Manifest.load(prefix)
    _compare(prefix, "documents", documents, manifest.documents)
    _compare(prefix, "tokens", reader.tokens, manifest.tokens)
    _compare(prefix, "dtype", reader.dtype.name, manifest.dtype)
    if manifest.trajectory is not None:
        for which, length in [("longest", reader.lengths.max()), ("shortest", reader.lengths.min())]:
            _compare(prefix, f"tokens of the {which} document", int(length), manifest.trajectory.document_tokens)
    scan = _scan(reader, min(manifest.num_tokens, vocab_size or MOST_IDS, MOST_IDS), manifest)
    entropy = unigram_entropy_nats(scan.histogram)
    if not np.isclose(entropy, manifest.unigram_entropy_nats, rtol=1e-9, atol=1e-12):
        _compare(prefix, "unigram entropy", entropy, manifest.unigram_entropy_nats)
    for ending, digest in (("bin", scan.sha256), ("idx", files.sha256(part(prefix, "idx")))):
        manifest.compare_sha256(prefix, ending, digest)
    return (f"{what}, ids {scan.low}..{scan.high} of {manifest.num_tokens}, kind {manifest.kind}. "
            "Structure, ranges, hashes and manifest agree.")


def _without_manifest(reader: IndexedReader, vocab_size: int | None) -> str:
    scan = _scan(reader, vocab_size, None)
    lengths, empty = np.asarray(reader.lengths), int((reader.lengths == 0).sum())
    bounds = np.diff(reader.document_bounds)
    ids = f"ids {scan.low}..{scan.high}"
    checked = "structure" if vocab_size is None else f"structure and ids below {vocab_size:,}"
    notes = [f"sequences of {lengths.min():,} to {lengths.max():,} tokens, median {np.median(lengths):,.0f}",
             f"sha256 of the .bin {scan.sha256}"]
    if empty:
        notes.append(f"{empty:,} sequences are empty")
    if (bounds != 1).any():
        notes.append(f"documents of {bounds.min():,} to {bounds.max():,} sequences")
    unknown = "its tokenizer and whether bytes have changed cannot be checked"
    if vocab_size is None:
        unknown += ", nor whether ids are too large (--vocab-size)"
    return f"{ids}. Sound: {checked}. It has no manifest: {unknown}.\n  " + "\n  ".join(notes)


def _compare(prefix: Path, what: str, found: object, said: object) -> None:
    if found != said:
        raise DataError(f"{prefix}: {what}: the files hold {found}, but the manifest says {said}. "
                        "Cure: make the dataset again.")


def _scan(reader: IndexedReader, num_tokens: int | None, manifest: Manifest | None) -> Scan:
    """Hash all bytes in a thread, and look at the tokens meanwhile. Raises DataError for an id out of range."""
    low, high, digest = np.iinfo(np.int64).max, -1, hashlib.sha256()
    layout = manifest.trajectory if manifest is not None else None
    histogram = np.zeros(0, dtype=np.int64)
    with ThreadPoolExecutor(1) as thread:
        for block in _blocks(reader, layout.document_tokens if layout is not None else None):
            hashed = thread.submit(digest.update, block.view(np.uint8).reshape(-1))
            low, high = min(low, int(block.min())), max(high, int(block.max()))
            if low < 0 or (num_tokens is not None and high >= num_tokens):
                bounds = "is negative" if num_tokens is None else f"is outside 0..{num_tokens - 1}"
                raise DataError(f"{part(reader.prefix, 'bin')}: holds token {low if low < 0 else high}, which {bounds}."
                                " Cure: make the dataset again.")
            if manifest is not None:
                scored = slice(None) if layout is None else layout.scored_columns
                counts = ops.token_counts(_countable(block), scored, high + 1)
                counts[: len(histogram)] += histogram
                histogram = counts
            hashed.result()
    return Scan(low=low, high=high, histogram=histogram, sha256=digest.hexdigest())


def _blocks(reader: IndexedReader, document_tokens: int | None) -> Iterator[np.ndarray]:
    """All tokens in order: (n, document_tokens) where documents are of one length, else (1, n)."""
    step = CHUNK_TOKENS if document_tokens is None else max(CHUNK_TOKENS // document_tokens, 1) * document_tokens
    for start in range(0, reader.tokens, step):
        yield reader.stream(start, start + step).reshape(-1 if document_tokens else 1, document_tokens or -1)


def _countable(block: np.ndarray) -> np.ndarray:
    """Tokens as the counter takes them; ids are known to be in range."""
    return block if block.dtype in (np.uint16, np.int32) else block.astype(np.int32)
