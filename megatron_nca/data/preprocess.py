"""Texts and a tokenizer to indexed datasets, as Megatron-LM's tools/preprocess_data.py does.

The input is cut into stretches (`stretches.py`), each encoded into a folder of its own, `PREFIX.parts/NUMBER`, that
appears by rename: a run that was killed goes on with what lacks. At last the parts are put together in their order, so
bytes do not depend on the number of processes.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from megatron_nca import files
from megatron_nca.data import bad_lines, joining, stale, stretches
from megatron_nca.data.encoding import Preprocessing, load_encoder
from megatron_nca.data.joining import Joining, Output
from megatron_nca.data.manifest import Manifest, part
from megatron_nca.data.parts import REJECTED, Counts, Parts, remove_parts_of
from megatron_nca.data.stretches import Stretch
from megatron_nca.data.workers import encode_all
from megatron_nca.errors import DataError, explain


def preprocess(settings: Preprocessing, output_prefix: Path, workers: int = 1,
               log_interval: int = 1000) -> list[Manifest]:
    """Write OUTPUT_PREFIX_<key>_document.{bin,idx,json} of each key, and OUTPUT_PREFIX_<part>_<key>_document of each
    part that is held out; all appear only after the last line was read.

    The output does not depend on `workers`. A dataset that is whole and has the same origin is left as it is, and a
    run that was killed is gone on with. Progress goes to stderr, at most every `log_interval` documents.
    Raises DataError, for a bad line the first one of the input.
    """
    job = _Job(settings, output_prefix, workers, log_interval)
    if present := job.finished():
        return present
    return job.make()


def make_share(settings: Preprocessing, output_prefix: Path, shard: int, shards: int, folders: Sequence[Path] = (),
               workers: int = 1, log_interval: int = 1000) -> str:
    """Encode what lacks of the share of one of `shards` processes, into the first of `folders`
    (OUTPUT_PREFIX.parts). Stretch S of the input is of shard S modulo `shards`. Returns a sentence. Raises DataError.
    """
    job = _Job(settings, output_prefix, workers, log_interval)
    if job.present():
        return f"{output_prefix}: nothing is left to do"
    with job.open_parts(folders, shared=True) as parts:
        made = list(job.encode(parts, shard, shards))
        parts.note_total(job.total_stretches)
    job.progress.end()
    return f"{parts.folders[0]}: shard {shard}/{shards}: {len(made)} of {job.total_stretches} stretches are there"


def datasets_of_share(settings: Preprocessing, output_prefix: Path, shard: int, shards: int, workers: int = 1,
                      log_interval: int = 1000) -> list[Manifest]:
    """The datasets of one share by themselves, as `preprocess` writes those of all. Raises DataError."""
    if settings.deduplicate:
        raise DataError(explain("--deduplicate", True, "compares all documents, and a shard by itself does not know "
                                "the others.", "join the shards with --merge in place of --separate."))
    job = _Job(settings, output_prefix, workers, log_interval)
    job.shard = {"shard": f"{shard}/{shards}"}
    if present := job.finished():
        return present
    return job.make(shard, shards)


def name_of_share(output_prefix: Path, shard: int, shards: int) -> Path:
    """The prefix of the datasets of one share."""
    return Path(f"{output_prefix}_{shard:05d}-of-{shards:05d}")


def merge(settings: Preprocessing, output_prefix: Path, folders: Sequence[Path] = (),
          log_interval: int = 1000) -> list[Manifest]:
    """The datasets from the parts of all shards in `folders`, the same bytes as `preprocess` makes; removes the parts.

    Raises DataError, naming what is missing; then the parts stay.
    """
    job = _Job(settings, output_prefix, 1, log_interval)
    if present := job.finished(folders):
        return present
    with job.open_parts(folders, shared=True, alone=True) as parts:
        counts = parts.all_counts()
        for each in counts:
            job.progress.add(each)
        return job.join(parts, range(len(counts)))


class _Later:
    """What a function returns, found by a thread that ends with the process."""

    def __init__(self, function: Callable[[], dict]) -> None:
        self._future = Future()
        threading.Thread(target=self._find, args=(function,), daemon=True).start()
        self.done, self.result = self._future.done, self._future.result

    def _find(self, function: Callable[[], dict]) -> None:
        try:
            self._future.set_result(function())
        except BaseException as error:  # for who asks
            self._future.set_exception(error)


class _Job:
    """One corpus on its way from the input to its datasets."""

    def __init__(self, settings: Preprocessing, output_prefix: Path, workers: int, log_interval: int) -> None:
        for flag, value in (("--workers", workers), ("--log-interval", log_interval)):
            if value < 1:
                raise DataError(explain(flag, value, "must be at least 1.", "give a positive number."))
        self.settings, self.output_prefix, self.workers = settings, output_prefix, workers
        self.outputs = joining.outputs(settings, output_prefix)
        for output in self.outputs:
            files.check_name(part(output.prefix, "json"))
        self.rejected = bad_lines.rejected_of(output_prefix)
        self.keeps_rejected = settings.on_bad_line == "quarantine"
        if self.keeps_rejected:
            files.refuse_folder(self.rejected)
        self.encoder = load_encoder(settings)
        self.stretch_bytes = stretches.size_of_stretches(settings.inputs)
        self.shard: dict = {}
        """Where it is of one shard alone, what the manifest says of it."""
        self._origin = _Later(settings.origin)
        self.progress, self.total_stretches = Progress(log_interval), 0

    @property
    def origin(self) -> dict:
        """All inputs have been read for it."""
        return {**self._origin.result(), **self.shard}

    def present(self) -> list[Manifest]:
        """The manifests if all datasets are whole and made from the same."""
        if not any(part(output.prefix, "json").exists() for output in self.outputs):
            return []  # without waiting for the inputs' hashes
        found = [_present(output, joining.origin_of(self.settings, self.origin, output)) for output in self.outputs]
        if not all(found):
            return []
        if self.keeps_rejected and _lines(self.rejected) != found[0].origin["left_out_lines"]:
            print(f"{self.rejected}: is not there or holds other lines; all is made again now.", file=sys.stderr)
            return []
        print(f"{', '.join(str(output.prefix) for output in self.outputs)}: already whole, made from the same input "
              "and tokenizer.", file=sys.stderr)
        return found

    def finished(self, folders: Sequence[Path] = ()) -> list[Manifest]:
        """`present`; then parts are removed that a run left which ended after its datasets appeared."""
        found = self.present()
        if found:
            remove_parts_of(self._identity(), folders or self._own_parts())
        return found

    def _identity(self) -> dict:
        return self.settings.identity(self.origin, self.stretch_bytes)

    def _own_parts(self) -> list[Path]:
        return [Path(f"{self.output_prefix}.parts")]

    def open_parts(self, folders: Sequence[Path] = (), shared: bool = False, alone: bool = False) -> Parts:
        return Parts(folders or self._own_parts(), self._identity, shared, alone)

    def make(self, shard: int = 0, shards: int = 1) -> list[Manifest]:
        """The datasets of the share of one of `shards`. Raises DataError."""
        def numbers(parts: Parts) -> Iterator[int]:
            yield from self.encode(parts, shard, shards)
            if shard >= self.total_stretches > 0:
                parts.remove()
                raise DataError(explain("--shard", f"{shard}/{shards}", f"the input has {self.total_stretches} "
                                        "stretches, so this shard would be empty.", "ask for fewer shards."))

        with self.open_parts() as parts:
            return self.join(parts, numbers(parts))

    def encode(self, parts: Parts, shard: int = 0, shards: int = 1) -> Iterator[int]:
        """Encode what lacks of the share of one of `shards`; yields the numbers of its stretches when they are there,
        in order."""
        for number, counts in encode_all(self.settings, self.encoder, self._share(shard, shards), parts,
                                         self.workers):
            self.progress.add(counts)
            if self._origin.done():
                parts.sign()
            yield number
        parts.sign()

    def _share(self, shard: int, shards: int) -> Iterator[Stretch]:
        for stretch in stretches.cut(self.settings.inputs, self.stretch_bytes, self.settings.longest_document):
            self.total_stretches += 1
            if stretch.number % shards == shard:
                yield stretch

    def join(self, parts: Parts, numbers: Iterable[int]) -> list[Manifest]:
        """The datasets of these stretches, each added when it comes; removes the parts."""
        joined = []
        with Joining(self.settings, self.encoder, self.outputs) as joining:
            for number in numbers:
                joined.append(number)
                if not self.settings.deduplicate:
                    joining.add(parts.find(number))
            if self.settings.deduplicate:
                joining.add_first_ones(list(map(parts.find, joined)), parts.folders[0] / ".duplicates.tmp")
            joining.check(self.progress.total)
            self._remove_stale()
            if self.keeps_rejected:  # before the datasets: a run that is killed between is made again
                _keep_rejected(parts, joined, self.rejected)
            manifests = joining.finish(self.origin, self.progress.total)
        parts.remove()
        self.progress.end()
        return manifests

    def _remove_stale(self) -> None:
        """Parts of these keys that are no longer held out, whose documents are now in others, and rejected lines."""
        def names(origin: dict) -> list[str]:
            key, held_out = origin.get("json_key"), origin.get("part")
            return [f"_{held_out}_{key}_document"] if key in self.settings.json_keys else []

        datasets = [output.prefix for output in self.outputs]
        before = [*map(stale.origin_of, datasets), *stale.remove_datasets(self.output_prefix, datasets, names)]
        bad_lines.remove_stale(self.output_prefix, before, self.settings.on_bad_line)


def _present(output: Output, origin: dict) -> Manifest | None:
    """The manifest of a dataset that is whole and was made from the same."""
    prefix = output.prefix
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


def _keep_rejected(parts: Parts, numbers: Sequence[int], path: Path) -> None:
    with files.publish(path) as aside, open(aside, "wb") as file:
        for folder in map(parts.find, numbers):
            file.write((folder / REJECTED).read_bytes())


def _lines(path: Path) -> int:
    """Lines of a file; -1: it is not there."""
    try:
        with open(path, "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Cure: check the path and your rights.") from error


class Progress:
    """Documents a second and megabytes a second on stderr."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.total = Counts()
        self._start = time.monotonic()

    def add(self, counts: Counts) -> None:
        before = self.total.documents
        self.total += counts
        if before // self.interval != self.total.documents // self.interval:
            self._print("")

    def end(self) -> None:
        tokens = self.total.tokens
        rest = f", {tokens:,} tokens, {self.total.text_bytes / max(tokens, 1):.2f} bytes of text a token. Done."
        self._print(f"{rest} {bad_lines.summary(self.total)}".rstrip())

    def _print(self, rest: str) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        print(f"Processed {self.total.documents:,} documents ({self.total.documents / seconds:,.0f} docs/s, "
              f"{self.total.text_bytes / 1e6 / seconds:.2f} MB/s){rest}", file=sys.stderr, flush=True)
