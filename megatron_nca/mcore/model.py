"""ModelConfig to a Megatron GPTModel: a Llama-shaped decoder with our own layer specification."""

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_nca.config.model import ModelConfig, ParallelConfig

# Shapes: S sequence, B micro-batch, N heads of this rank, G key/value heads of this rank, D head size, H hidden.

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


class SdpaAttention(torch.nn.Module):
    """Causal core attention on torch's scaled_dot_product_attention: no (S, S) mask, flash kernels where there are."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: object,
        attention_type: str,
        attention_dropout: float | None = None,
        **unused: object,
    ) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **unused: object,
    ) -> torch.Tensor:
        """query (S, B, N, D), key and value (S, B, G, D) -> (S, B, N * D)."""
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        grouped = query.shape[1] != key.shape[1]
        dropout = self.config.attention_dropout
        if self.training and dropout:
            with tensor_parallel.get_cuda_rng_tracker().fork():
                context = F.scaled_dot_product_attention(
                    query, key, value, dropout_p=dropout, is_causal=True, enable_gqa=grouped
                )
        else:
            context = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return context.permute(2, 0, 1, 3).flatten(2)


def transformer_config(model: ModelConfig, parallel: ParallelConfig, precision: str) -> TransformerConfig:
    """Megatron's configuration of `model` split as `parallel` says. Weights are not initialised: they are loaded."""
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.head_size,
        ffn_hidden_size=model.ffn_hidden_size,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        activation_func=F.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        attention_dropout=0.0,  # the engine sets it for each iteration
        hidden_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        sequence_parallel=parallel.sequence_parallel,
        params_dtype=DTYPES[precision],
        pipeline_dtype=DTYPES[precision],
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        calculate_per_token_loss=True,
        # Not perform_initialization=False: that also leaves out the marks of tensor-parallel weights, and then the
        # gradient norm counts the first rank's share only, without a word.
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )


def _leave(weight: torch.Tensor) -> torch.Tensor:
    """Initialises nothing: every phase loads its weights."""
    return weight


def layer_specification() -> ModuleSpec:
    """Megatron's local layer with our norm and core attention in place of its own."""
    layer: ModuleSpec = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.submodules.core_attention = SdpaAttention
    return layer


def build(model: ModelConfig, parallel: ParallelConfig, precision: str, device: torch.device) -> torch.nn.Module:
    """This rank's part of the model, on `device`, in the precision's dtype, with weights yet to be loaded."""
    config = transformer_config(model, parallel, precision)
    layer = layer_specification()
    layers = config.num_layers // parallel.pipeline
    block = TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RMSNorm)
    module = GPTModel(
        config=config,
        transformer_layer_spec=block,
        vocab_size=model.padded_vocab_size,
        max_sequence_length=model.sequence_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=model.rope_base,
    )
    module.to(device)
    return module if precision == "fp32" else Float16Module(config, module)
