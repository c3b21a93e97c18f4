"""A save under way: data are written and hashed on each rank, in place or in a forked process, then all ranks finish.

Megatron plans what each rank writes and makes the table of all chunks at the end; its own queues of asynchronous
calls are not used. Those wait for ever for a writer that was killed (0.16), start a server process of 270 MB for
their results, and leave a writer running when its rank is killed.
"""

import contextlib
import gc
import multiprocessing
import os
import queue
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException

from megatron_nca import file_list
from megatron_nca.errors import CheckpointError
from megatron_nca.mcore import parallel

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Writing:
    """One save, begun on all ranks. `request` is Megatron's AsyncRequest."""

    def __init__(self, request: object, folder: Path, in_background: bool) -> None:
        self.folder, self._request = folder, request
        self._process = self._pipe = None
        self._outcome: tuple[dict | Exception, dict] | None = None
        if request.async_fn is None:  # this rank has nothing to write
            self._outcome = ({}, {})
            return
        buckets = request.preload_fn()  # to the host's memory; on a CPU the tensors themselves
        transforms = request.async_fn.args[0]
        if in_background:
            self._fork(transforms, buckets)
        else:
            self._outcome = _write(transforms, buckets)

    def _fork(self, transforms: list, buckets: list) -> None:
        """The copy of this process is the snapshot: training may change the tensors at once."""
        self._pipe, theirs = multiprocessing.Pipe(duplex=False)
        self._process = multiprocessing.get_context("fork").Process(
            target=_writer, args=(transforms, buckets, theirs, os.getpid()), name="checkpoint writer"
        )
        with _for_the_child(), warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads. The child only writes files, and takes no lock they hold.
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            self._process.start()
        theirs.close()

    @property
    def is_written(self) -> bool:
        """Whether this rank's part is written, or has failed."""
        return self._process is None or self._pipe.poll() or not self._process.is_alive()

    def finish(self) -> dict[str, dict[str, object]]:
        """Collective: wait for all writers, then write Megatron's table; the records of all ranks' data files.

        Raises CheckpointError, on every rank alike, if any writer failed.
        """
        result, records = self._collect()
        if self._request.async_fn is not None:
            self._request.async_fn_args[2].put(result)
        try:
            for action in self._request.finalize_fns:
                action()
        except CheckpointException as error:  # not an Exception; raised on every rank, with the causes on the first
            raise failed(self.folder, error) from error
        return {name: value for part in parallel.gather(records) for name, value in part.items()}

    def _collect(self) -> tuple[dict | Exception, dict]:
        if self._outcome is None:
            try:
                self._outcome = self._pipe.recv()
            except EOFError:
                self._process.join()
                self._outcome = (RuntimeError(f"its writer process {_ending(self._process.exitcode)}"), {})
            self._process.join()
            self._pipe.close()
            self._process = None
        return self._outcome

    def abandon(self) -> None:
        """Not collective: end this rank's writer. What it wrote is left under its passing name."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def failed(folder: Path, error: CheckpointException) -> CheckpointError:
    """What Megatron raises, in a sentence."""
    causes = "; ".join(f"rank {rank}: {cause[0]}" for rank, cause in error.failures.items())
    return CheckpointError(f"{folder}: the checkpoint could not be written ({causes}).")


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


@contextlib.contextmanager
def _for_the_child() -> Iterator[None]:
    """Signals to all processes of a job stop training in good order, which waits for the writer: it never hears them.

    The child inherits them blocked; SIGKILL reaches it with or without the death of its parent. It also inherits a
    collector that is off: collecting could end what belongs to threads that the child does not have.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if collecting:
            gc.enable()


def _writer(transforms: list, buckets: list, pipe: object, parent: int) -> None:
    """The forked process."""
    parallel.die_with_parent(parent)
    # Also of the training's lock and of the connections between ranks: when the training dies, both must be free at
    # once, even if this process hangs in the kernel, at a slow disk, before its own death.
    os.closerange(3, pipe.fileno())
    os.closerange(pipe.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    pipe.send(_write(transforms, buckets))


def _write(transforms: list, buckets: list) -> tuple[dict | Exception, dict]:
    """Write and sync every bucket, a file each: (what Megatron wants to know of them, the records of the files)."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    results, records = {}, {}
    for number, bucket in enumerate(buckets):
        results_queue, count_queue = queue.Queue(), queue.Queue()
        count_queue.put(number)
        FileSystemWriterAsync.write_preloaded_data(transforms, number, bucket, results_queue, count_queue, True)
        _, result = results_queue.get()
        if isinstance(result, Exception):
            return result, {}
        results[number] = result
        try:
            records[bucket[1]] = file_list.record(Path(bucket[0]))
        except OSError as error:
            return error, {}
    return results, records
