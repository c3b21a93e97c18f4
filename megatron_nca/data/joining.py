"""The datasets of a corpus from its encoded stretches: documents chosen, each into its part, all in their order."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_nca.data import bad_lines, selection
from megatron_nca.data.encoders import Encoder
from megatron_nca.data.encoding import DIGESTS, Preprocessing
from megatron_nca.data.indexed import IndexedWriter, optimal_dtype
from megatron_nca.data.manifest import Manifest
from megatron_nca.data.parts import Counts
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


class Joining:
    """The datasets of a corpus while they are put together, from its stretches in their order.

        with Joining(settings, encoder, outputs) as joining:
            joining.add(folder)                    # of each stretch
            manifests = joining.finish(origin, total)

    Raises DataError; nothing appears before `finish`.
    """

    def __init__(self, settings: Preprocessing, encoder: Encoder, chosen: list[Output]) -> None:
        self._settings, self._encoder, self._outputs = settings, encoder, chosen
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Joining":
        self._writers = [self._stack.enter_context(IndexedWriter(output.prefix, self._encoder.vocab_size))
                         for output in self._outputs]
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)

    def add(self, folder: Path, first: np.ndarray | None = None) -> None:
        """One more stretch; `first`: whether each document is the first with its texts, None: all count as such."""
        _add(self._settings, folder, first, list(zip(self._outputs, self._writers, strict=True)), self._encoder)

    def add_first_ones(self, folders: list[Path], scratch: Path) -> None:
        """All stretches; of documents with equal texts the first."""
        paths = [folder / DIGESTS for folder in folders]
        ends = np.cumsum([path.stat().st_size // selection.DIGEST_BYTES for path in paths])
        with selection.first_ones(paths, scratch) as first:
            for folder, start, end in zip(folders, [0, *ends[:-1]], ends, strict=True):
                self.add(folder, first[start:end])

    def check(self, total: Counts) -> None:
        """Raise DataError if one would have no text at all; `total` was counted of all stretches."""
        if not total.documents:
            path = self._settings.inputs[0].path
            raise DataError(f"{path}: is empty. Cure: give a file with one JSON object a line.")
        bad_lines.refuse_all_bad(self._settings.inputs[0].path, total)
        for output, writer in zip(self._outputs, self._writers, strict=True):
            if not writer.documents:
                raise DataError(_nothing(self._settings, output, total))

    def finish(self, common: dict, total: Counts) -> list[Manifest]:
        """Publish them. Raises DataError as `check` does."""
        self.check(total)
        return [writer.finish({"kind": "corpus", "vocab_size": self._encoder.vocab_size,
                               "origin": self._origin(common, total, output, writer)})
                for output, writer in zip(self._outputs, self._writers, strict=True)]

    def _origin(self, common: dict, total: Counts, output: Output, writer: IndexedWriter) -> dict:
        unknown = 0 if self._encoder.unknown is None else int(writer.histogram[self._encoder.unknown])
        return {**origin_of(self._settings, common, output),
                **total.left_out(), "empty_documents": output.empty, "duplicate_documents": output.duplicates,
                "text_bytes": output.text_bytes, "unknown_tokens": unknown}


def _nothing(settings: Preprocessing, output: Output, total: Counts) -> str:
    path, bad = settings.inputs[0].path, sum(total.bad.values())
    if output.part:
        name, share = settings.hold_out[output.part - 1]
        return explain(f"--hold-out {name}", share, f"leaves that part without a text, of {total.documents} lines.",
                       "give more text or a larger share.")
    key = settings.json_keys[output.key]
    rest = f", and {bad:,} of {total.documents:,} lines were bad ({total.reasons})" if bad else ""
    return f"{path}: every text of {key!r} is empty{rest}. Cure: name another with --json-keys."


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
