"""Run folders read back: what each arm and seed measured, and how far it came."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from megatron_nca.config.recipe import Recipe, load_recipe
from megatron_nca.errors import DataError
from megatron_nca.run_dir import PhaseFolder, RunFolder


@dataclass(frozen=True)
class Validation:
    """One line of type "validation" in metrics.jsonl."""

    iteration: int
    tokens: int
    """Training tokens of this phase so far."""
    loss: float
    """Nats per token; nan or inf if the run diverged."""
    by_position: tuple[float | None, ...] = ()
    """Mean loss of each bucket of target positions; None where nothing is scored."""
    bucket_tokens: int = 0


@dataclass(frozen=True)
class PhaseRun:
    """One phase of one arm and seed."""

    phase: str
    asked_iterations: int
    validations: tuple[Validation, ...]
    last_iteration: int | None
    """Of any line of metrics.jsonl; None if there is none."""
    tokens: int
    """Training tokens consumed."""
    non_finite: tuple[int, ...]
    """Iterations whose training loss was not a number."""
    done: bool
    """Whether done.json is there."""

    @property
    def state(self) -> str:
        if self.last_iteration is None:
            return "not started"
        if not self.done:
            return f"unfinished: iteration {self.last_iteration} of {self.asked_iterations}"
        if not self.validations or not math.isfinite(self.validations[-1].loss):
            return "diverged: its last validation loss is not a number"
        return "finished"


@dataclass(frozen=True)
class ArmRun:
    """One row of a comparison: an arm under one seed."""

    arm: str
    seed: int
    phases: tuple[PhaseRun, ...]

    @property
    def final(self) -> PhaseRun:
        return self.phases[-1]

    @property
    def finished(self) -> bool:
        return all(phase.state == "finished" for phase in self.phases)

    @property
    def state(self) -> str:
        """'finished', or the first phase that is not and why."""
        for phase in self.phases:
            if phase.state != "finished":
                return f"{phase.phase} {phase.state}"
        return "finished"

    @property
    def total_tokens(self) -> int:
        """Training tokens of all phases, the earlier ones included."""
        return sum(phase.tokens for phase in self.phases)


@dataclass(frozen=True)
class Run:
    """One run folder."""

    name: str
    path: Path
    recipe: Recipe
    arms: tuple[ArmRun, ...]
    former: tuple[Recipe, ...] = ()
    """What the recipe was before each of its changes, the oldest first."""

    def find(self, arm: str, seed: int) -> ArmRun:
        return next(row for row in self.arms if (row.arm, row.seed) == (arm, seed))


def load_run(path: Path) -> Run:
    """Read a run folder, finished or not. Raises DataError if it is none, or if its records are damaged."""
    folder = RunFolder(Path(path))
    if not folder.recipe.is_file():
        raise DataError(f"{path}: is not a run folder (recipe.yaml is missing). Cure: give the --run-dir of a run.")
    recipe = load_recipe(folder.recipe)
    arms = tuple(
        ArmRun(arm, seed, tuple(_load_phase(recipe, step.phase, folder.phase(arm, seed, step.phase)) for step in steps))
        for arm, steps in ((name, arm.steps) for name, arm in recipe.arms.items())
        for seed in recipe.seeds
    )
    former = tuple(map(load_recipe, folder.former_recipes()))
    return Run(Path(path).resolve().name, Path(path), recipe, arms, former)


def _load_phase(recipe: Recipe, phase: str, folder: PhaseFolder) -> PhaseRun:
    lines = read_metrics(folder.metrics) if folder.metrics.is_file() else []
    train = [line for line in lines if line["type"] == "train"]
    validations = [line for line in lines if line["type"] == "validation"]
    return PhaseRun(
        phase=phase,
        asked_iterations=recipe.phases[phase].iterations,
        validations=tuple(_validation(line) for line in validations),
        last_iteration=max((line["iteration"] for line in lines), default=None),
        tokens=max((line["consumed tokens"] for line in lines), default=0),
        non_finite=tuple(line["iteration"] for line in train if not math.isfinite(_number(line["lm loss"]))),
        done=folder.done.is_file(),
    )


def _validation(line: dict) -> Validation:
    return Validation(
        iteration=line["iteration"],
        tokens=line["consumed tokens"],
        loss=_number(line["lm loss validation"]),
        by_position=tuple(line.get("loss by position") or ()),
        bucket_tokens=line.get("bucket tokens", 0),
    )


def _number(value: object) -> float:
    """A loss as a float; JSON has no nan, so some writers put null or text."""
    return math.nan if value is None else float(value)


_LOSS = {"train": "lm loss", "validation": "lm loss validation"}


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl. A last line cut off by a kill is left out; raises DataError for other damage."""
    lines = []
    rows = path.read_bytes().split(b"\n")
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        try:
            line = json.loads(row)
            _ = line["iteration"] + line["consumed tokens"] + 0
            if (loss := _LOSS.get(line["type"])) is not None:
                _number(line[loss])
                tuple(line.get("loss by position") or ())
        except (ValueError, KeyError, TypeError) as error:
            if number == len(rows):  # no newline ends it: it was being written
                continue
            reason = f"is not a line of metrics ({type(error).__name__}: {error})"
            raise DataError(
                f"{path}: line {number} {reason}. Cure: remove the line, or train the phase again."
            ) from error
        lines.append(line)
    return lines


def unigram_entropy(run: Run, dataset: str) -> float | None:
    """Unigram entropy in nats of a dataset's validation targets, from its manifest; None if that is not there."""
    prefix = RunFolder(run.path).dataset(dataset).prefix("validation", run.recipe.datasets[dataset])
    try:
        text = prefix.with_name(prefix.name + ".json").read_text(encoding="utf-8")
        return float(json.loads(text)["unigram_entropy_nats"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the report says "not known": a run's data may have been removed to save space
