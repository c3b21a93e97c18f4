"""What a run measured: JSON lines always, boards as they are there, Megatron-LM's log line every `log_interval`."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_nca import files
from megatron_nca.config.recipe import Phase
from megatron_nca.mcore.engine import StepResult
from megatron_nca.run_dir import PhaseFolder
from megatron_nca.train import log_line
from megatron_nca.train.clock import Clock

logger = logging.getLogger("megatron_nca.train")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What turns tokens and seconds into rates."""

    flops_per_token: int
    """Model FLOPs of training, forward and backward (account/flops.py)."""
    devices: int
    peak_flops: float | None
    """Of a device, a second; None where it is not known."""
    memory: Callable[[], dict[str, int]]
    """Bytes in use on this rank, {key: value}."""

    def throughput(self, tokens: int, seconds: float) -> float:
        """TFLOP/s of a device."""
        return tokens * self.flops_per_token / seconds / self.devices / 1e12

    def mfu(self, tokens: int, seconds: float) -> float | None:
        """Model FLOPs utilisation, 0 to 1; None where the peak is not known."""
        return None if self.peak_flops is None else 1e12 * self.throughput(tokens, seconds) / self.peak_flops


class Metrics:
    """Writes on the first rank; on the others every method does nothing. Leaving its `with` block closes it."""

    def __init__(
        self,
        folder: PhaseFolder,
        phase: Phase,
        sequence_length: int,
        machine: Machine,
        *,
        resumed_at: int = 0,
        writes: bool = True,
        boards: Callable[[], list] = list,
        clock: Clock | None = None,
    ) -> None:
        """`boards` opens them, on the first rank; `clock` runs since the launch began, None: it begins now."""
        self.phase, self.sequence_length, self.machine = phase, sequence_length, machine
        self.clock, self.writes = clock or Clock(), writes
        self.last_validation_loss: float | None = None
        self.validated_at: int | None = None
        """Iteration of the last validation."""
        self._began, self._consumed_before = time.perf_counter(), phase.batch_sizes.consumed_after(resumed_at)
        self._interval = log_line.Interval()
        self._boards, self._file = [], None
        if not writes:
            return
        # What starts over measures the validation at iteration 0 again.
        for line in forget_after(folder.metrics, resumed_at or -1):
            if line["type"] == "train":
                self.clock.go_on(line)
            else:
                self.last_validation_loss, self.validated_at = line["lm loss validation"], line["iteration"]
        self._boards = boards()
        self._file = open(folder.metrics, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def train(self, iteration: int, consumed: int, batch: int, result: StepResult, seconds: float) -> None:
        """One optimizer step that took `seconds` of wall time; `consumed` and `batch` in sequences."""
        if not self.writes:
            return
        tokens = batch * self.sequence_length
        mfu, memory = self.machine.mfu(tokens, seconds), self.machine.memory()
        scalars = {
            "lm loss": result.loss,
            "learning-rate": result.learning_rate,
            "grad-norm": result.grad_norm,
            "loss-scale": result.loss_scale,
            "batch-size": batch,
            "iteration-time": seconds,
            "throughput": self.machine.throughput(tokens, seconds),
            "tokens-per-second": tokens / seconds,
            **memory,
        }
        line = {"type": "train", "iteration": iteration, "consumed tokens": consumed * self.sequence_length}
        self._write({**line, **scalars, "mfu": mfu, "skipped": result.skipped, **self.clock.record()})
        self._show(iteration, consumed, scalars if mfu is None else {**scalars, "mfu": mfu})
        self._interval.add(result, seconds, tokens)
        if iteration % self.phase.log_interval == 0 or iteration == self.phase.iterations:
            self._log(iteration, consumed, batch, result, memory)

    def _log(self, iteration: int, consumed: int, batch: int, result: StepResult, memory: dict[str, int]) -> None:
        interval, self._interval = self._interval, log_line.Interval()
        # Validations and saves of this launch are in it, its start is not.
        a_sequence = (time.perf_counter() - self._began) / (consumed - self._consumed_before)
        shares = {"outside training": 1 - self.clock.share("training-time"), "data": self.clock.share("data-time")}
        measured = interval.tokens, interval.seconds
        now = iteration, self.phase.iterations, consumed
        fields = [
            *log_line.megatrons(now, interval, self.machine.throughput(*measured), result, batch),
            *log_line.ours(interval, self.machine.mfu(*measured), memory,
                           a_sequence * (self.phase.train_sequences - consumed), shares),
        ]
        logger.info("%s", " | ".join(fields) + " |")

    def validation(self, iteration: int, consumed: int, loss: float, loss_by_position: list, buckets: int) -> None:
        """One validation; `loss_by_position` by bucket of target positions."""
        if not self.writes:
            return
        self.last_validation_loss, self.validated_at = loss, iteration
        scalars = {"lm loss validation": loss, "lm loss validation ppl": math.exp(min(loss, 700.0))}
        line = {"type": "validation", "iteration": iteration, "consumed tokens": consumed * self.sequence_length}
        self._write({**line, **scalars, "loss by position": loss_by_position, "bucket tokens": buckets})
        self._show(iteration, consumed, scalars)
        perplexity = scalars["lm loss validation ppl"]
        logger.info(" validation loss at iteration %d | lm loss value: %.6E | lm loss PPL: %.6E |",
                    iteration, loss, perplexity)

    def last_words(self) -> None:
        """What the time went into."""
        if self.writes:
            values = self.clock.record()
            logger.info(
                "%.1f s of wall time: %.2f %% training, %.2f %% waiting for data",
                values["wall-time"],
                100 * self.clock.share("training-time"),
                100 * self.clock.share("data-time"),
            )

    def close(self, failed: bool = False) -> None:
        """`failed`: training ended by an error."""
        if self._file is not None:
            self._file.close()
        for board in self._boards:
            board.close(failed)

    def _write(self, values: dict) -> None:
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def _show(self, iteration: int, consumed: int, values: dict[str, float]) -> None:
        for board in self._boards:
            board.add(iteration, consumed, values)


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
