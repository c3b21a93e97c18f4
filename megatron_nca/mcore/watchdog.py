"""One message when ranks fail: ranks tell each other that they live and why one ended, beside the collectives.

Each rank has a thread that, once a beat, writes to the launcher's store what the rank is doing, looks whether any rank
has failed, and reads the next rank's beat. So every rank is watched by one other, and learning of a failure needs no
collective, which may hang for as long as one rank is missing.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import torch.distributed as dist

from megatron_nca import files
from megatron_nca.errors import MegatronNcaError
from megatron_nca.mcore import parallel
from megatron_nca.mcore.parallel import Ranks

BEAT_SECONDS = 1.0
MISSED_BEATS = 4
"""After which a rank is given up whose connections have broken."""
SAID = "MEGATRON_NCA_SAID"
"""Names a file that is made when a message has been printed, so that the launcher adds none."""


class Watchdog:
    """Of one rank, from before its process group is joined until it leaves."""

    def __init__(self, ranks: Ranks, record: Path) -> None:
        """`record`: a file, the same for all ranks, where the message is kept; it is there only after a failure."""
        self._ranks, self._record = ranks, record
        self._beat = BEAT_SECONDS
        self._doing = "starting"
        self._count = 0
        self._store: dist.Store | None = None
        self._wake, self._lock = threading.Event(), threading.Lock()
        self._closed = self._bereft = self._spoke = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch; a rank without others has none to watch."""
        if self._ranks.world_size > 1:
            self._thread.start()

    def at(self, what: str) -> None:
        """What this rank does now, for messages."""
        self._doing = what

    def close(self) -> None:
        """This rank leaves in good order."""
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():  # a thread inside the store when the interpreter ends would abort the process
            self._thread.join()

    # ------------------------------------------------------------------ the main thread has an exception

    def failed(self, error: BaseException) -> int:
        """Call it before connections to other ranks are closed. Prints the message unless another rank is to blame.

        Returns the exit code of all ranks. An error that all ranks agreed on is the first rank's to say; an error of
        communication is given time to turn out as another rank's end, and this process may end meanwhile.
        """
        if isinstance(error, MegatronNcaError):
            if parallel.speaks_for(error, self._ranks):
                self._say(str(error), 2)
            return 2
        if self._ranks.world_size > 1 and _is_of_communication(error):
            self._bereft = True
            self._wake.set()
            time.sleep((2 * MISSED_BEATS + 2) * self._beat)  # the thread ends the process as soon as it knows more
        message = f"{self._me()} failed in {self._doing}: {type(error).__name__}: {error}. All ranks end."
        self._say(message, 1, "".join(traceback.format_exception(error)))
        return 1

    def _me(self) -> str:
        return f"rank {self._ranks.rank} (process {os.getpid()} on {socket.gethostname()})"

    def _say(self, message: str, code: int, details: str = "") -> bool:
        """Print the message if no rank has said why all end; True if this one did."""
        with self._lock:
            if self._spoke or not self._claim(message, code):
                return False
            self._spoke = True
        print(f"{details}megatron-nca train: {message}", file=sys.stderr, flush=True)
        if SAID in os.environ:
            Path(os.environ[SAID]).touch()
        return True

    def _claim(self, message: str, code: int) -> bool:
        """Whether this rank is the first of all with a message."""
        text = json.dumps({"rank": self._ranks.rank, "exit code": code, "message": message})
        if self._store is not None:
            taken = self._store.compare_set("failure", "", text).decode()
            if taken != text:
                return False
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
        except Exception as error:
            if not self._closed:
                traceback.print_exception(error)

    def _exchange(self) -> None:
        self._count += 1
        self._store.set(f"beat {self._ranks.rank}", json.dumps(self._signs()))
        if self._store.check(["failure"]):
            self._end(json.loads(self._store.get("failure"))["exit code"])
        if self._bereft:
            gone = self._silent()
            if gone:
                self._accuse(gone, "is gone" if len(gone) == 1 else "are gone")

    def _signs(self) -> dict:
        return {"count": self._count, "doing": self._doing, "place": f"process {os.getpid()} on {socket.gethostname()}"}

    def _beats(self) -> list[dict]:
        """The last one of every rank that has given any."""
        keys = [f"beat {rank}" for rank in range(self._ranks.world_size)]
        return [json.loads(self._store.get(key)) if self._store.check([key]) else {} for key in keys]

    def _silent(self) -> dict[int, dict]:
        """Ranks that give no sign while MISSED_BEATS pass, with their last one."""
        before = self._beats()
        for _ in range(MISSED_BEATS):
            time.sleep(self._beat)
            if self._store.check(["failure"]):
                return {}
        after = self._beats()
        mine = self._ranks.rank
        return {rank: beat for rank, beat in enumerate(after) if rank != mine and beat == before[rank]}

    def _accuse(self, gone: dict[int, dict], what: str) -> None:
        names = [f"rank {rank} ({beat.get('place', 'never seen')})" for rank, beat in gone.items()]
        last = next(iter(gone.values())).get("doing", "no sign of it")
        self._say(f"{', '.join(names)} {what}, last seen in {last}. All ranks end.", 1)
        self._end(1)

    def _end(self, code: int) -> None:
        """End this process, whose main thread may hang, unless it is about to say why all end."""
        with self._lock:
            if self._spoke or self._closed:
                return
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _is_of_communication(error: BaseException) -> bool:
    """Whether it may be the consequence of another rank's end."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "nccl", "connection", "timed out"))

