"""The size of a global batch as a function of the sequences consumed, so that a resume needs no more than that."""

from dataclasses import dataclass

from megatron_nca.errors import ConfigError, explain


@dataclass(frozen=True)
class BatchSizes:
    """Constant, or stepping up from `start` by `increment`, spread evenly over the first `ramp_sequences` sequences.

    The steps are those of Megatron's RampupBatchsizeNumMicroBatchesCalculator; a test holds the two together.
    Raises ConfigError.
    """

    final: int
    ramp: tuple[int, int, int] | None = None
    """Start, increment, sequences of the ramp."""

    def __post_init__(self) -> None:
        if self.ramp is None:
            return
        start, increment, sequences = self.ramp
        reason = None
        if min(self.ramp) < 1:
            reason = "start, increment and sequences must be at least 1."
        elif start >= self.final:
            reason = f"starts at {start}, not below global_batch_size = {self.final}."
        elif (self.final - start) % increment:
            reason = f"steps of {increment} from {start} never reach global_batch_size = {self.final}."
        elif sequences < (self.final - start) // increment:
            reason = f"has {(self.final - start) // increment} steps for {sequences} sequences."
        if reason is not None:
            cure = "give [start, increment, sequences], for example [16, 16, 4096]; null for a constant batch."
            raise ConfigError(explain("rampup_batch_size", list(self.ramp), reason, cure))

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sizes that can occur, ascending."""
        if self.ramp is None:
            return (self.final,)
        start, increment, _ = self.ramp
        return tuple(range(start, self.final + 1, increment))

    def at(self, consumed: int) -> int:
        """Sequences of the batch that begins after `consumed` sequences."""
        if self.ramp is None or consumed >= self.ramp[2]:
            return self.final
        start, increment, sequences = self.ramp
        steps = (self.final - start) // increment
        return start + consumed * steps // sequences * increment

    def consumed_after(self, iterations: int) -> int:
        """Sequences consumed by the first `iterations` iterations."""
        consumed = 0
        for done in range(iterations):
            size = self.at(consumed)
            if size == self.final:
                return consumed + (iterations - done) * size
            consumed += size
        return consumed
