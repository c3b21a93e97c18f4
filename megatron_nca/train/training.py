"""The iterations of a phase: what is done in each, what now and then, and in which order."""

import time
from collections.abc import Callable, Iterator

from megatron_nca.config.run_config import RunConfig
from megatron_nca.mcore.engine import Engine, gather
from megatron_nca.train import checkpoints
from megatron_nca.train.losses import Losses
from megatron_nca.train.metrics import Metrics
from megatron_nca.train.stopping import Pace, Stop
from megatron_nca.train.supply import Beforehand, OnNode


class Training:
    """A phase at work on this rank; every method is collective.

    `run_config` is what the newest checkpoint says, at first that of the beginning.
    """

    def __init__(self, engine: Engine, data: object, supply: Beforehand | OnNode, metrics: Metrics,
                 saver: checkpoints.Saver, run_config: RunConfig, stop: Stop, pace: Pace, at: Callable) -> None:
        self.run_config = run_config
        self._engine, self._data, self._supply = engine, data, supply
        self._metrics, self._saver, self._stop, self._pace, self._at = metrics, saver, stop, pace, at
        self._phase, self._waiting = engine.phase, metrics.clock.waiting
        self._iteration, self._consumed = run_config.iteration, run_config.consumed_sequences
        self._losses = Losses(self._phase.on_bad_loss, run_config.losses)

    def run(self) -> str | None:
        """Iterate to the last one; None, or why it ended before. All that was trained is saved then."""
        phase = self._phase
        reason = self._stop.decide([sum(count) for count in zip(*gather(self._votes()), strict=True)])
        # The first thing measured is the model as the converter left it. A training that stopped left out what was due.
        if not reason and self._is_due(phase.validation_interval) and not self._is_validated():
            self._validate()

        while self._iteration < phase.iterations and not reason:
            votes = self._iterate()
            self._saver.look()
            if self._iteration < phase.iterations:
                reason = self._stop.decide(votes)
            if reason:
                self._save()
                break
            if self._is_due(phase.validation_interval):
                self._validate()
            if self._is_due(phase.save_interval):
                self._supply.look()
                self._save()

        self._at(f"iteration {self._iteration}, finishing the last checkpoint")
        self._saver.finish()
        if not reason:
            with self._waiting:
                self._supply.finish()
        self._metrics.last_words()
        return reason

    def _iterate(self) -> tuple[float, ...]:
        """One optimizer step, from waiting for its data to its line of metrics; the sums of all ranks' votes."""
        phase, number, steps = self._phase, self._iteration + 1, self._metrics.clock.steps
        with steps:
            batch = phase.batch_sizes.at(self._consumed)
            self._at(f"iteration {number}, waiting for data")
            with self._waiting:
                self._supply.wait(self._consumed + batch)
            batches = self._data.train_batches(self._consumed, batch, phase.micro_batch_size, self._engine.device)
            batches = self._waiting.over(self._announced(batches, number, "training"))
            result = self._engine.train_step(batches, self._iteration, self._losses.accepts, self._votes)
        self._iteration, self._consumed = number, self._consumed + batch
        self._pace.iterated(steps.last)
        self._metrics.train(number, self._consumed, batch, result, steps.last)
        self._losses.note(number, self.run_config.phase, result)
        return result.votes

    def _validate(self) -> None:
        began, phase = time.perf_counter(), self._phase
        batches = self._data.validation_batches(phase.validation_sequences, phase.micro_batch_size,
                                                self._engine.device)
        batches = self._waiting.over(self._announced(batches, self._iteration, "validation"))
        result = self._engine.evaluate(batches, phase.validation_sequences, self._data.buckets)
        self._metrics.validation(self._iteration, self._consumed, result.loss, result.loss_by_position,
                                 self._data.bucket_tokens)
        self._losses.check_validation(result.loss, self._iteration, self.run_config.phase)
        self._pace.validated(time.perf_counter() - began)

    def _save(self) -> None:
        self._at(f"iteration {self._iteration}, saving")
        self.run_config = checkpoints.at_iteration(self.run_config, self._iteration, self._consumed,
                                                   self._supply.sha256, self._losses.record)
        self._saver.save(self.run_config)

    def _is_validated(self) -> bool:
        return gather(self._metrics.validated_at)[0] == self._iteration

    def _announced(self, batches: Iterator[dict], iteration: int, what: str) -> Iterator[dict]:
        """The same micro-batches; the watchdog is told of each."""
        for number, micro_batch in enumerate(batches, 1):
            self._at(f"iteration {iteration}, {what}, micro-batch {number}", True)
            yield micro_batch

    def _is_due(self, interval: int, ahead: int = 0) -> bool:
        number = self._iteration + ahead
        return number % interval == 0 or number == self._phase.iterations

    def _votes(self) -> list[float]:
        """This rank's, whether to stop after the iteration at work."""
        saves = 1 + self._is_due(self._phase.save_interval, ahead=1) + self._saver.is_under_way
        validates = self._is_due(self._phase.validation_interval, ahead=1)
        return self._stop.votes(self._pace.to_go_on(self._saver.seconds, saves, validates))
