"""Texts and a tokenizer to indexed datasets, as Megatron-LM's tools/preprocess_data.py does.

The input is cut into stretches (`stretches.py`), each encoded into a folder of its own, `PREFIX.parts/NUMBER`, that
appears by rename: a run that was killed goes on with what lacks. At last the parts are put together in their order, so
bytes do not depend on the number of processes.
"""

import contextlib
import sys
import time
from pathlib import Path

import numpy as np

from megatron_nca import files
from megatron_nca.data import stretches
from megatron_nca.data.encoders import Encoder
from megatron_nca.data.encoding import REJECTED, Counts, Parts, Preprocessing, load_encoder
from megatron_nca.data.indexed import IndexedWriter, optimal_dtype
from megatron_nca.data.manifest import Manifest, part
from megatron_nca.data.workers import encode_all
from megatron_nca.errors import DataError, explain


def preprocess(settings: Preprocessing, output_prefix: Path, workers: int = 1,
               log_interval: int = 1000) -> list[Manifest]:
    """Write OUTPUT_PREFIX_<key>_document.{bin,idx,json} of each key; all appear only after the last line was read.

    The output does not depend on `workers`. A dataset that is whole and has the same origin is left as it is, and a
    run that was killed is gone on with. Progress goes to stderr, at most every `log_interval` documents.
    Raises DataError, for a bad line the first one of the input.
    """
    for flag, value in (("--workers", workers), ("--log-interval", log_interval)):
        if value < 1:
            raise DataError(explain(flag, value, "must be at least 1.", "give a positive number."))
    encoder = load_encoder(settings)
    origin = settings.origin()
    prefixes = [Path(f"{output_prefix}_{key}_document") for key in settings.json_keys]
    present = [_present(prefix, _origin(origin, key)) for prefix, key in zip(prefixes, settings.json_keys, strict=True)]
    if all(present):
        print(f"{', '.join(map(str, prefixes))}: already whole, made from the same input and tokenizer.",
              file=sys.stderr)
        return present
    size = stretches.size_of_stretches(settings.inputs)
    identity = {**origin, "json_keys": settings.json_keys, "stretch": size, "version": 1}
    parts = Parts(Path(f"{output_prefix}.parts"), identity)
    progress = Progress(log_interval)
    with contextlib.closing(encode_all(settings, encoder, size, parts, workers)) as done:
        for counts in done:
            progress.add(counts)
    manifests = _put_together(settings, encoder, origin, parts, prefixes, progress)
    _keep_rejected(settings, parts, progress.stretches, Path(f"{output_prefix}_rejected.jsonl"))
    files.remove(parts.path)
    progress.end()
    return manifests


def _origin(common: dict, key: str) -> dict:
    return {**common, "json_key": key}


def _present(prefix: Path, origin: dict) -> Manifest | None:
    """The manifest at `prefix` if that dataset is whole and was made from the same."""
    if not part(prefix, "json").exists():
        return None
    try:
        manifest = Manifest.load(prefix)
    except DataError as error:
        print(f"{error} It is made again now.", file=sys.stderr)
        return None
    if {**manifest.origin, **origin} == manifest.origin:
        return manifest
    print(f"{prefix}: was made from another input, tokenizer or setting; it is replaced.", file=sys.stderr)
    return None


def _put_together(settings: Preprocessing, encoder: Encoder, origin: dict, parts: Parts, prefixes: list[Path],
                  done: "Progress") -> list[Manifest]:
    """The datasets from their parts. Raises DataError if a key has no text at all."""
    dtype, total, manifests = optimal_dtype(encoder.vocab_size), done.total, []
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(IndexedWriter(prefix, encoder.vocab_size)) for prefix in prefixes]
        for key, writer in enumerate(writers):
            for folder in map(parts.folder, range(done.stretches)):
                tokens = np.fromfile(folder / f"{key}.tokens", dtype)
                writer.add_ragged(tokens, np.fromfile(folder / f"{key}.lengths", np.int32))
            if not total.documents:
                raise DataError(f"{settings.inputs[0].path}: is empty. Cure: give a file with one JSON object a line.")
            if not writer.documents:
                raise DataError(f"{settings.inputs[0].path}: every text of {settings.json_keys[key]!r} is empty. "
                                "Cure: name another with --json-keys.")
        for key, writer in enumerate(writers):
            said = {"empty_documents": total.empty[key], "left_out_lines": total.bad,
                    "unknown_tokens": total.unknown[key]}
            fields = {"kind": "corpus", "vocab_size": encoder.vocab_size,
                      "origin": {**_origin(origin, settings.json_keys[key]), **said}}
            manifests.append(writer.finish(fields))
    return manifests


def _keep_rejected(settings: Preprocessing, parts: Parts, number: int, path: Path) -> None:
    if settings.on_bad_line != "quarantine":
        return
    with files.publish(path) as aside, open(aside, "wb") as file:
        for folder in map(parts.folder, range(number)):
            file.write((folder / REJECTED).read_bytes())


class Progress:
    """Documents a second and megabytes a second on stderr."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.total, self.stretches = Counts(), 0
        self._start = time.monotonic()

    def add(self, counts: Counts) -> None:
        before = self.total.documents
        self.total += counts
        self.stretches += 1
        if before // self.interval != self.total.documents // self.interval:
            self._print("")

    def end(self) -> None:
        tokens = sum(self.total.tokens)
        rest = f", {tokens:,} tokens, {self.total.text_bytes / max(tokens, 1):.2f} bytes of text a token. Done."
        if self.total.bad:
            rest += f" {self.total.bad:,} bad lines were left out, the first: {self.total.first_bad}"
        self._print(rest)

    def _print(self, rest: str) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        print(f"Processed {self.total.documents:,} documents ({self.total.documents / seconds:,.0f} docs/s, "
              f"{self.total.text_bytes / 1e6 / seconds:.2f} MB/s){rest}", file=sys.stderr, flush=True)
