"""One message when ranks fail: ranks tell each other that they live and why one ended, beside the collectives.

Each rank has a thread that, once a beat, writes to the launcher's store what the rank is doing, looks whether any rank
has failed, and reads the next rank's beat. So every rank is watched by one other, and learning of a failure needs no
collective, which may hang for as long as one rank is missing. A second thread watches the first, which hangs when the
store does not answer. All time is counted in beats: a machine that slept for an hour has missed none.
"""

import contextlib
import json
import linecache
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil
import torch.distributed as dist

from megatron_nca import files
from megatron_nca.errors import MegatronNcaError
from megatron_nca.mcore import parallel
from megatron_nca.mcore.parallel import Ranks

BEAT_SECONDS = 1.0
MISSED_BEATS = 4
"""After which a rank is given up when connections have broken."""
SECONDS = 120.0
"""By default, for a rank to give no sign of life; not for an iteration or a save, which may take as long as they do."""
STUCK_SECONDS = 0.8 * parallel.COLLECTIVE_TIMEOUT.total_seconds()
"""For a rank to make no progress in a micro-batch: a little less than communication allows the others to wait."""
WAITING = "waiting for others at"
SAID = "MEGATRON_NCA_SAID"
"""Names a file that is made when a message has been printed, so that the launcher adds none."""


