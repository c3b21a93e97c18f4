"""The same model in plain PyTorch: what `model.py` must equal, and what its overhead is measured against.

Parameters have the keys and shapes of a checkpoint (docs/architecture.md) with the layers apart, so that either side
can load the other's weights.
"""

import torch
import torch.nn.functional as F
from torch import nn

from megatron_nca.config.model import ModelConfig
from megatron_nca.mcore.rotary import inverse_frequencies

# Shapes: B batch, S sequence, H hidden, N heads, G key/value heads, D head size, F ffn, V padded vocabulary.


class _Layer(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.model = model
        groups, size = model.query_groups, model.head_size
        self.attention_norm = nn.RMSNorm(model.hidden_size, eps=model.norm_epsilon)
        self.qkv = nn.Linear(model.hidden_size, (model.num_heads + 2 * groups) * size, bias=False)
        self.proj = nn.Linear(model.num_heads * size, model.hidden_size, bias=False)
        self.mlp_norm = nn.RMSNorm(model.hidden_size, eps=model.norm_epsilon)
        self.fc1 = nn.Linear(model.hidden_size, 2 * model.ffn_hidden_size, bias=False)
        self.fc2 = nn.Linear(model.ffn_hidden_size, model.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        hidden = hidden + self._attention(self.attention_norm(hidden), rotation)
        gate, up = self.fc1(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.fc2(F.silu(gate) * up)

    def _attention(self, hidden: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        model, (batch, length, _) = self.model, hidden.shape
        groups, size = model.query_groups, model.head_size
        per_group = model.num_heads // groups
        grouped = self.qkv(hidden).view(batch, length, groups, (per_group + 2) * size)
        query, key, value = grouped.split([per_group * size, size, size], dim=-1)
        query = query.reshape(batch, length, model.num_heads, size).transpose(1, 2)
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        query, key = _rotate(query, rotation), _rotate(key, rotation)
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=per_group > 1)
        return self.proj(context.transpose(1, 2).reshape(batch, length, -1))


def _rotate(heads: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding of (B, N, S, D), halves rotated against each other."""
    cosine, sine = rotation
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine


class LlamaReference(nn.Module):
    """Tokens (B, S) and labels (B, S) to the loss of each token (B, S)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(model.padded_vocab_size, model.hidden_size)
        self.layers = nn.ModuleList(_Layer(model) for _ in range(model.num_layers))
        self.final_norm = nn.RMSNorm(model.hidden_size, eps=model.norm_epsilon)
        self.head = nn.Linear(model.hidden_size, model.padded_vocab_size, bias=False)
        if model.tied_embeddings:
            self.head.weight = self.embedding.weight
        angles = torch.outer(torch.arange(model.sequence_length, dtype=torch.float32), inverse_frequencies(model))
        angles = torch.cat((angles, angles), dim=-1)  # (S, D)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, length = self.embedding(tokens), tokens.shape[1]
        rotation = self.cosine[:length], self.sine[:length]
        for layer in self.layers:
            hidden = layer(hidden, rotation)
        return self.head(self.final_norm(hidden))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.logits(tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none").view_as(labels)


CHECKPOINT_KEYS = {
    "embedding.weight": "embedding.word_embeddings.weight",
    "attention_norm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "qkv.weight": "self_attention.linear_qkv.weight",
    "proj.weight": "self_attention.linear_proj.weight",
    "mlp_norm.weight": "mlp.linear_fc1.layer_norm_weight",
    "fc1.weight": "mlp.linear_fc1.weight",
    "fc2.weight": "mlp.linear_fc2.weight",
    "final_norm.weight": "decoder.final_layernorm.weight",
    "head.weight": "output_layer.weight",
}


def checkpoint_key(parameter: str) -> tuple[str, int | None]:
    """The checkpoint's key of a parameter of LlamaReference, and its layer."""
    if not parameter.startswith("layers."):
        return CHECKPOINT_KEYS[parameter], None
    _, layer, rest = parameter.split(".", 2)
    return f"decoder.layers.{CHECKPOINT_KEYS[rest]}", int(layer)
