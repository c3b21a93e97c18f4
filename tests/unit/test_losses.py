"""Bad losses: what is judged bad, what is done about it, and that a resume judges alike."""

import math
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from test_mcore_resume import RECIPE

from megatron_nca.__main__ import main
from megatron_nca.config.recipe import BadLoss, load_recipe
from megatron_nca.config.run_config import LossRecord
from megatron_nca.config.schema import build, to_yaml
from megatron_nca.errors import ConfigError, LaunchError
from megatron_nca.mcore.engine import Engine, Evaluation, StepResult, read_ranks
from megatron_nca.train.losses import Losses
from megatron_nca.train.training import Training

SERIES = [5.0, 4.8, math.nan, 4.7, 9.0, math.inf, 4.6, 4.5, 8.9, 4.4]


def measured(loss: float, grad_norm: float = 1.0) -> StepResult:
    return StepResult(loss=loss, grad_norm=grad_norm, learning_rate=1e-3, loss_scale=1.0, skipped=False)


def judged(losses: Losses, series: list[float]) -> list[bool]:
    accepted = []
    for iteration, loss in enumerate(series, 1):
        accepted.append(losses.accepts(loss))
        losses.note(iteration, "text", measured(loss))
    return accepted


def test_skipped_are_what_is_not_finite_and_what_leaps():
    losses = Losses(BadLoss(action="skip", spike=1.5), LossRecord())
    assert judged(losses, SERIES) == [True, True, False, True, False, False, True, True, False, True]
    assert losses.record.skipped == 4 and losses.record.bad_in_a_row == 0
    assert 4.9 < losses.record.level < 5.0
    assert judged(Losses(BadLoss(action="skip"), LossRecord()), SERIES).count(False) == 2


@pytest.mark.parametrize("cut", range(len(SERIES)))
def test_a_resume_anywhere_judges_alike(cut):
    """By way of a checkpoint's YAML, to the last bit."""
    policy = BadLoss(action="skip", spike=1.5, in_a_row=2)
    unbroken, first = Losses(policy, LossRecord()), Losses(policy, LossRecord())
    wanted, before = judged(unbroken, SERIES), judged(first, SERIES[:cut])
    resumed = Losses(policy, build(LossRecord, yaml.safe_load(to_yaml(first.record))))
    assert before + judged(resumed, SERIES[cut:]) == wanted
    assert resumed.record == unbroken.record


@pytest.mark.parametrize(
    ("policy", "series", "words"),
    [
        (BadLoss(), [5.0, math.nan], ["lm loss = nan at iteration 2 of phase text", "diverged", "on_bad_loss"]),
        (BadLoss(spike=1.5), [5.0, 8.0], ["lm loss = 8.0 at iteration 2", "1.5 times its running level of 5.0000"]),
        (BadLoss(action="skip", in_a_row=2), [5.0, *[math.inf] * 3], ["iteration 4", "the 3. bad one in a row"]),
    ],
)
def test_training_stops(policy, series, words):
    with pytest.raises(LaunchError) as error:
        judged(Losses(policy, LossRecord()), series)
    assert all(word in str(error.value) for word in [*words, "No update was made", "Cure"])


def test_a_gradient_that_is_not_finite_is_bad_too():
    with pytest.raises(LaunchError, match="gradient norm = inf at iteration 7"):
        Losses(BadLoss(), LossRecord()).note(7, "text", measured(5.0, math.inf))
    losses = Losses(BadLoss(action="skip"), LossRecord())
    losses.note(7, "text", measured(5.0, math.nan))
    assert losses.record == LossRecord(level=None, bad_in_a_row=1, skipped=1)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_that_is_not_finite_ends_training_before_the_save(loss: float) -> None:
    Losses(BadLoss(), LossRecord()).check_validation(4.0, 7, "text")
    given = {"_engine": SimpleNamespace(evaluate=lambda *_: Evaluation(loss, []), device=None), "_consumed": 8,
             "_data": MagicMock(), "_waiting": MagicMock(), "_metrics": MagicMock(), "_pace": MagicMock(),
             "_iteration": 7, "_phase": MagicMock(), "_losses": Losses(BadLoss(), LossRecord()),
             "run_config": SimpleNamespace(phase="text")}
    training = Training.__new__(Training)
    training.__dict__.update(given)
    with pytest.raises(LaunchError, match=f"lm loss validation = {loss} at iteration 7 of phase text: .* Cure: "):
        training._validate()
    training._metrics.validation.assert_called_once()