class Watchdog:
    """Of one rank, from before its process group is joined until it leaves."""

    def __init__(self, ranks: Ranks, record: Path, seconds: float | None, may_record: Callable[[], bool]) -> None:
        """`record`: a file, the same for all ranks, where the message is kept; it is there only after a failure.

        `seconds`: for a rank to give no sign of life until all end; None: SECONDS.
        `may_record`: whether this training still has a right to `record`.
        """
        self._may_record = may_record
        seconds = SECONDS if seconds is None else seconds
        self._ranks, self._record = ranks, record
        self._beat = min(BEAT_SECONDS, seconds / 5)
        self._patience, self._stuck_patience = (round(limit / self._beat) for limit in (seconds, STUCK_SECONDS))
        self._doing, self._limited = "starting", False
        self._count = self._missed = self._idle = 0
        self._next: dict = {}
        """The next rank's last beat."""
        self._main = threading.main_thread().ident
        self._store: dist.Store | None = None
        self._wake, self._lock = threading.Event(), threading.Lock()
        self._closed = self._bereft = self._leaves = False
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._watch, self._guard)]

    def start(self) -> None:
        """Begin to watch; a rank without others has none to watch."""
        if self._ranks.world_size > 1:
            for thread in self._threads:
                thread.start()

    def at(self, what: str, limited: bool = False) -> None:
        """What this rank does now, for messages; `limited` is what must not take longer than STUCK_SECONDS."""
        self._doing, self._limited, self._idle = what, limited, 0

    def close(self) -> None:
        """This rank leaves in good order."""
        self._closed = True
        self._wake.set()
        for thread in self._threads:
            if thread.is_alive():  # a thread inside the store when the interpreter ends would abort the process
                thread.join()

    # ------------------------------------------------------------------ the main thread has an exception

    def failed(self, error: BaseException) -> int:
        """Call it before connections to other ranks are closed. Prints the message unless another rank is to blame.

        Returns the exit code of all ranks. An error that all ranks agreed on is the first rank's to say; an error of
        communication is given time to turn out as another rank's end, and this process may end meanwhile.
        """
        if isinstance(error, MegatronNcaError):
            self._leaves = True
            if parallel.speaks_for(error, self._ranks):
                self._say(str(error), 2)
            return 2
        if self._ranks.world_size > 1 and _is_of_communication(error):
            self._bereft = True
            self._wake.set()
            time.sleep((2 * MISSED_BEATS + 2) * self._beat)  # the thread ends the process as soon as it knows more
        self._leaves = True
        message = f"{self._me()} failed in {self._doing}: {type(error).__name__}: {error}. All ranks end."
        self._say(message, 1, "".join(traceback.format_exception(error)))
        return 1

    def _me(self) -> str:
        return f"rank {self._ranks.rank} (process {os.getpid()} on {socket.gethostname()})"

    def _say(self, message: str, code: int, details: str = "") -> None:
        """Print the message if no rank has said why all end."""
        with self._lock:
            if not self._claim(message, code):
                return
        print(f"{details}megatron-nca train: {message}", file=sys.stderr, flush=True)
        if SAID in os.environ:
            Path(os.environ[SAID]).touch()

    def _claim(self, message: str, code: int) -> bool:
        """Whether this rank is the first of all with a message."""
        text = json.dumps({"rank": self._ranks.rank, "exit code": code, "message": message})
        if self._store is not None:
            taken = self._store.compare_set("failure", "", text).decode()
            if taken != text:
                return False
        if not self._may_record():
            return True
        with contextlib.suppress(MegatronNcaError):  # the message matters more than its record
            files.write_text(self._record, text + "\n")
        return True

    # ------------------------------------------------------------------ the thread

    def _watch(self) -> None:
        try:
            while not self._closed:
                if self._store is not None:
                    self._exchange()
                elif dist.is_initialized():  # the store is surely there; before, joining has a time limit of its own
                    self._store = parallel.side_store("watchdog")
                    continue
                self._wake.wait(self._beat)
                self._wake.clear()
        except Exception as error:  # the store is gone, and with it what others could say
            if not self._closed:
                self._lose_the_store(f"has closed its connections ({type(error).__name__})")

    def _guard(self) -> None:
        """The second thread: does the first one still come round?"""
        before, missed = 0, 0
        while not self._closed:
            time.sleep(self._beat)
            missed = missed + 1 if self._store is not None and self._count == before else 0
            before = self._count
            if missed >= self._patience:
                self._lose_the_store(f"has not answered for {missed * self._beat:.0f} s")

    def _lose_the_store(self, what: str) -> None:
        self._store = None
        if self._record.exists():  # another rank has said so
            self._end(1)
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        self._say(f"the store of this launch at {place} {what}: the launcher or rank 0, which keeps it, is stopped, "
                  f"gone or cut off. {self._me()} was in {self._doing}. All ranks end.", 1)  # fmt: skip
        self._end(1)

    def _exchange(self) -> None:
        self._give_sign()
        if self._bereft or self._missed_next() >= self._patience - MISSED_BEATS:
            gone = self._silent()
            if gone:
                seconds = (self._missed + MISSED_BEATS) * self._beat
                self._accuse(gone, "gone" if self._bereft else f"silent for {seconds:.0f} s")
            self._missed = 0
        self._idle += self._limited
        if self._idle >= self._stuck_patience:
            self._accuse_idle()

    def _give_sign(self) -> None:
        """This rank's beat; and the process ends here if any rank has failed."""
        self._count += 1
        signs = {"count": self._count, "doing": self._doing, "line": _line(self._main)}
        signs |= {"pid": os.getpid(), "host": socket.gethostname()}
        self._store.set(f"beat {self._ranks.rank}", json.dumps(signs))
        if self._store.check(["failure"]):
            self._end(json.loads(self._store.get("failure"))["exit code"])

    def _missed_next(self) -> int:
        """For how many beats the next rank has given no sign; one that was never seen may still be joining."""
        key = f"beat {(self._ranks.rank + 1) % self._ranks.world_size}"
        seen = json.loads(self._store.get(key)) if self._store.check([key]) else {}
        self._missed = self._missed + 1 if seen and seen == self._next else 0
        self._next = seen
        return self._missed

    def _beats(self) -> list[dict]:
        """The last one of every rank that has given any."""
        keys = [f"beat {rank}" for rank in range(self._ranks.world_size)]
        return [json.loads(self._store.get(key)) if self._store.check([key]) else {} for key in keys]

    def _silent(self) -> dict[int, dict]:
        """Ranks that give no sign while MISSED_BEATS pass, with their last one."""
        before = self._beats()
        for _ in range(MISSED_BEATS):
            time.sleep(self._beat)
            self._give_sign()
        after = self._beats()
        mine = self._ranks.rank
        return {rank: beat for rank, beat in enumerate(after) if rank != mine and beat == before[rank]}

    def _accuse(self, gone: dict[int, dict], what: str) -> None:
        names = [f"rank {rank} (process {beat.get('pid')} on {beat.get('host')})" for rank, beat in gone.items()]
        last = next(iter(gone.values()))
        seen = f"{last.get('doing', 'nothing')}, {last.get('line', 'no line')}"
        self._say(f"{', '.join(names)} {'is' if len(gone) == 1 else 'are'} {what}: killed, stopped or cut off. "
                  f"Last seen in {seen}. All ranks end.", 1)  # fmt: skip
        for beat in gone.values():
            _kill_beside(beat)
        self._end(1)

    def _accuse_idle(self) -> None:
        """All ranks wait for one, or for each other: say where each is, those that wait for no other first."""
        places: dict[str, list[int]] = {}
        for rank, beat in enumerate(self._beats()):
            places.setdefault(f"{beat.get('doing', 'nothing')}, {beat.get('line', 'no line')}", []).append(rank)
        ordered = sorted(places.items(), key=lambda item: (WAITING in item[0], item[1]))
        said = [f"rank {', '.join(map(str, ranks))} in {place}" for place, ranks in ordered]
        self._say(f"no progress for {self._idle * self._beat:.0f} s: {'; '.join(said)}. All ranks end.", 1)
        self._end(1)

    def _end(self, code: int) -> None:
        """End this process, whose main thread may hang, unless that is about to end it."""
        if not self._leaves and not self._closed:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _kill_beside(beat: dict) -> None:
    """Kill a silent rank of this machine, which torchrun would do after 30 seconds: it may hold a GPU."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(beat.get("pid"))
        if beat.get("host") == socket.gethostname() and process.ppid() == os.getppid():  # no other has its number now
            process.kill()


def _line(thread: int) -> str:
    """Where a thread of this process is: file, line and function of its innermost call in Python."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "at its end"
    file, number = frame.f_code.co_filename, frame.f_lineno or 0  # None between the lines of a function
    waits = "torch/distributed/" in file or ".wait(" in linecache.getline(file, number)
    place = f"{'/'.join(Path(file).parts[-3:])}:{number} in {frame.f_code.co_name}"
    return f"{WAITING if waits else 'at'} {place}"


def _is_of_communication(error: BaseException) -> bool:
    """Whether it may be the consequence of another rank's end."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "nccl", "connection", "timed out"))

