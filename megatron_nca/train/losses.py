"""What is done about a bad loss: one that is not finite, or leaps. Decided before the update, alike on all ranks."""

import dataclasses
import math

from megatron_nca.config.recipe import BadLoss
from megatron_nca.config.run_config import LossRecord
from megatron_nca.errors import LaunchError
from megatron_nca.mcore.engine import StepResult

FORGETTING = 0.02
"""Weight of a new loss in the running level, which so remembers about 50 good losses."""


class Losses:
    """Judge of the losses of one training. Its state is `record`, which checkpoints carry, so a resume judges alike."""

    def __init__(self, policy: BadLoss, record: LossRecord) -> None:
        self._policy, self.record = policy, record

    def accepts(self, loss: float) -> bool:
        """Whether an update may be made with the gradient of this loss."""
        return self._flaw(loss) is None

    def _flaw(self, loss: float) -> str | None:
        level, factor = self.record.level, self._policy.spike
        if not math.isfinite(loss):
            return "is not finite: training has diverged."
        if factor is not None and level is not None and loss > factor * level:
            return f"is more than {factor:g} times its running level of {level:.4f}."
        return None

    def note(self, iteration: int, phase: str, result: StepResult) -> None:
        """Take in what an iteration measured. Raises LaunchError when training must not go on."""
        flaw, what = self._flaw(result.loss), f"lm loss = {result.loss}"
        if flaw is None and not math.isfinite(result.grad_norm):
            flaw, what = "is not finite.", f"gradient norm = {result.grad_norm}"
        before = self.record
        if flaw is None:
            level = result.loss if before.level is None else before.level + FORGETTING * (result.loss - before.level)
            self.record = dataclasses.replace(before, level=level, bad_in_a_row=0)
            return
        in_a_row = before.bad_in_a_row + 1
        self.record = dataclasses.replace(before, bad_in_a_row=in_a_row, skipped=before.skipped + 1)
        if self._policy.action == "skip" and in_a_row <= (self._policy.in_a_row or math.inf):
            return
        often = f" It is the {in_a_row}. bad one in a row." if in_a_row > 1 else ""
        raise LaunchError(
            f"{what} at iteration {iteration} of phase {phase}: {flaw}{often} No update was made with it. "
            "Cure: lower optimizer.lr, set optimizer.clip_grad, or have such updates left out with on_bad_loss."
            f"{self._way_back(iteration)}"
        )

    def check_validation(self, loss: float, iteration: int, phase: str) -> None:
        """Raise LaunchError if a validation is not finite: the weights are at fault, and no skipping mends them."""
        if not math.isfinite(loss):
            raise LaunchError(
                f"lm loss validation = {loss} at iteration {iteration} of phase {phase}: is not finite, so the weights "
                "are broken, and they are not saved. Cure: lower optimizer.lr or set optimizer.clip_grad."
                f"{self._way_back(iteration)}"
            )

    def _way_back(self, iteration: int) -> str:
        """From weights that broke unseen and were saved: they are those of the last iteration that made an update."""
        since = iteration - self.record.bad_in_a_row
        return "" if since == 0 else (
            f" If each start ends so, remove the checkpoints of iteration {since} and later: they hold these weights, "
            "and training goes on from the one before.")
