"""Several indexed datasets as one, in the memory of a block of tokens."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_nca import files
from megatron_nca.data.indexed import IndexedReader, IndexedWriter
from megatron_nca.data.manifest import Manifest, part
from megatron_nca.errors import DataError, explain

BLOCK_TOKENS = 1 << 20


def merge(prefixes: Sequence[Path], output: Path) -> Manifest:
    """Write the documents of all `prefixes`, in this order, to `output`, whole or not at all; returns its manifest.

    All must be whole datasets of this project, of one kind, vocabulary and layout, corpora of one tokenizer. Raises
    DataError naming what differs, a dataset that is there twice, a file that is not as its manifest says, an output
    that exists, or one that is among the inputs.
    """
    if len(prefixes) < 2:
        raise DataError(explain("PREFIX", len(prefixes), "there is nothing to merge.", "name two datasets or more."))
    manifests = [Manifest.load(prefix) for prefix in prefixes]
    _check_alike(prefixes, manifests)
    if any(part(output, ending).exists() for ending in ("bin", "idx", "json")):
        raise DataError(f"--output-prefix {output}: exists. Cure: choose another, or remove it.")
    first = manifests[0]
    with IndexedWriter(output, first.num_tokens, first.trajectory) as writer:
        for prefix, manifest in zip(prefixes, manifests, strict=True):
            manifest.compare_sha256(prefix, "idx", files.sha256(part(prefix, "idx")))
            manifest.compare_sha256(prefix, "bin", _append(writer, IndexedReader(prefix)))
        merged = [{"documents": each.documents, "bin_sha256": each.files["bin"].sha256, "origin": each.origin}
                  for each in manifests]
        return writer.finish({"kind": first.kind, "vocab_size": first.vocab_size, "origin": {"merged": merged}})


def _check_alike(prefixes: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        if "loss_mask" in manifest.origin:
            raise DataError(f"{prefix}: has a loss mask, which would be lost. Cure: make one dataset of all pairs with "
                            "preprocess_pairs.py.")
    for name in ("kind", "vocab_size", "num_tokens", "dtype", "trajectory", "tokenizer_sha256"):
        for prefix, manifest in zip(prefixes, manifests, strict=True):
            here, there = getattr(manifest, name), getattr(manifests[0], name)
            if here != there:
                raise DataError(f"{prefix}: its {name} is {here}, that of {prefixes[0]} is {there}. "
                                "Cure: merge datasets of one kind, made with one tokenizer.")
    for number, (prefix, manifest) in enumerate(zip(prefixes, manifests, strict=True)):
        for other, earlier in zip(prefixes[:number], manifests, strict=False):
            if manifest.files == earlier.files:
                raise DataError(f"{prefix}: has the very documents of {other}, each of which would stand twice. Cure: "
                                "name one of the two; a blend of a recipe gives datasets shares of their own.")


def _append(writer: IndexedWriter, reader: IndexedReader) -> str:
    """All sequences of a dataset, in blocks that end with one; returns the sha256 of what was read."""
    ends, digest = np.cumsum(reader.lengths, dtype=np.int64), hashlib.sha256()
    first = 0
    while first < len(reader):
        start = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, start + BLOCK_TOKENS, "right")), first + 1)
        tokens, lengths = reader.stream(start, int(ends[last - 1])), reader.lengths[first:last]
        digest.update(np.ascontiguousarray(tokens))
        if writer.trajectory is None:
            writer.add_ragged(tokens, lengths)
        else:
            writer.add_documents(tokens.reshape(len(lengths), -1), kept=True)
        first = last
    return digest.hexdigest()
