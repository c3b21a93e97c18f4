"""A JSONL corpus and a tokenizer to indexed datasets, as Megatron-LM's tools/preprocess_data.py does."""

import contextlib
import io
import multiprocessing
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from megatron_nca import files
from megatron_nca.data import tokenizer
from megatron_nca.data.corpus import parse_line, read_lines
from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.data.manifest import Manifest, part
from megatron_nca.errors import DataError, explain

BATCH_BYTES = 1 << 19
"""Lines of about this many bytes go to a worker at once."""
TOKENIZER_TYPE = "SentencePieceTokenizer"
BATCHES_AHEAD = 3
"""Batches handed to each worker before the result of the first is taken."""


@dataclass(frozen=True)
class Batch:
    """A stretch of the input of whole lines; a worker reads it itself."""

    first_line: int
    offset: int
    size: int


@dataclass(frozen=True)
class Encoded:
    """A batch as tokens."""

    documents: int
    read_bytes: int
    columns: list[list[np.ndarray]]
    """Per key, the tokens of each document that is not empty."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What decides the output, and so what the origin in the manifest records."""

    input: Path
    tokenizer_model: Path
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = True

    def origin(self, key: str) -> dict:
        """As in the manifest, without what is only known afterwards. Raises DataError for a missing file."""
        for path in (self.input, self.tokenizer_model):
            if not path.is_file():
                raise DataError(f"{path}: is missing. Cure: check --input and --tokenizer-model.")
        source, model = self.input, self.tokenizer_model
        return {"inputs": [{"name": source.name, "bytes": source.stat().st_size, "sha256": files.sha256(source)}],
                "json_key": key, "append_eod": self.append_eod,
                "tokenizer": {"type": TOKENIZER_TYPE, "name": model.name, "sha256": files.sha256(model)}}


class _Encoder:
    """Lines to tokens; each worker builds its own."""

    def __init__(self, settings: Preprocessing) -> None:
        self.settings = settings
        self.processor = tokenizer.load(settings.tokenizer_model)
        self.eod = [self.processor.eos_id()] if settings.append_eod else []
        if self.eod == [-1]:
            raise DataError(explain("--append-eod", True, f"{settings.tokenizer_model} has no end-of-sentence piece.",
                                    "train the tokenizer with one, or leave the flag out."))

    def encode(self, batch: Batch) -> Encoded:
        source, keys = self.settings.input, list(self.settings.json_keys)
        lines = list(io.BytesIO(_read(source, batch)))  # not splitlines(), which also splits at a lone \r
        texts = [parse_line(source, number, line, keys) for number, line in enumerate(lines, batch.first_line)]
        columns = [[np.array(self.processor.encode(text) + self.eod, dtype=np.int32) for text in column if text]
                   for column in zip(*texts, strict=True)]
        return Encoded(len(lines), batch.size, columns)


