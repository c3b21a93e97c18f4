"""ModelConfig to Megatron GPTModels: a Llama-shaped decoder, in as many chunks as a rank has virtual stages."""

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.recipe import Phase
from megatron_nca.mcore.rotary import inverse_frequencies
from megatron_nca.mcore.stack import Stack

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def transformer_config(model: ModelConfig, phase: Phase, stack: Stack) -> TransformerConfig:
    """Megatron's configuration of `model` split as the phase says. Weights are not initialised: they are loaded."""
    parallel, precision = phase.parallel, phase.precision
    interleaved = parallel.virtual_pipeline > 1
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
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if interleaved else None,
        # Batched messages mix up the chunks of two ranks that are each other's next and previous: at PP2 with virtual
        # stages the gradient norm is 28.6 instead of 1.64, without a word.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence_parallel,
        params_dtype=DTYPES[precision],
        pipeline_dtype=DTYPES[precision],
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        fp8=phase.fp8,
        fp8_recipe="tensorwise",  # scales of the tensor at hand: no history that a checkpoint would have to hold
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
        apply_rope_fusion=stack.fused_rope,
        persist_layer_norm=False,
        **(parallel.recompute.megatron if parallel.recompute else {}),
    )


def _leave(weight: torch.Tensor) -> torch.Tensor:
    """Initialises nothing: every phase loads its weights."""
    return weight


def build(model: ModelConfig, phase: Phase, stack: Stack, device: torch.device) -> list[torch.nn.Module]:
    """This rank's chunks of the model, one for each virtual stage, with weights yet to be loaded.

    They are on `device`, in the precision's dtype, and share one configuration.
    """
    config = transformer_config(model, phase, stack)
    stages = phase.parallel.virtual_pipeline
    layers = config.num_layers // (phase.parallel.pipeline * stages)
    block = TransformerBlockSubmodules(layer_specs=[stack.layer] * layers, layer_norm=stack.norm)
    chunks = []
    for stage in range(stages):
        place = {"ignore_virtual": False, "vp_stage": stage if stages > 1 else None}
        module = GPTModel(
            config=config,
            transformer_layer_spec=block,
            vocab_size=model.padded_vocab_size,
            max_sequence_length=model.sequence_length,
            pre_process=parallel_state.is_pipeline_first_stage(**place),
            post_process=parallel_state.is_pipeline_last_stage(**place),
            share_embeddings_and_output_weights=model.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=model.rope_base,
            vp_stage=place["vp_stage"],
        )
        if model.rope_scaling:  # Megatron's own knows llama3's with fixed constants only
            module.rotary_pos_emb.inv_freq = inverse_frequencies(model).to(module.rotary_pos_emb.inv_freq.device)
        module.to(device)
        chunks.append(module if phase.precision == "fp32" else Float16Module(config, module))
    return chunks
