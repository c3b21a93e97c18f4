"""Processes that encode stretches of a corpus, and the order in which they are done."""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from megatron_nca import files
from megatron_nca.data.encoders import Encoder
from megatron_nca.data.encoding import Preprocessing, encode_stretch, load_encoder, write_stretch
from megatron_nca.data.parts import Counts, Parts
from megatron_nca.data.stretches import Stretch
from megatron_nca.errors import DataError

AHEAD = 2
"""Stretches that a process holds: one that it encodes, and one that goes to the disk or that it begins with next."""


def encode_all(settings: Preprocessing, encoder: Encoder, cuts: Iterable[Stretch], parts: Parts,
               workers: int) -> Iterator[tuple[int, Counts]]:
    """Encode those stretches that `parts` lacks; yields number and counts of every one in their order.

    Raises DataError: the one of the earliest stretch that has one, or that a process died.
    """
    if workers == 1:
        for stretch in cuts:
            found = parts.counts(stretch.number)
            yield stretch.number, found or encode_stretch(settings, encoder, stretch, parts.new(stretch.number))
        return
    crew = _Crew(settings, parts, workers)
    try:
        yield from crew.work(cuts)
    finally:
        crew.end()


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    held: int = 0
    """Stretches that it has and has not answered for."""


class _Crew:
    """Worker processes, each with a pipe of its own: one whose other end is gone says so at once, while a pool waits
    for ever for a worker that was killed."""

    def __init__(self, settings: Preprocessing, parts: Parts, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._settings, self._parts, self._workers = settings, parts, []
        self._results: dict[int, Counts | DataError] = {}
        for _ in range(workers):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(settings, there), daemon=True)
            process.start()
            there.close()
            self._workers.append(_Worker(process, here))

    def work(self, cuts: Iterable[Stretch]) -> Iterator[tuple[int, Counts]]:
        due, failed = deque(), False
        for stretch in cuts:
            due.append(stretch.number)
            found = self._parts.counts(stretch.number)
            if found is not None:
                self._results[stretch.number] = found
            else:
                self._hand_out(stretch)
            failed = failed or any(isinstance(result, DataError) for result in self._results.values())
            if failed:  # the stretches before it are at work still, and may hold an earlier one
                break
            while due and due[0] in self._results:
                yield self._take(due.popleft())
        while any(worker.held for worker in self._workers):
            self._wait()
        while due and due[0] in self._results:
            yield self._take(due.popleft())

    def _take(self, number: int) -> tuple[int, Counts]:
        result = self._results.pop(number)
        if isinstance(result, DataError):
            raise result
        return number, result

    def _hand_out(self, stretch: Stretch) -> None:
        while (least := min(self._workers, key=lambda worker: worker.held)).held >= AHEAD:
            self._wait()
        least.held += 1
        with self._death_is_told():
            least.pipe.send((stretch, self._parts.new(stretch.number)))

    def _wait(self) -> None:
        """For a result of any worker."""
        busy = {worker.pipe: worker for worker in self._workers if worker.held}
        for pipe in wait(list(busy)):
            with self._death_is_told():
                number, self._results[number] = pipe.recv()
            busy[pipe].held -= 1

    @contextlib.contextmanager
    def _death_is_told(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise DataError(f"{self._settings.inputs[0].path}: a worker process died, perhaps for want of memory. "
                            f"Cure: fewer than --workers {len(self._workers)}, or more memory; what is encoded "
                            "stays.") from error

    def end(self) -> None:
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()


def _work(settings: Preprocessing, pipe: Connection) -> None:
    """A worker process: stretches and their folders in, numbers with counts or a user's error out, until the other end
    is closed. One stretch goes to the disk while the next is encoded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    encoder = load_encoder(settings)
    with contextlib.suppress(EOFError, BrokenPipeError), ThreadPoolExecutor(1) as thread:
        while True:
            stretch, folder = pipe.recv()
            if _orphaned():
                return
            written = contextlib.ExitStack()
            try:
                with written:
                    counts = write_stretch(settings, encoder, stretch, written.enter_context(files.publish(folder)))
                    thread.submit(_publish, written.pop_all(), pipe, stretch.number, counts)
            except DataError as error:
                thread.submit(pipe.send, (stretch.number, error))


def _orphaned() -> bool:
    """The parent was killed alone. Another run may have made all by now, and removed the folder of parts: what comes
    later must not stand there again."""
    return not multiprocessing.parent_process().is_alive()


def _publish(written: contextlib.ExitStack, pipe: Connection, number: int, counts: Counts) -> None:
    try:
        if _orphaned():
            os._exit(1)
        try:
            written.close()
            pipe.send((number, counts))
        except DataError as error:
            pipe.send((number, error))
    except BaseException as error:  # nobody asks for a thread's error, and the parent would wait for ever
        if not isinstance(error, BrokenPipeError):
            traceback.print_exc()
        os._exit(1)
