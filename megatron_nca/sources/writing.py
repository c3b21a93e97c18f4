"""A source's sequences to PREFIX.{bin,idx,json}, and what is there already. The same for every source."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from megatron_nca import files
from megatron_nca.config.law import NcaLaw
from megatron_nca.config.schema import to_dict
from megatron_nca.data.indexed import IndexedWriter, optimal_dtype
from megatron_nca.data.manifest import Manifest, part
from megatron_nca.errors import DataError
from megatron_nca.sources import Source

INDEX_BYTES = 4 + 8 + 8
"""Of one document in the .idx."""


def generate(source: Source, prefix: Path, progress: Callable[[int], None] = lambda sequences: None) -> Manifest:
    """Write the dataset PREFIX.{bin,idx,json}; `progress` is told the number of each block's sequences.

    Raises DataError if the disk is full or rules are too rare; then nothing stands under the final names.
    """
    check_space(source, prefix)
    with IndexedWriter(prefix, source.num_tokens, source.trajectory) as writer:
        for sequences in _written_aside(source.blocks(), writer.add_documents):
            progress(sequences)
        return writer.finish({"kind": source.kind, "vocab_size": source.vocab_size, "origin": source.origin()})


def _written_aside(blocks: Iterable[np.ndarray], write: Callable[[np.ndarray], None]) -> Iterator[int]:
    """Write each block in a thread of its own while the next is made; yields the length of each, and raises as `write`.

    Hashing, counting and writing a block are a tenth of the work of making it, and need one thread only.
    """
    with ThreadPoolExecutor(max_workers=1) as aside:
        under_way = None
        for tokens in blocks:
            if under_way is not None:
                under_way.result()
            under_way = aside.submit(write, tokens) if len(tokens) else None
            yield len(tokens)
        if under_way is not None:
            under_way.result()


def is_torn(prefix: Path) -> str | None:
    """Why what is at PREFIX is no whole dataset, though some of it is there: killed while publishing, or damaged."""
    if not any(part(prefix, ending).exists() for ending in ("bin", "idx", "json")):
        return None
    try:
        Manifest.load(prefix)
    except DataError as error:
        return str(error)
    return None


def existing(prefix: Path, identity: dict) -> Manifest | None:
    """The manifest of PREFIX if a source of this identity made it, None if there is nothing.

    Raises DataError if something else is there: a dataset of other settings, a damaged one, or files without manifest.
    """
    if not part(prefix, "json").exists():
        if part(prefix, "bin").exists() and part(prefix, "idx").exists():
            raise DataError(
                f"{prefix}.bin: files without a manifest are there, and they are not overwritten. "
                f"Cure: choose another output, or remove {prefix}.bin and {prefix}.idx."
            )
        return None
    manifest = Manifest.load(prefix)
    wanted, there = _flat(to_dict(identity)), _flat(manifest.origin)
    different = [name for name, value in wanted.items() if there.get(name, "absent") != value]
    if different:
        listed = ", ".join(f"{name} = {there.get(name, 'absent')!r} (asked: {wanted[name]!r})" for name in different)
        raise DataError(
            f"{prefix}: a whole dataset made with other settings is there: {listed}. "
            f"Cure: choose another output, or remove {prefix}.bin, .idx and .json."
        )
    return manifest


def _flat(origin: dict) -> dict:
    """Settings under dotted names. One that the law did not have when a dataset was made had its default's meaning."""
    law = origin.get("law")
    if law is not None:
        defaults = {field.name: to_dict(field.default) for field in dataclasses.fields(NcaLaw)}
        law = {**defaults, **law}
    nested = {name: value for name, value in {**origin, "law": law}.items() if isinstance(value, dict)}
    rest = {name: value for name, value in origin.items() if name not in nested}
    return {**rest, **{f"{name}.{key}": value for name, values in nested.items() for key, value in values.items()}}


def size_bytes(source: Source) -> int:
    """Bytes of .bin and .idx."""
    itemsize = optimal_dtype(source.num_tokens).itemsize
    return source.num_sequences * (source.trajectory.document_tokens * itemsize + INDEX_BYTES) + 64


def check_space(source: Source, prefix: Path) -> None:
    """Raises DataError if the disk of `prefix` has too little free space."""
    cure = "free some space, choose another folder or fewer sequences."
    files.check_free(Path(prefix).absolute().parent, size_bytes(source), "sequences", source.num_sequences, cure)
