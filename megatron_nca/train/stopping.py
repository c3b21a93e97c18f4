"""Why training is to stop before its end. What one rank hears, all ranks learn in the sum that each iteration makes."""

import signal
from collections.abc import Sequence

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Stop:
    """What this rank has heard; the first votes of an iteration that any rank cast decide for all."""

    REASONS = tuple(number.name for number in SIGNALS)

    def __init__(self) -> None:
        self._heard: set[str] = set()

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

    def votes(self) -> list[float]:
        """For each of REASONS 1 if this rank has heard it, to be added up over all ranks."""
        return [float(reason in self._heard) for reason in self.REASONS]

    def decide(self, votes: Sequence[float]) -> str | None:
        """The reason to stop that the sums of all ranks' votes name, the same on every rank."""
        return next((reason for reason, count in zip(self.REASONS, votes, strict=True) if count), None)