def test_broken_weights_that_were_saved_are_named_with_the_way_back() -> None:
    """Updates are made up to iteration 30; the two after it have a bad loss, and are skipped where a third may be."""
    losses = Losses(BadLoss(action="skip", in_a_row=2), LossRecord(level=4.0))
    losses.note(31, "text", measured(math.nan))
    losses.note(32, "text", measured(math.nan))
    way_back = "If each start ends so, remove the checkpoints of iteration 30 and later"
    with pytest.raises(LaunchError, match=way_back):
        losses.check_validation(math.nan, 32, "text")
    with pytest.raises(LaunchError, match=way_back):
        losses.note(33, "text", measured(math.nan))
    with pytest.raises(LaunchError, match=way_back):
        Losses(BadLoss(), LossRecord()).note(31, "text", measured(math.nan))
    with pytest.raises(LaunchError, match=r"with on_bad_loss\.$"):
        Losses(BadLoss(), LossRecord()).note(1, "text", measured(math.nan))  # of the initial checkpoint


@pytest.mark.parametrize("values", [{"spike": 1.0}, {"in_a_row": 3}, {"action": "skip", "in_a_row": 0}])
def test_settings_that_make_no_sense(values):
    with pytest.raises(ConfigError, match="Cure"):
        build(BadLoss, values)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_update_leaves_weights_and_optimizer_as_they_were(precision: str, tmp_path: Path) -> None:
    recipe_file, initial = tmp_path / "recipe.yaml", tmp_path / "initial"
    text = RECIPE.replace("PRECISION", precision).replace("BACKGROUND", "false")
    recipe_file.write_text(text.replace("RAMP", "null").replace("LAYOUT", "{}"))
    words = ["convert", "transfer", "--carry", "none", "--to", initial, "--recipe", recipe_file, "--phase", "text"]
    assert main([*map(str, words), "--seed", "3"]) == 0
    recipe = load_recipe(recipe_file)
    engine = Engine(recipe.model_config("text"), recipe.phases["text"], read_ranks(), seed=7)
    engine.load(initial)
    assert not step(engine, 0).skipped
    before = state(engine)
    rejected = step(engine, 1, accepts=lambda loss: False)
    assert rejected.skipped and math.isnan(rejected.grad_norm) and math.isfinite(rejected.loss)
    assert same(before, state(engine))
    weight = next(parameter for parameter in engine.chunks[0].parameters() if parameter.ndim == 2)
    handle = weight.register_hook(lambda gradient: gradient * math.inf)
    spoilt = step(engine, 2)
    handle.remove()
    assert spoilt.skipped and not math.isfinite(spoilt.grad_norm) and math.isfinite(spoilt.loss)
    assert same(before, state(engine))
    assert not step(engine, 3).skipped and not same(before, state(engine))
    engine.close()


def step(engine: Engine, iteration: int, **named: object) -> StepResult:
    tokens = torch.randint(0, 100, (4, 33), generator=torch.Generator().manual_seed(iteration))
    rows = [tokens[:2], tokens[2:]]
    batches = ({"tokens": r[:, :-1], "labels": r[:, 1:], "loss_mask": torch.ones(2, 32)} for r in rows)
    return engine.train_step(batches, iteration, **named)


def state(engine: Engine) -> list[torch.Tensor]:
    """Copies of all weights, fp32 weights, moments and counts of steps."""
    found = [parameter.detach().clone() for chunk in engine.chunks for parameter in chunk.parameters()]
    for one in engine.optimizer.chained_optimizers:
        for group in one.optimizer.param_groups:
            found += [parameter.detach().clone() for parameter in group["params"]]
            found.append(torch.tensor(float(group.get("step", 0))))
        for values in one.optimizer.state.values():
            found += [value.clone() for value in values.values() if isinstance(value, torch.Tensor)]
    return found


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) > 10 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