def _work(settings: Preprocessing, connection: Connection) -> None:
    """A worker process: batches in, Encoded or a user's error out, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    encoder = _Encoder(settings)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            batch = connection.recv()
            try:
                connection.send(encoder.encode(batch))
            except DataError as error:
                connection.send(error)


def preprocess(settings: Preprocessing, output_prefix: Path, workers: int = 1,
               log_interval: int = 1000) -> list[Manifest]:
    """Write OUTPUT_PREFIX_<key>_document.{bin,idx,json} of each key; all appear only after the last line was read.

    The output does not depend on `workers`. A dataset that is whole and has the same origin is left as it is.
    Progress goes to stderr every `log_interval` documents. Raises DataError naming file and line of bad input.
    """
    if workers < 1:
        raise DataError(explain("--workers", workers, "must be at least 1.", "use the number of free cores."))
    if log_interval < 1:
        raise DataError(explain("--log-interval", log_interval, "must be at least 1.", "1000 is usual."))
    if len(set(settings.json_keys)) != len(settings.json_keys):
        raise DataError(explain("--json-keys", list(settings.json_keys), "names a key twice.", "name each once."))
    origins = {key: settings.origin(key) for key in settings.json_keys}
    prefixes = {key: Path(f"{output_prefix}_{key}_document") for key in settings.json_keys}
    present = [_present(prefixes[key], origins[key]) for key in settings.json_keys]
    if all(present):
        names = ", ".join(map(str, prefixes.values()))
        print(f"{names}: already whole, made from the same input and tokenizer.", file=sys.stderr)
        return present
    encoder = _Encoder(settings)  # in this process first, so that a bad tokenizer is told at once
    vocab_size = encoder.processor.get_piece_size()
    progress = _Progress(log_interval)
    with contextlib.ExitStack() as stack:
        writers = {key: stack.enter_context(IndexedWriter(prefixes[key], vocab_size)) for key in settings.json_keys}
        batches = _batches(settings.input)
        results = map(encoder.encode, batches) if workers == 1 else _encode_in_order(settings, batches, workers)
        for encoded in results:
            for key, column in zip(settings.json_keys, encoded.columns, strict=True):
                for tokens in column:
                    writers[key].add_document(tokens)
            progress.add(encoded)
        for key, writer in writers.items():
            if not writer.documents:
                raise DataError(f"{settings.input}: every text of {key!r} is empty. "
                                "Cure: name another with --json-keys.")
        manifests = []
        for key, writer in writers.items():
            origin = {**origins[key], "empty_documents": progress.documents - writer.documents}
            manifests.append(writer.finish({"kind": "corpus", "vocab_size": vocab_size, "origin": origin}))
    progress.end()
    return manifests


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


def _batches(path: Path) -> Iterator[Batch]:
    first, offset, size = 1, 0, 0
    for number, line in read_lines(path):
        size += len(line)
        if size >= BATCH_BYTES:
            yield Batch(first, offset, size)
            first, offset, size = number + 1, offset + size, 0
    if size:
        yield Batch(first, offset, size)


def _read(path: Path, batch: Batch) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(batch.offset)
            return file.read(batch.size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Cure: check the path.") from error


def _encode_in_order(settings: Preprocessing, batches: Iterator[Batch], workers: int) -> Iterator[Encoded]:
    """Encode in worker processes, each in its turn, so that results come in the order of the input."""
    # A pipe a worker, because a pool does not end when one of its workers is killed (multiprocessing.Pool waits for
    # ever; so did ProcessPoolExecutor of Python 3.11 here), while a pipe whose other end is gone says so at once.
    context, started = multiprocessing.get_context("spawn"), []
    waiting: deque[Connection] = deque()
    try:
        for _ in range(workers):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(settings, there), daemon=True)
            process.start()
            there.close()
            started.append((process, here))
        for turn, batch in enumerate(batches):
            waiting.append(started[turn % workers][1])
            waiting[-1].send(batch)
            if len(waiting) >= BATCHES_AHEAD * workers:
                yield _receive(waiting.popleft())
        while waiting:
            yield _receive(waiting.popleft())
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise DataError(f"{settings.input}: a worker process died, perhaps for want of memory. "
                        f"Cure: fewer than --workers {workers}, or more memory.") from error
    finally:
        for process, connection in started:
            connection.close()
            process.terminate()
        for process, _ in started:
            process.join()


def _receive(connection: Connection) -> Encoded:
    result = connection.recv()
    if isinstance(result, DataError):
        raise result
    return result


class _Progress:
    """Documents a second and megabytes a second on stderr."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.documents = self.bytes = self.tokens = 0
        self._start = time.monotonic()

    def add(self, encoded: Encoded) -> None:
        before = self.documents
        self.documents += encoded.documents
        self.bytes += encoded.read_bytes
        self.tokens += sum(len(tokens) for column in encoded.columns for tokens in column)
        if before // self.interval != self.documents // self.interval:
            self._print("")

    def end(self) -> None:
        self._print(f", {self.tokens:,} tokens, {self.bytes / max(self.tokens, 1):.2f} bytes of input a token. Done.")

    def _print(self, rest: str) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        print(f"Processed {self.documents:,} documents ({self.documents / seconds:,.0f} docs/s, "
              f"{self.bytes / 1e6 / seconds:.2f} MB/s){rest}", file=sys.stderr, flush=True)
