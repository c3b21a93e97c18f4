"""One line of the log for several iterations: the fields of Megatron-LM's training log in its order, then ours."""

import math
import time
from datetime import timedelta

from megatron_nca.mcore.engine import StepResult


class Interval:
    """What the iterations since the last line of the log measured; means as Megatron-LM takes them."""

    def __init__(self) -> None:
        self.iterations = self.tokens = self.skipped = self.nan = 0
        self.seconds = self._loss = 0.0

    def add(self, result: StepResult, seconds: float, tokens: int) -> None:
        """One iteration on `tokens` tokens that took `seconds`."""
        self.iterations, self.seconds, self.tokens = self.iterations + 1, self.seconds + seconds, self.tokens + tokens
        self.skipped += result.skipped
        self.nan += not math.isfinite(result.loss)
        self._loss += 0.0 if result.skipped else result.loss

    @property
    def loss(self) -> float:
        """Mean over the iterations whose update was not skipped, nats."""
        return self._loss / max(1, self.iterations - self.skipped)


def megatrons(
    now: tuple[int, int, int], interval: Interval, throughput: float, result: StepResult, batch: int
) -> list[str]:
    """The fields of Megatron-LM's training_log. `now`: iteration, of how many, sequences consumed;
    `throughput` in TFLOP/s of a device over the interval; `batch` in sequences."""
    iteration, iterations, consumed = now
    return [
        f" [{time.strftime('%Y-%m-%d %H:%M:%S')}] iteration {iteration:8d}/{iterations:8d}",
        f"consumed samples: {consumed:12d}",
        f"elapsed time per iteration (ms): {1000 * interval.seconds / interval.iterations:.1f}",
        f"throughput per GPU (TFLOP/s/GPU): {throughput:.{1 if throughput >= 10 else 4}f}",
        f"learning rate: {result.learning_rate:.6E}",
        f"global batch size: {batch:5d}",
        f"lm loss: {interval.loss:.6E}",
        f"loss scale: {result.loss_scale:.1f}",
        f"grad norm: {result.grad_norm:.3f}",
        f"number of skipped iterations: {interval.skipped:3d}",
        f"number of nan iterations: {interval.nan:3d}",
    ]


def ours(
    interval: Interval, mfu: float | None, memory: dict[str, int], seconds_left: float, shares: dict[str, float]
) -> list[str]:
    """`mfu` None where the device's peak is not known; `shares` of the wall time by name."""
    name, size = next(iter(memory.items()))
    return [
        f"tokens per second: {interval.tokens / interval.seconds:.1f}",
        f"MFU (%): {'unknown' if mfu is None else f'{100 * mfu:.1f}'}",
        f"{'RSS' if name == 'mem-rss-bytes' else 'max allocated'} memory of rank 0 (GB): {size / 1e9:.2f}",
        f"time left: {timedelta(seconds=round(seconds_left))}",
        *(f"{name} (% of wall time): {100 * share:.2f}" for name, share in shares.items()),
    ]
