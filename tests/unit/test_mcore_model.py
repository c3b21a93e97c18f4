"""The Megatron model equals the plain PyTorch one, token by token, and steps like it; one process, real groups."""

from pathlib import Path

import pytest
import torch

from megatron_nca.__main__ import main
from megatron_nca.config.recipe import OptimizerConfig, Phase, load_recipe
from megatron_nca.mcore.engine import Engine, read_ranks
from megatron_nca.mcore.model_reference import LlamaReference, checkpoint_key
from megatron_nca.mcore.torch_dist import TorchDistReader

RECIPE = """
name: equality
model:
  {{num_layers: 3, hidden_size: 64, num_heads: 4, ffn_hidden_size: 96, sequence_length: 32, {more}}}
datasets: {{text: {{source: indexed, vocab_size: 200, train_prefix: none, validation_prefix: none}}}}
phases:
  text: {{dataset: text, iterations: 5, global_batch_size: 4, micro_batch_size: 2, precision: fp32,
         validation_sequences: 4, optimizer: {{lr: 1e-3}}}}
arms: {{scratch: {{steps: [{{phase: text}}]}}}}
control: scratch
"""


LLAMA3 = "{kind: llama3, factor: 8, original_length: 16}"
VARIANTS = {
    "multi-head": "num_query_groups: 4",
    "grouped-query, tied": "num_query_groups: 2, tied_embeddings: true, embedding_init_std: 0.02",
    "rope scaled": f"rope_scaling: {LLAMA3}",
}


@pytest.mark.parametrize("more", VARIANTS.values(), ids=VARIANTS)
def test_losses_and_updates_equal_plain_pytorch(more: str, tmp_path: Path) -> None:
    recipe_file, initial = tmp_path / "recipe.yaml", tmp_path / "initial"
    recipe_file.write_text(RECIPE.format(more=more))
    assert (
        main(
            [
                "convert",
                "transfer",
                "--carry",
                "none",
                "--to",
                str(initial),
                "--recipe",
                str(recipe_file),
                "--phase",
                "text",
                "--seed",
                "3",
            ]
        )
        == 0
    )
    model = load_recipe(recipe_file).model_config("text")
    plain = _reference(initial, model)
    optimizer = OptimizerConfig(lr=1e-2, weight_decay=0.1, decay_norms=True, clip_grad=0.5, decay_style="constant")
    phase = Phase(
        dataset="text", iterations=5, global_batch_size=4, micro_batch_size=2, optimizer=optimizer, precision="fp32"
    )
    engine = Engine(model, phase, read_ranks(), seed=0)
    try:
        engine.load(initial)
        tokens = torch.randint(0, 200, (4, 33), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            ours = engine.chunks[0](tokens[:, :-1], None, None, labels=tokens[:, 1:])
        torch.testing.assert_close(ours, plain(tokens[:, :-1], tokens[:, 1:]).detach(), rtol=1e-5, atol=1e-5)
        adamw = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8)
        for iteration in range(3):
            result = engine.train_step(_micro_batches(tokens), iteration)
            loss = plain(tokens[:, :-1], tokens[:, 1:])[:, 4:].mean()
            assert result.loss == pytest.approx(loss.item(), rel=2e-5)
            adamw.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            assert result.grad_norm == pytest.approx(norm.item(), rel=1e-3)
            adamw.step()
    finally:
        engine.close()


def _reference(checkpoint: Path, model: object) -> LlamaReference:
    plain, reader = LlamaReference(model), TorchDistReader(checkpoint)
    for name, parameter in plain.named_parameters():
        key, layer = checkpoint_key(name)
        parameter.data.copy_(reader.read(key, layer).view_as(parameter))
    return plain


def _micro_batches(tokens: torch.Tensor) -> object:
    """Two micro-batches whose first four targets carry no loss."""
    mask = (torch.arange(32) >= 4).float().expand(2, -1)
    for start in (0, 2):
        rows = tokens[start : start + 2]
        yield {"tokens": rows[:, :-1], "labels": rows[:, 1:], "loss_mask": mask}
