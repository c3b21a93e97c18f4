"""Causal core attention on torch's scaled_dot_product_attention, also for sequences split by context parallelism.

With C context-parallel ranks a sequence is cut into 2 C chunks, of which rank r holds r and 2 C - 1 - r: as much work
for each under a causal mask. Rotary angles, tokens and losses come in the same order. Keys and values are gathered
whole, so a rank keeps activations of S / C positions, and keys and values of S for one layer at a time.
"""

import contextlib

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention.bias import causal_lower_right

# Shapes: S sequence, C context-parallel ranks, B micro-batch, N heads and G key/value heads of this rank, D head size.


def held_positions(length: int, ranks: int, rank: int) -> torch.Tensor:
    """Positions (length / ranks,) of a sequence that a context-parallel rank holds, in its order."""
    chunks = torch.arange(length).view(2 * ranks, -1)
    return torch.cat((chunks[rank], chunks[2 * ranks - 1 - rank]))


class SdpaAttention(torch.nn.Module):
    """No (S, S) mask of its own, and flash kernels where torch has them."""

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
        self.context = parallel_state.get_context_parallel_group()

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **unused: object,
    ) -> torch.Tensor:
        """query (S / C, B, N, D), key and value (S / C, B, G, D) -> (S / C, B, N * D)."""
        dropout = self.config.attention_dropout if self.training else 0.0
        stream = tensor_parallel.get_cuda_rng_tracker().fork() if dropout else contextlib.nullcontext()
        with stream:
            if self.context.size() == 1:
                return _attend(query, key, value, dropout)
            return self._attend_to_all_chunks(query, key, value, dropout)

    def _attend_to_all_chunks(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        ranks, rank = self.context.size(), self.context.rank()
        key, value = _gather(torch.cat((key, value), dim=-1), self.context).chunk(2, dim=-1)
        contexts = []
        for chunk, queries in zip((rank, 2 * ranks - 1 - rank), query.chunk(2), strict=True):
            seen = (chunk + 1) * len(queries)
            contexts.append(_attend(queries, key[:seen], value[:seen], dropout))
        return torch.cat(contexts)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> torch.Tensor:
    """Causal attention of the last queries of a sequence: query (Q, B, N, D), key and value (K, B, G, D), Q <= K."""
    query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    square = query.shape[2] == key.shape[2]
    context = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if square else causal_lower_right(query.shape[2], key.shape[2]),
        dropout_p=dropout,
        is_causal=square,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return context.permute(2, 0, 1, 3).flatten(2)


def _gather(local: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """(S / C, …) of each rank to (S, …) in the order of the sequence; gradients are summed over the ranks."""
    chunks = tensor_parallel.gather_from_sequence_parallel_region(local, group=group).chunk(2 * group.size())
    return torch.cat([*chunks[::2], *reversed(chunks[1::2])])
