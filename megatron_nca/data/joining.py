"""The datasets of a corpus from its encoded stretches: documents chosen, each into its part, all in their order."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_nca.data import selection
from megatron_nca.data.encoders import Encoder
from megatron_nca.data.encoding import DIGESTS, Preprocessing
from megatron_nca.data.indexed import IndexedWriter, optimal_dtype
from megatron_nca.data.manifest import Manifest
from megatron_nca.data.parts import Counts, Parts
from megatron_nca.errors import DataError, explain


@dataclass
class Output:
    """A dataset to be written: of one part and one key."""

    prefix: Path
    part: int
    """0: training, k: the k-th that is held out."""
    key: int
    empty: int = 0
    duplicates: int = 0
    text_bytes: int = 0
    """Of the documents that are written."""


def outputs(settings: Preprocessing, output_prefix: Path) -> list[Output]:
    """The parts in their order, of each all keys. Raises DataError if two have one name."""
    found = []
    for part, name in enumerate(("", *(f"_{name}" for name, _ in settings.hold_out))):
        found += [Output(Path(f"{output_prefix}{name}_{key}_document"), part, number)
                  for number, key in enumerate(settings.json_keys)]
    if len({output.prefix for output in found}) != len(found):
        raise DataError(explain("--hold-out", [name for name, _ in settings.hold_out],
                                f"makes two datasets of one name with the keys {', '.join(settings.json_keys)}.",
                                "choose other names."))
    return found


def origin_of(settings: Preprocessing, common: dict, output: Output) -> dict:
    """What a manifest says of the making, but for the counts."""
    part = settings.hold_out[output.part - 1][0] if output.part else selection.TRAIN
    return {**common, "json_key": settings.json_keys[output.key], "part": part}


def join(settings: Preprocessing, encoder: Encoder, common: dict, parts: Parts, chosen: list[Output],
         numbers: Sequence[int], total: Counts) -> list[Manifest]:
    """Write the datasets of the stretches of these numbers, of which `total` was counted. Raises DataError if one would
    have no text at all."""
    path = settings.inputs[0].path
    if not total.documents:
        raise DataError(f"{path}: is empty. Cure: give a file with one JSON object a line.")
    folders = [parts.find(number) for number in numbers]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(IndexedWriter(output.prefix, encoder.vocab_size)) for output in chosen]
        with _kept(settings, folders, parts) as kept:
            for folder, keep in zip(folders, kept, strict=True):
                _add(settings, folder, keep, list(zip(chosen, writers, strict=True)), encoder)
        for output, writer in zip(chosen, writers, strict=True):
            if not writer.documents:
                raise DataError(_nothing(settings, output, total))
        manifests = []
        for output, writer in zip(chosen, writers, strict=True):
            unknown = 0 if encoder.unknown is None else int(writer.histogram[encoder.unknown])
            said = {"lines": total.documents, "left_out_lines": sum(total.bad.values()),
                    "left_out_by_reason": dict(sorted(total.bad.items())), "empty_documents": output.empty,
                    "duplicate_documents": output.duplicates, "text_bytes": output.text_bytes,
                    "unknown_tokens": unknown}
            fields = {"kind": "corpus", "vocab_size": encoder.vocab_size,
                      "origin": {**origin_of(settings, common, output), **said}}
            manifests.append(writer.finish(fields))
    return manifests


def _nothing(settings: Preprocessing, output: Output, total: Counts) -> str:
    if output.part:
        name, share = settings.hold_out[output.part - 1]
        return explain(f"--hold-out {name}", share, f"leaves that part without a text, of {total.documents} lines.",
                       "give more text or a larger share.")
    key = settings.json_keys[output.key]
    return f"{settings.inputs[0].path}: every text of {key!r} is empty. Cure: name another with --json-keys."


@contextlib.contextmanager
def _kept(settings: Preprocessing, folders: list[Path], parts: Parts) -> Iterator[Iterator[np.ndarray | None]]:
    """Yield of each stretch whether each document is the first with its texts; None: all count as such."""
    if not settings.deduplicate:
        yield iter([None] * len(folders))
        return
    paths = [folder / DIGESTS for folder in folders]
    ends = np.cumsum([path.stat().st_size // selection.DIGEST_BYTES for path in paths])
    with selection.first_ones(paths, parts.folders[0] / ".duplicates.tmp") as first:
        yield (first[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True))


def _add(settings: Preprocessing, folder: Path, first: np.ndarray | None,
         targets: list[tuple[Output, IndexedWriter]], encoder: Encoder) -> None:
    """One stretch to all datasets."""
    keys = range(len(settings.json_keys))
    lengths = [np.fromfile(folder / f"{key}.lengths", np.int32) for key in keys]
    filled = np.any([each > 0 for each in lengths], axis=0)
    again = np.zeros(len(filled), bool) if first is None else filled & ~first
    if settings.hold_out:
        shares = [share for _, share in settings.hold_out]
        part = selection.parts_of(selection.read_digests(folder / DIGESTS), shares)
    else:
        part = np.zeros(len(filled), np.int64)
    for key in keys:
        tokens = np.fromfile(folder / f"{key}.tokens", optimal_dtype(encoder.vocab_size))
        sizes = np.fromfile(folder / f"{key}.bytes", np.int64)
        if len(tokens) != lengths[key].sum(dtype=np.int64) or len(sizes) != len(filled):
            raise DataError(f"{folder}: its files do not fit each other. Cure: remove it and run again.")
        for output, writer in targets:
            if output.key != key:
                continue
            mine = (part == output.part) & ~again
            written = mine & (lengths[key] > 0)
            output.duplicates += int(np.count_nonzero(again & (part == output.part)))
            output.empty += int(np.count_nonzero(mine & ~written))
            output.text_bytes += int(sizes[written].sum())
            all_of_it = len(targets) == len(keys) and not again.any()
            picked = tokens if all_of_it else tokens[np.repeat(written, lengths[key])]
            writer.add_ragged(picked, lengths[key][written])
