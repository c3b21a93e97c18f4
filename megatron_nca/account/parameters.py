"""How many parameters a model has, in all and on each pipeline stage."""

import math
from dataclasses import dataclass

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.parallel import ParallelConfig


@dataclass(frozen=True)
class Parameters:
    """Numbers of a model by part; the vocabulary with its padding."""

    embedding: int
    layers: int
    final_norm: int
    head: int

    @property
    def body(self) -> int:
        """Without the vocabulary: the layers and the final norm."""
        return self.layers + self.final_norm

    @property
    def total(self) -> int:
        return self.embedding + self.body + self.head


def parameters(model: ModelConfig) -> Parameters:
    """Parameters of the whole model, whatever its layout."""
    vocabulary = model.padded_vocab_size * model.hidden_size
    layer = sum(math.prod(shape) for shape in layer_shapes(model))
    head = 0 if model.tied_embeddings else vocabulary
    return Parameters(vocabulary, model.num_layers * layer, model.hidden_size, head)


def layer_shapes(model: ModelConfig, tensor: int = 1) -> tuple[tuple[int, ...], ...]:
    """Shapes of one layer's tensors on one of `tensor` ranks, in the order in which Megatron registers them.

    Norm, proj (H, H/t), qkv (Q/t, H), norm, fc1 (2F/t, H), fc2 (H, F/t), where Q = H + 2 groups x head size.
    """
    hidden, ffn = model.hidden_size, model.ffn_hidden_size // tensor
    qkv = (hidden + 2 * model.query_groups * model.head_size) // tensor
    return (hidden,), (hidden, hidden // tensor), (qkv, hidden), (hidden,), (2 * ffn, hidden), (hidden, ffn)


def stage_tensors(model: ModelConfig, parallel: ParallelConfig, stage: int) -> list[list[int]]:
    """Sizes of the tensors of each model chunk (one, or `virtual_pipeline`) of a rank of that pipeline stage.

    The embedding is on the first stage's first chunk; final norm and head are on the last stage's last, a tied head
    as a copy unless that is the first stage too.
    """
    chunks = parallel.virtual_pipeline
    layers = model.num_layers // (parallel.pipeline * chunks)
    vocabulary = model.padded_vocab_size // parallel.tensor * model.hidden_size
    layer = [math.prod(shape) for shape in layer_shapes(model, parallel.tensor)]
    result = [layer * layers for _ in range(chunks)]
    if stage == 0:
        result[0] = [vocabulary, *result[0]]
    if stage == parallel.pipeline - 1:
        result[-1] = [*result[-1], model.hidden_size]
        if not (model.tied_embeddings and stage == 0):
            result[-1].append(vocabulary)
    return result
