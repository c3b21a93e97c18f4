"""A resume with dropout in bf16 continues with the same floats: random streams are a function of the iteration."""

from pathlib import Path

import psutil
import pytest
import torch

from megatron_nca.__main__ import main
from megatron_nca.config.recipe import load_recipe
from megatron_nca.config.run_config import RunConfig
from megatron_nca.mcore.engine import Engine, build_engine, read_ranks
from megatron_nca.run_dir import CheckpointFolder
from megatron_nca.train import checkpoints

RECIPE = """
name: dropout
model:
  {num_layers: 2, hidden_size: 32, num_heads: 2, ffn_hidden_size: 64, sequence_length: 32}
datasets: {text: {source: indexed, vocab_size: 100, train_prefix: none, validation_prefix: none}}
phases:
  text: {dataset: text, iterations: 4, global_batch_size: 4, micro_batch_size: 2, precision: PRECISION,
         rampup_batch_size: RAMP, attention_dropout: 0.2, async_save: BACKGROUND, validation_sequences: 4,
         parallel: LAYOUT,
         optimizer: {lr: 1e-2, warmup_iterations: 2, weight_decay: 0.1, clip_grad: 1.0}}
arms: {scratch: {steps: [{phase: text}]}}
control: scratch
"""


@pytest.mark.parametrize(
    ("precision", "in_background", "ramp", "consumed", "layout"),
    [
        ("fp32", "false", "null", 8, "{}"),
        ("bf16", "true", "null", 8, "{}"),
        ("fp32", "false", "[2, 2, 4]", 4, "{}"),
        ("bf16", "true", "[2, 2, 4]", 4, "{engine: deepspeed, zero_stage: 3, recompute: {granularity: full}}"),
    ],
)
def test_resume_with_dropout_is_exact(
    precision: str, in_background: str, ramp: str, consumed: int, layout: str, tmp_path: Path
) -> None:
    """With the ramp, batches are of 2, 2, 4 and 4 sequences."""
    before = set(psutil.Process().children(recursive=True))
    recipe_file, initial = tmp_path / "recipe.yaml", tmp_path / "initial"
    text = RECIPE.replace("PRECISION", precision).replace("BACKGROUND", in_background)
    recipe_file.write_text(text.replace("RAMP", ramp).replace("LAYOUT", layout))
    initialise(recipe_file, initial)
    recipe = load_recipe(recipe_file)
    model, phase = recipe.model_config("text"), recipe.phases["text"]
    series = CheckpointFolder(tmp_path / "checkpoints")

    engine = build_engine(model, phase, read_ranks(), seed=7)
    engine.load(initial)
    unbroken = [step(engine, iteration) for iteration in range(2)]
    saver = checkpoints.Saver(engine, series, beside=lambda _: {})
    saver.save(RunConfig(model=model, iteration=2, consumed_sequences=consumed, optimizer=True))
    unbroken += [step(engine, iteration) for iteration in range(2, 4)]
    saver.finish()
    engine.close()

    engine = build_engine(model, phase, read_ranks(), seed=7)
    assert engine.load(checkpoints.newest_whole(series, read_ranks(), hashes=True)).iteration == 2
    resumed = [step(engine, iteration) for iteration in range(2, 4)]
    if phase.parallel.zero_stage == 3:
        held = sum(parameter.numel() for parameter in engine.chunks[0].parameters())
        assert held == 5 * 32, "between steps all weights but norms are let go of, also where there is one copy"
    engine.close()
    assert resumed == unbroken[2:]
    assert set(psutil.Process().children(recursive=True)) <= before, "saving leaves no process behind"
    assert len({loss for loss, *_ in unbroken}) == 4
    assert consumed == phase.batch_sizes.consumed_after(2)


def test_a_resume_takes_the_optimizers_settings_from_the_recipe(tmp_path: Path) -> None:
    """A checkpoint holds those it was written with, and Megatron would go on with some of them."""
    recipe_file, series = tmp_path / "recipe.yaml", CheckpointFolder(tmp_path / "checkpoints")
    text = RECIPE.replace("PRECISION", "fp32").replace("BACKGROUND", "false")
    recipe_file.write_text(text.replace("RAMP", "null").replace("LAYOUT", "{}"))

    def build(*overrides: str) -> Engine:
        recipe = load_recipe(recipe_file, list(overrides))
        return build_engine(recipe.model_config("text"), recipe.phases["text"], read_ranks(), seed=7)

    initialise(recipe_file, tmp_path / "initial")
    engine = build()
    engine.load(tmp_path / "initial")
    step(engine, 0)
    checkpoints.Saver(engine, series, beside=lambda _: {}).save(
        RunConfig(model=engine.model_config, iteration=3, consumed_sequences=12, optimizer=True))
    engine.close()
    engine = build("phases.text.optimizer.lr=1e-3", "phases.text.optimizer.beta2=0.5",
                   "phases.text.optimizer.min_lr=5e-4")
    engine.load(checkpoints.newest_whole(series, read_ranks(), hashes=True))
    asked = {"max_lr": 1e-3, "min_lr": 5e-4, "betas": (0.9, 0.5)}
    assert all({name: group[name] for name in asked} == asked for group in engine.optimizer.param_groups)
    assert 5e-4 <= engine.learning_rate <= 1e-3
    engine.close()


def initialise(recipe_file: Path, folder: Path) -> None:
    words = ["convert", "transfer", "--carry", "none", "--to", folder, "--recipe", recipe_file, "--phase", "text"]
    assert main([*map(str, words), "--seed", "3"]) == 0


def step(engine: Engine, iteration: int) -> tuple[float, float, float]:
    tokens = torch.randint(0, 100, (4, 33), generator=torch.Generator().manual_seed(iteration))
    rows = [tokens[:2], tokens[2:]]
    batches = ({"tokens": r[:, :-1], "labels": r[:, 1:], "loss_mask": torch.ones(2, 32)} for r in rows)
    result = engine.train_step(batches, iteration)
    return result.loss, result.grad_norm, result.learning_rate
