"""Why training is to stop before its end. What one rank hears, all ranks learn in the sum that each iteration makes."""

import signal
import time
from collections import deque
from collections.abc import Sequence

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
TIME_LIMIT = "time limit"
MARGIN_SECONDS = 10.0
"""Kept for processes to end, beside SPARE."""
SPARE = 1.25
"""How much longer than ever before an iteration, a validation and a save may take without breaking a time limit."""


class Stop:
    """What this rank has heard; the first votes of an iteration that any rank cast decide for all."""

    REASONS = (*(number.name for number in SIGNALS), TIME_LIMIT)

    def __init__(self) -> None:
        self._heard: set[str] = set()
        self.deadline: float | None = None
        """Seconds since the epoch by which all processes must have ended."""

    def heed_signals(self) -> None:
        """From now on they ask training to stop after its iteration. A second SIGINT (Ctrl-C) ends it at once."""
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def _hear(self, number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and name in self._heard:
            raise KeyboardInterrupt
        self._heard.add(name)

    def ignore_signals(self) -> None:
        """On the way out: a launcher sends SIGTERM when the first rank has ended, and an interpreter that is shutting
        down takes its handlers away, so that a rank would end by the signal and not with its exit code."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def votes(self, needed: float = 0.0) -> list[float]:
        """For each of REASONS 1 if this rank has heard it, to be added up over all ranks.

        The time limit counts as heard when less than `needed` seconds are left.
        """
        if self.deadline is not None and time.time() + needed > self.deadline:
            self._heard.add(TIME_LIMIT)
        return [float(reason in self._heard) for reason in self.REASONS]

    def decide(self, votes: Sequence[float]) -> str | None:
        """The reason to stop that the sums of all ranks' votes name, the same on every rank."""
        return next((reason for reason, count in zip(self.REASONS, votes, strict=True) if count), None)



class Pace:
    """What training has taken on this rank, to know what it will take to go on. All in seconds."""

    def __init__(self, loading: float) -> None:
        self._loading = loading
        self._iterations: deque[float] = deque(maxlen=20)
        self._validation = 0.0

    def iterated(self, seconds: float) -> None:
        self._iterations.append(seconds)

    def validated(self, seconds: float) -> None:
        self._validation = max(self._validation, seconds)

    def to_go_on(self, saving: float | None, saves: int, validates: bool) -> float:
        """For one more iteration and what must be done before the end: `saves` that take `saving` each, a validation.

        Before the first save it is taken to be four times what loading took: an initial checkpoint holds a quarter of
        what is saved, and one that is gone on from was read with all of it.
        """
        saving = 4 * self._loading if saving is None else saving
        iteration, validation = max(self._iterations, default=0.0), self._validation if validates else 0.0
        return MARGIN_SECONDS + SPARE * (iteration + validation + saves * saving)
