"""The arithmetic of a comparison; plain numbers in, plain numbers out, nothing read or written."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_nca.config.law import NcaLaw
from megatron_nca.report.runs import ArmRun, Run, Validation, unigram_entropy

LEARNED_SHARE, LEARNED_FRAMES = 1 / 3, 0.10
"""learned: the loss is a third below the unigram entropy, and late frames a tenth below early ones."""
HARDLY_SHARE = 0.05
"""hardly learned: at least a twentieth below the unigram entropy. Less: nothing learned."""
COMPARED_FRAMES = 3
"""Early and late are each the mean of this many frames (fewer if there are not twice as many)."""

T_QUANTILES = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131]
T_QUANTILES += [2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]
"""97.5 % quantiles of Student's t for 1..30 degrees of freedom; beyond, the last one serves (a little too wide)."""


def exponential(nats: float) -> float:
    """Of a loss, or of a difference of two; at most about 1e304, near the largest that a float holds."""
    return math.exp(min(nats, 700.0))


@dataclass(frozen=True)
class Row:
    """One arm under one seed, beside the control of the same seed."""

    run: str
    arm: str
    seed: int
    state: str
    phase: str
    """The last phase: the one that is compared."""
    tokens: int
    """Training tokens of the last phase."""
    total_tokens: int
    loss: float | None = None
    """Nats per token at the end of the last phase; None unless finished."""
    difference: float | None = None
    """Loss minus the control's at equal tokens of the last phase; None for the control and where a side is missing."""
    compared_tokens: int | None = None
    """Where the two were compared."""
    reached: bool | None = None
    """Whether the control's final loss was reached."""
    tokens_to_control: float | None = None
    """Tokens of the last phase at which it was, None if never."""
    control_tokens: int | None = None
    note: str = ""

    @property
    def perplexity(self) -> float | None:
        return None if self.loss is None else exponential(self.loss)

    @property
    def ratio(self) -> float | None:
        """Perplexity over the control's; below 1 is better."""
        return None if self.difference is None else exponential(self.difference)

    @property
    def speed_up(self) -> float | None:
        """Control's tokens over the tokens that this arm needed for the same loss; None if never."""
        if self.tokens_to_control is None:
            return None
        return math.inf if self.tokens_to_control == 0 else self.control_tokens / self.tokens_to_control

    @property
    def total_speed_up(self) -> float | None:
        """The same with the tokens of the earlier phases counted in."""
        if self.tokens_to_control is None:
            return None
        spent = self.tokens_to_control + self.total_tokens - self.tokens
        return math.inf if spent == 0 else self.control_tokens / spent


def tokens_to_reach(curve: Sequence[Validation], loss: float) -> float | None:
    """Tokens at which `curve` first is at or below `loss`, linear between validations; None if it never is."""
    before = None
    for point in curve:
        if point.loss <= loss:
            if before is None or before.loss <= point.loss or not math.isfinite(before.loss):
                return float(point.tokens)
            share = (before.loss - loss) / (before.loss - point.loss)
            return before.tokens + share * (point.tokens - before.tokens)
        before = point
    return None


def loss_at(curve: Sequence[Validation], tokens: float) -> float | None:
    """Loss at `tokens`, linear between validations; None outside the curve."""
    for before, point in itertools.pairwise(curve):
        if before.tokens <= tokens <= point.tokens:
            share = (tokens - before.tokens) / max(1, point.tokens - before.tokens)
            return point.loss if share == 1 else before.loss + share * (point.loss - before.loss)
    return curve[0].loss if curve and curve[0].tokens == tokens else None


def rows(run: Run) -> list[Row]:
    """One row for each arm and seed of a run folder, unfinished ones included."""
    return [_row(run, arm) for arm in run.arms]


def _row(run: Run, arm: ArmRun) -> Row:
    final = arm.final
    row = Row(run.name, arm.arm, arm.seed, arm.state, final.phase, final.tokens, arm.total_tokens)
    if not arm.finished:
        return row
    row = replace(row, loss=final.validations[-1].loss)
    if arm.arm == run.recipe.control:
        return row
    control = run.find(run.recipe.control, arm.seed)
    if not control.finished:
        return replace(row, note=f"no ratio: the control is not finished ({control.state})")
    dataset, theirs = (run.recipe.phases[phase].dataset for phase in (final.phase, control.final.phase))
    if dataset != theirs:
        return replace(row, note=f"no ratio: trained on '{dataset}', the control on '{theirs}'")
    return _compare(row, arm, control)


