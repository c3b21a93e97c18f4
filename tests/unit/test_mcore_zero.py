"""DeepSpeed's engine in one process: an update that is not made leaves nothing behind."""

from collections.abc import Iterator

import pytest
import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.config.recipe import OptimizerConfig, Phase
from megatron_nca.mcore.engine import Engine, build_engine, read_ranks

MODEL = ModelConfig(num_layers=2, hidden_size=32, num_heads=2, ffn_hidden_size=64, sequence_length=32, vocab_size=100)


def batches(seed: int) -> Iterator[dict]:
    tokens = torch.randint(0, 100, (4, 33), generator=torch.Generator().manual_seed(seed))
    rows = tokens[:2], tokens[2:]
    return ({"tokens": r[:, :-1], "labels": r[:, 1:], "loss_mask": torch.ones(2, 32)} for r in rows)


def engine_of(stage: int, precision: str) -> Engine:
    """Its weights are random, and the same each time."""
    phase = Phase(
        dataset="none", iterations=9, global_batch_size=4, micro_batch_size=2, precision=precision,
        validation_sequences=4, optimizer=OptimizerConfig(lr=1e-2, decay_style="constant", clip_grad=1.0),
        parallel=ParallelConfig(engine="deepspeed", zero_stage=stage),
    )  # fmt: skip
    engine = build_engine(MODEL, phase, read_ranks(), 0)
    generator = torch.Generator().manual_seed(0)
    with engine._whole_weights(to_change=True), torch.no_grad():
        for parameter in engine.chunks[0].module.parameters():
            parameter.fill_(1.0) if parameter.dim() == 1 else parameter.normal_(0.0, 0.2, generator=generator)
        engine.optimizer.reload_model_params()
    return engine


@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_gradients_of_an_update_that_is_not_made_are_dropped(
    stage: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself DeepSpeed adds them to the next ones (3, and 1 in bf16)."""
    found = []
    for with_another in (False, True):
        engine = engine_of(stage, precision)
        engine.train_step(batches(0), 0)
        if with_another:
            with monkeypatch.context() as patch:
                patch.setattr(engine.optimizer, "step", lambda: (False, 0.0, None))
                assert engine.train_step(batches(9), 1).skipped
        results = [engine.train_step(batches(seed), seed) for seed in (1, 2)]
        found.append([(result.loss, result.grad_norm) for result in results])
        engine.close()
    assert found[0] == found[1]
