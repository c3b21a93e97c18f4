"""Where the wall time of a phase went: steps of the model, waiting for data, all else."""

import time
from collections.abc import Iterator


class Stopwatch:
    """Seconds of wall time inside its `with` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began

    def over(self, items: Iterator) -> Iterator:
        """The items; what it takes to get each is counted, what is done with them is not."""
        while True:
            with self:
                item = next(items, None)
            if item is None:
                return
            yield item


class Steps:
    """Seconds of iterations, each a `with` block; what `waiting` counted inside of them is left out of `seconds`."""

    def __init__(self, waiting: Stopwatch) -> None:
        self.seconds = 0.0
        self.last = 0.0
        """Of the last iteration, waiting included."""
        self._waiting = waiting

    def __enter__(self) -> None:
        self._began, self._waited = time.perf_counter(), self._waiting.seconds

    def __exit__(self, *_: object) -> None:
        self.last = time.perf_counter() - self._began
        self.seconds += self.last - (self._waiting.seconds - self._waited)


class Clock:
    """Wall time of a phase over all its launches, and what of it were training steps and waiting for data.

    A launch that goes on from a checkpoint adds to what the one before had taken up to that checkpoint.
    """

    def __init__(self) -> None:
        self.waiting = Stopwatch()
        """For data, in this launch."""
        self.steps = Steps(self.waiting)
        """Of training, in this launch."""
        self._began = time.perf_counter()
        self._before = {"wall-time": 0.0, "training-time": 0.0, "data-time": 0.0}

    def go_on(self, line: dict) -> None:
        """After a resume: `line` is the last training line of metrics.jsonl that is kept."""
        self._before = {key: line.get(key, 0.0) for key in self._before}

    def share(self, key: str) -> float:
        """Of a key of `record` in the wall time."""
        values = self.record()
        return values[key] / values["wall-time"]

    def record(self) -> dict[str, float]:
        """Seconds so far: {"wall-time", "training-time", "data-time"}."""
        now = (time.perf_counter() - self._began, self.steps.seconds, self.waiting.seconds)
        return {key: before + value for (key, before), value in zip(self._before.items(), now, strict=True)}
