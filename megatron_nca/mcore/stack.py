"""What a layer is made of on this machine: Transformer Engine where it can run, else torch with our norm and attention.

The branch of Transformer Engine needs a GPU. No test here has run it.
"""

import importlib.util
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_nca.config.recipe import Phase
from megatron_nca.errors import ConfigError, explain
from megatron_nca.mcore.attention import SdpaAttention


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm whose weight tells Megatron when its gradient must be summed over sequence-parallel ranks.

    Megatron's own without Transformer Engine (WrappedTorchNorm) refuses sequence parallelism.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # (S, B, H) -> (S, B, H)
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class Stack:
    """The parts of a model that depend on what is installed."""

    name: str
    """For the log."""
    layer: ModuleSpec
    norm: type
    """Of the last layer's output."""
    fused_rope: bool


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed and has a GPU to run on."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def check_precision(phase: Phase) -> None:
    """Raise ConfigError if the phase asks for what this machine lacks; every rank finds the same."""
    if phase.fp8 and not has_transformer_engine():
        lacking = "Transformer Engine is not installed" if torch.cuda.is_available() else "this machine has no GPU"
        reason = f"fp8 needs Transformer Engine on a GPU, and {lacking}."
        raise ConfigError(explain("fp8", phase.fp8, reason, "leave fp8 out, or install the extra `te` on such a GPU."))


def choose(phase: Phase) -> Stack:
    return _transformer_engine(phase) if has_transformer_engine() else _torch()


def _torch() -> Stack:
    """Megatron's local layer with our norm and core attention in place of its own."""
    layer: ModuleSpec = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.submodules.core_attention = SdpaAttention
    return Stack("layers of torch: RMSNorm, scaled_dot_product_attention", layer, RMSNorm, fused_rope=False)


def _transformer_engine(phase: Phase) -> Stack:
    from megatron.core.extensions.transformer_engine import TENorm
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    layer: ModuleSpec = get_gpt_layer_with_transformer_engine_spec()
    attention = "its attention"
    # Its attention takes its dropout once and for all, ours anew at each iteration; and it has no fast kernel for fp32.
    if phase.attention_dropout or phase.precision == "fp32":
        layer.submodules.self_attention.submodules.core_attention = SdpaAttention
        attention = "scaled_dot_product_attention"
    return Stack(f"layers of Transformer Engine, {attention}", layer, TENorm, fused_rope=True)
