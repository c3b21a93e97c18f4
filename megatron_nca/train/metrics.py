"""What a run measured: JSON lines always, TensorBoard if installed, a bar on a terminal, else Megatron's log line."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_nca import files
from megatron_nca.mcore.engine import StepResult
from megatron_nca.run_dir import PhaseFolder

LOG_INTERVAL = 10
"""Iterations between two lines of the log; metrics.jsonl has them all."""

logger = logging.getLogger("megatron_nca.train")


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


class Clock:
    """Wall time of a phase over all its launches, and what of it training waited for data.

    A launch that goes on from a checkpoint adds to what the one before had taken up to that checkpoint.
    """

    def __init__(self) -> None:
        self.waiting = Stopwatch()
        """Of this launch."""
        self._began, self._wall_before, self._data_before = time.perf_counter(), 0.0, 0.0

    def go_on(self, line: dict) -> None:
        """After a resume: `line` is the last training line of metrics.jsonl that is kept."""
        self._wall_before, self._data_before = line.get("wall-time", 0.0), line.get("data-time", 0.0)

    @property
    def share(self) -> float:
        """Of the wall time."""
        values = self.record()
        return values["data-time"] / values["wall-time"]

    def record(self) -> dict:
        """Seconds so far: {"wall-time", "data-time"}."""
        wall = self._wall_before + time.perf_counter() - self._began
        return {"wall-time": wall, "data-time": self._data_before + self.waiting.seconds}


class Metrics:
    """Writes on the first rank; on the others every method does nothing."""

    def __init__(
        self,
        folder: PhaseFolder,
        writes: bool,
        iterations: int,
        resumed_at: int,
        sequence_length: int,
        clock: Clock | None = None,
    ) -> None:
        """`clock`: runs since the launch began; None: it begins now."""
        self.clock = clock or Clock()
        self.writes, self.iterations, self.sequence_length = writes, iterations, sequence_length
        self._bar = self._board = self._file = None
        self.last_validation_loss: float | None = None
        self.validated_at: int | None = None
        """Iteration of the last validation."""
        if not writes:
            return
        # What starts over measures the validation at iteration 0 again.
        for line in forget_after(folder.metrics, resumed_at or -1):
            if line["type"] == "train":
                self.clock.go_on(line)
            else:
                self.last_validation_loss, self.validated_at = line["lm loss validation"], line["iteration"]
        self._file = open(folder.metrics, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)
        self._board = _tensorboard(folder.tensorboard, resumed_at)
        self._bar = _progress_bar(iterations, resumed_at)

    def train(self, iteration: int, consumed: int, batch: int, result: StepResult, seconds: float) -> None:
        """One optimizer step that took `seconds` of wall time; `consumed` and `batch` in sequences."""
        if not self.writes:
            return
        rate = batch * self.sequence_length / seconds
        scalars = {
            "lm loss": result.loss,
            "learning-rate": result.learning_rate,
            "grad-norm": result.grad_norm,
            "loss-scale": result.loss_scale,
            "iteration-time": seconds,
        }
        tokens = consumed * self.sequence_length
        line = {"type": "train", "iteration": iteration, "consumed tokens": tokens, **scalars}
        self._write({**line, "tokens-per-second": rate, "skipped": result.skipped, **self.clock.record()})
        self._scalars(iteration, {**scalars, "batch-size": batch})
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_postfix_str(f"lm loss {result.loss:.4f}, {rate:,.0f} tokens/s")
        elif iteration % LOG_INTERVAL == 0 or iteration == self.iterations:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            fields = [
                f" [{now}] iteration {iteration:8d}/{self.iterations:8d}",
                f"consumed samples: {consumed:12d}",
                f"elapsed time per iteration (ms): {1000 * seconds:.1f}",
                f"learning rate: {result.learning_rate:.6E}",
                f"global batch size: {batch:5d}",
                f"lm loss: {result.loss:.6E}",
                f"loss scale: {result.loss_scale:.1f}",
                f"grad norm: {result.grad_norm:.3f}",
                f"number of skipped iterations: {int(result.skipped):3d}",
                f"number of nan iterations: {int(not math.isfinite(result.loss)):3d}",
                f"data (% of wall time): {100 * self.clock.share:.2f}",
            ]
            logger.info("%s", " | ".join(fields) + " |")

    def validation(self, iteration: int, consumed: int, loss: float, loss_by_position: list, buckets: int) -> None:
        """One validation; `loss_by_position` by bucket of target positions."""
        if not self.writes:
            return
        self.last_validation_loss, self.validated_at = loss, iteration
        perplexity = math.exp(min(loss, 700.0))
        self._write(
            {
                "type": "validation",
                "iteration": iteration,
                "consumed tokens": consumed * self.sequence_length,
                "lm loss validation": loss,
                "lm loss validation ppl": perplexity,
                "loss by position": loss_by_position,
                "bucket tokens": buckets,
            }
        )
        self._scalars(iteration, {"lm loss validation": loss, "lm loss validation ppl": perplexity})
        text = (
            f" validation loss at iteration {iteration} | lm loss value: {loss:.6E} | lm loss PPL: {perplexity:.6E} |"
        )
        if self._bar is not None:
            self._bar.write(text)
        else:
            logger.info("%s", text)

    def last_words(self) -> None:
        """What data cost."""
        if self.writes:
            values = self.clock.record()
            logger.info(
                "data cost %.1f s of %.1f s of wall time (%.2f %%)",
                values["data-time"],
                values["wall-time"],
                100 * self.clock.share,
            )

    def close(self) -> None:
        for part in (self._file, self._board, self._bar):
            if part is not None:
                part.close()

    def _write(self, values: dict) -> None:
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def _scalars(self, iteration: int, values: dict) -> None:
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, iteration)


def forget_after(path: Path, iteration: int) -> list[dict]:
    """Drop lines of iterations after `iteration`, which a resume will measure again, and a torn last line.

    Returns what is kept.
    """
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            kept.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: a torn line is dropped: %r", path, line[:80])
    kept = [line for line in kept if line["iteration"] <= iteration]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def _tensorboard(folder: Path, resumed_at: int) -> object:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed (extra `log`): metrics.jsonl only.")
        return None
    return SummaryWriter(str(folder), purge_step=resumed_at + 1 if resumed_at else None)


def _progress_bar(iterations: int, resumed_at: int) -> object:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=iterations, initial=resumed_at, unit="it", dynamic_ncols=True)
