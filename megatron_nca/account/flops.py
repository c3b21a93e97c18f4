"""Floating-point operations of training, and how long devices take for them."""

from megatron_nca.config.model import ModelConfig

FORWARD_AND_BACKWARD = 3
"""A matrix product forward is repeated twice backward: for the gradient of its input and of its weight."""
PER_MULTIPLY_ADD = 2
FORMULA = "6 x tokens x (matrices of the layers and the head + layers x hidden x sequence)"


def flops_per_token(model: ModelConfig, *, causal: bool = True) -> int:
    """Model FLOPs of one training token, forward and backward: 6 (matrices + L H S).

    The convention of `num_floating_point_operations` in Megatron-LM (megatron/training/training.py): every matrix
    product of qkv, proj, the gated MLP and the output layer on the padded vocabulary, and the products QK^T and
    (QK^T)V, of which the causal mask leaves half (`causal=False`: all, as in the MFU of PaLM, arXiv 2204.02311).
    Look-ups in the embedding, norms, the softmax and recomputation do not count.
    """
    hidden = model.hidden_size
    qkv_rows = hidden + 2 * model.query_groups * model.head_size
    layer = hidden * qkv_rows + hidden * hidden + 3 * hidden * model.ffn_hidden_size
    keys = model.sequence_length if causal else 2 * model.sequence_length  # half of a row's keys, for two products
    multiply_adds = model.num_layers * (layer + hidden * keys) + hidden * model.padded_vocab_size
    return FORWARD_AND_BACKWARD * PER_MULTIPLY_ADD * multiply_adds


def device_hours(flops: int, peak_flops: float, mfu: float) -> float:
    """Hours that one device takes for `flops` at `mfu` (model FLOPs utilisation, 0 to 1) of `peak_flops` a second."""
    return flops / (peak_flops * mfu) / 3600