def _compare(row: Row, arm: ArmRun, control: ArmRun) -> Row:
    ours, theirs = arm.final.validations, control.final.validations
    tokens = min(ours[-1].tokens, theirs[-1].tokens)
    note = ""
    if ours[-1].tokens != theirs[-1].tokens:
        note = f"compared at {tokens:,} tokens by interpolation; there the two schedules are at different points"
    here, there = loss_at(ours, tokens), loss_at(theirs, tokens)
    needed = tokens_to_reach(ours, theirs[-1].loss)
    return replace(
        row,
        difference=None if here is None or there is None else here - there,
        compared_tokens=tokens,
        reached=needed is not None,
        tokens_to_control=needed,
        control_tokens=theirs[-1].tokens,
        note=note,
    )


@dataclass(frozen=True)
class Spread:
    """Mean and spread of a number over seeds."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for one seed."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean by Student's t; None below three seeds, where it would say nothing."""
        if self.n < 3:
            return None
        half = T_QUANTILES[min(self.n - 1, len(T_QUANTILES)) - 1] * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half


def spread(values: Sequence[float | None]) -> Spread | None:
    """The spread of those values that exist; None if there are none."""
    present = tuple(value for value in values if value is not None)
    return Spread(present) if present else None


@dataclass(frozen=True)
class Learned:
    """Whether a phase on automata or on a control taught its model anything: one that did not explains nothing."""

    run: str
    arm: str
    seed: int
    phase: str
    state: str
    entropy: float | None
    """Unigram entropy of the validation targets in nats; None if its manifest is not there."""
    first: Validation | None = None
    last: Validation | None = None
    early: float | None = None
    """Mean loss of the first whole scored frames at the end of the phase."""
    late: float | None = None
    """Mean loss of the last whole frames."""
    framed: bool = True
    """Whether the data consists of frames; what is no automaton is judged by the entropy alone."""

    @property
    def share(self) -> float | None:
        """How far the loss lies below the unigram entropy, as a share of it."""
        if self.last is None or not self.entropy:
            return None
        return 1 - self.last.loss / self.entropy

    @property
    def verdict(self) -> str:
        if self.state != "finished":
            return self.state
        if self.share is None:
            return "not known: the manifest with the unigram entropy is missing"
        if self.share < HARDLY_SHARE:
            return "nothing learned"
        falls = not self.framed or (self.early is not None and self.late <= (1 - LEARNED_FRAMES) * self.early)
        return "learned" if self.share >= LEARNED_SHARE and falls else "hardly learned"


def learned(run: Run) -> list[Learned]:
    """One check for each phase on automata or a control that was run, shared phases once."""
    result = []
    for arm in run.arms:
        for position, phase in enumerate(arm.phases):
            name = run.recipe.phases[phase.phase].dataset
            if not run.recipe.datasets[name].is_generated or run.recipe.home_arm(arm.arm, position) != arm.arm:
                continue
            law = run.recipe.law_of(name)
            check = Learned(run.name, arm.arm, arm.seed, phase.phase, phase.state, unigram_entropy(run, name))
            check = replace(check, framed=law is not None)
            if phase.validations:
                last = phase.validations[-1]
                frames = [] if law is None else [loss for _, loss in whole_frames(last, law)]
                count = min(COMPARED_FRAMES, len(frames) // 2)
                early, late = (statistics.fmean(part) if count else None for part in (frames[:count], frames[-count:]))
                check = replace(check, first=phase.validations[0], last=last, early=early, late=late)
            result.append(check)
    return result


def whole_frames(validation: Validation, law: NcaLaw) -> list[tuple[int, float]]:
    """(frame, loss) of the buckets that are scored in full, without the first frame, which nothing foretells.

    A bucket of which a lone delimiter is scored would look easy, and is left out.

    The target at position i is token i + 1 of the document, so bucket k holds frame k but its start token and the
    start token of frame k + 1.
    """
    width = validation.bucket_tokens
    scored = max(law.first_scored_token, law.frame_tokens) - 1
    result = []
    for bucket, loss in enumerate(validation.by_position):
        begin, end = bucket * width, (bucket + 1) * width
        if loss is not None and begin >= scored and end <= law.sequence_length:
            result.append((bucket, loss))
    return result
