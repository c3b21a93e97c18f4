"""A dataset made on the node that trains on it: where it stands there, and sequences in the order that training reads.

FOLDER/nca-DIGEST.{bin,idx,json}, where the digest is of all settings that decide the bytes. So trainings of equal
settings share a dataset, and others never meet it.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_nca import files
from megatron_nca.config.dataset import Dataset
from megatron_nca.data.manifest import Manifest, part
from megatron_nca.data.placed import PlacedWriter, remove_unfinished
from megatron_nca.sources import writing
from megatron_nca.sources.nca import NcaSource, identity

BLOCK_TOKENS = 2**18
"""Tokens that are made between two reports: some hundredths of a second of work."""
LOCK_SECONDS = 0.2
"""Between two looks at whether another process has finished."""


@dataclass(frozen=True)
class Staged:
    """The training or the validation part of a dataset on this node."""

    prefix: Path
    identity: dict
    """The settings that decide every byte."""
    digest: str

    @property
    def lock(self) -> Path:
        """Held by the one process that makes it."""
        return self.prefix.with_name(f".{self.prefix.name}.lock")


@dataclass(frozen=True)
class Progress:
    """How far one part is; `state` is waiting (another process makes it), searching, making or whole."""

    state: str
    made: int = 0
    """Sequences that can be read."""
    candidates: int = 0
    sha256: str | None = None
    """Of the .bin, when whole."""


def staged(dataset: Dataset, part_name: str, sequences: int) -> Staged:
    """Where this node keeps `part_name` (train or validation) of a dataset. Raises ConfigError."""
    values = identity(dataset.law, sequences, dataset.seed if part_name == "train" else dataset.validation_seed)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    return Staged(dataset.on_node.path() / f"nca-{digest}", values, digest)


def stage(
    source: NcaSource,
    place: Staged,
    order: np.ndarray,
    report: Callable[[Progress], None],
    before_publishing: Callable[[], None] = lambda: None,
) -> Manifest:
    """Make the dataset at `place`, sequences in `order` (N,), unless it is whole there, or waits for who makes it.

    Its bytes depend on neither. What a killed process left is made again. `before_publishing` may wait for those who
    open the unfinished files. Raises DataError, then nothing stands under the final names.
    """
    manifest = _whole(place)
    if manifest is None:
        with _locked(place, report):
            manifest = _whole(place) or _make(source, place, order, report, before_publishing)
    report(Progress("whole", manifest.documents, sha256=manifest.files["bin"].sha256))
    return manifest


def _whole(place: Staged) -> Manifest | None:
    """What is there if it is whole. Raises DataError if it is whole and of other settings."""
    return None if writing.is_torn(place.prefix) else writing.existing(place.prefix, place.identity)


@contextlib.contextmanager
def _locked(place: Staged, report: Callable[[Progress], None]) -> Iterator[None]:
    while (lock := files.try_lock(place.lock)) is None:
        report(Progress("waiting"))
        time.sleep(LOCK_SECONDS)
    try:
        yield
    finally:
        os.close(lock)


def _make(
    source: NcaSource,
    place: Staged,
    order: np.ndarray,
    report: Callable[[Progress], None],
    before_publishing: Callable[[], None],
) -> Manifest:
    remove_unfinished(place.prefix)
    for ending in ("bin", "idx", "json"):
        files.remove(part(place.prefix, ending))  # torn, or _whole would have found it
    writing.check_space(source, place.prefix)
    size = max(1, BLOCK_TOKENS // source.trajectory.document_tokens)
    with PlacedWriter(place.prefix, source.num_tokens, source.trajectory, source.num_sequences) as writer:
        for candidates in source.search():
            report(Progress("searching", candidates=candidates))
        for first in range(0, len(order), size):
            index = order[first : first + size]
            writer.place(index, source.sequences(index))
            report(Progress("making", writer.documents, source.examined))
        before_publishing()
        return writer.finish({"kind": source.kind, "vocab_size": source.vocab_size, "origin": source.origin()})
