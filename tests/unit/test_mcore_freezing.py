"""What is frozen keeps every bit, and is trained from the switch on as if training had begun there."""

from pathlib import Path

import pytest
import torch
import yaml

from megatron_nca.__main__ import main
from megatron_nca.config.recipe import load_recipe
from megatron_nca.config.run_config import RunConfig
from megatron_nca.errors import CheckpointError
from megatron_nca.mcore.engine import Engine, build_engine, read_ranks
from megatron_nca.mcore.torch_dist import TorchDistReader
from megatron_nca.run_dir import CheckpointFolder
from megatron_nca.train import checkpoints

LR, DECAY = 1e-2, 0.1
PHASE = {
    "dataset": "text", "iterations": 5, "global_batch_size": 4, "micro_batch_size": 2, "validation_sequences": 4,
    "keep_checkpoints": 9, "freeze": {"components": ["attention", "mlp@0", "head"], "iterations": 2},
    "optimizer": {"lr": LR, "decay_style": "constant", "weight_decay": DECAY, "clip_grad": 1.0},
}  # fmt: skip
RECIPE = {
    "name": "freezing", "control": "scratch", "arms": {"scratch": {"steps": [{"phase": "text"}]}},
    "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "ffn_hidden_size": 64, "sequence_length": 32},
    "datasets": {"text": {"source": "indexed", "vocab_size": 100, "train_prefix": "none", "validation_prefix": "none"}},
}  # fmt: skip
ATTENTION = ("decoder.layers.self_attention.linear_qkv.weight", "decoder.layers.self_attention.linear_proj.weight")
MLP = ("decoder.layers.mlp.linear_fc1.weight", "decoder.layers.mlp.linear_fc2.weight")
TRAINED = ("embedding.word_embeddings.weight", "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
           "decoder.final_layernorm.weight")


def made(folder: Path, **changes: object) -> tuple:
    recipe_file, initial = folder / "recipe.yaml", folder / "initial"
    recipe_file.write_text(yaml.safe_dump({**RECIPE, "phases": {"text": {**PHASE, **changes}}}))
    words = ["convert", "transfer", "--carry", "none", "--to", initial, "--recipe", recipe_file, "--phase", "text"]
    assert initial.exists() or main([*map(str, words), "--seed", "3"]) == 0
    recipe = load_recipe(recipe_file)
    return recipe.model_config("text"), recipe.phases["text"], initial


def step(engine: Engine, iteration: int) -> tuple[float, float, float]:
    tokens = torch.randint(0, 100, (4, 33), generator=torch.Generator().manual_seed(iteration))
    batches = ({"tokens": r[:, :-1], "labels": r[:, 1:], "loss_mask": torch.ones(2, 32)} for r in tokens.split(2))
    result = engine.train_step(batches, iteration)
    return result.loss, result.grad_norm, result.learning_rate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list, list]:
    """A training in bf16 of five iterations, frozen for two, saved after the first three: its folder, what its steps
    and a resume from each of its checkpoints gave."""
    folder = tmp_path_factory.mktemp("run")
    model, phase, initial = made(folder)
    series = CheckpointFolder(folder / "checkpoints")
    engine = build_engine(model, phase, read_ranks(), seed=7)
    engine.load(initial)
    saver, unbroken = checkpoints.Saver(engine, series, beside=lambda _: {}), []
    for iteration in range(5):
        unbroken.append(step(engine, iteration))
        if iteration < 3:
            reached = {"iteration": iteration + 1, "consumed_sequences": 4 * (iteration + 1)}
            saver.save(RunConfig(model=model, optimizer=True, freeze=phase.freeze, **reached))
    saver.finish()
    resumed = []
    for saved in (1, 2, 3):
        engine.load(series.iteration(saved))
        resumed.append([step(engine, iteration) for iteration in range(saved, 5)])
    engine.close()
    return folder, unbroken, resumed


def reader(folder: Path, iteration: int) -> TorchDistReader:
    return TorchDistReader(CheckpointFolder(folder / "checkpoints").iteration(iteration))


def test_frozen_weights_keep_every_bit_and_have_no_moments(run: tuple) -> None:
    start, *saved = (reader(run[0], n) if n else TorchDistReader(run[0] / "initial") for n in (0, 1, 2, 3))
    kept = [(key, None) for key in (*ATTENTION, "output_layer.weight")] + [(key, 0) for key in MLP]
    for key, layer in kept:
        for later in saved[:2]:
            before = start.read(key, layer).bfloat16()
            assert torch.equal(later.read(key, layer), before), key
            for moment in ("exp_avg", "exp_avg_sq"):
                assert not later.read(f"optimizer.state.{moment}.{key}", layer).any(), key
        assert not torch.equal(saved[2].read(key, layer), before), key
    for key, layer in [(key, None) for key in TRAINED] + [(key, 1) for key in MLP]:
        assert not torch.equal(saved[0].read(key, layer), start.read(key, layer).bfloat16()), key


def test_the_first_update_after_the_switch_is_adams_first(run: tuple) -> None:
    """lr x sign of the gradient, where the gradient is far above epsilon; and decay."""
    at_switch, after = reader(run[0], 2), reader(run[0], 3)
    for key in ATTENTION:
        before, now = (saved.read(f"optimizer.state.param.{key}") for saved in (at_switch, after))
        gradient = after.read(f"optimizer.state.exp_avg.{key}") / 0.1
        expected = before * (1 - LR * DECAY) - LR * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(now, expected, rtol=0, atol=1e-5)


def test_a_resume_over_the_switch_is_exact(run: tuple) -> None:
    _, unbroken, resumed = run
    for saved, found in zip((1, 2, 3), resumed, strict=True):
        assert found == unbroken[saved:]
    assert {rate for *_, rate in unbroken} == {LR}


def test_the_norm_is_that_of_what_is_trained(tmp_path: Path) -> None:
    norms = {}
    for name, freeze in (("all", None), ("some", PHASE["freeze"])):
        model, phase, initial = made(tmp_path, freeze=freeze, precision="fp32")
        engine = build_engine(model, phase, read_ranks(), seed=7)
        engine.load(initial)
        norms[name] = step(engine, 0)[1]
        squares = {key: float(p.main_grad.square().sum()) for key, p in engine.chunks[0].named_parameters()}
        engine.close()
        if freeze is None:
            everywhere = ("linear_qkv.weight", "linear_proj.weight", "output_layer.weight")
            frozen = [key for key in squares if key.endswith(everywhere)
                      or (".0.mlp.linear_fc" in key and "norm" not in key)]
            # Clipped gradients are in the buffers, so that their shares count.
            share = 1 - sum(squares[key] for key in frozen) / sum(squares.values())
    assert len(frozen) == 7
    assert norms["some"] == pytest.approx(norms["all"] * share**0.5, rel=1e-5)


def test_other_settings_are_refused_on_a_resume(run: tuple) -> None:
    model, phase, _ = made(run[0], freeze=None)
    engine = build_engine(model, phase, read_ranks(), seed=7)
    with pytest.raises(CheckpointError, match=r"was trained with freeze = Freeze\(components=\('attention'"):
        engine.load(CheckpointFolder(run[0] / "checkpoints").iteration(2))
    engine.close()
