"""Only the newest attempt at a phase may publish: one that a dead node or a lost lock has left behind must not.

Attempts are numbered by files in the phase's folder. The first rank looks before it publishes a checkpoint or a record,
and every second; when there is a higher number it leaves at once, and the other ranks find it gone. Lines of metrics
need no fence: a resume writes the file anew, and an older attempt goes on in the one that has no name any more.
"""

import os
import sys
import threading
from pathlib import Path

from megatron_nca import files
from megatron_nca.errors import LaunchError

LOOK_SECONDS = 1.0


class Fence:
    """Of one attempt, on its first rank."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number, self._closed = folder, number, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def check(self) -> None:
        """Raise LaunchError if another attempt has begun since."""
        highest = files.highest_number(self._folder)
        if highest > self._number:
            raise LaunchError(self._message(highest))

    def watch(self) -> None:
        """From now on this process ends when another attempt begins."""
        self._thread.start()

    def close(self) -> None:
        self._closed.set()

    def _message(self, highest: int) -> str:
        return f"{self._folder}: attempt {highest} at this phase has begun, and attempt {self._number} ends for it."

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            try:
                self.check()
            except LaunchError as error:
                print(f"megatron-nca train: {error}", file=sys.stderr, flush=True)
                os._exit(1)  # its lock with it, which the other attempt waits for
            except OSError:  # a file system that does not answer tells nothing of another attempt
                continue
