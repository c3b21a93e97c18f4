"""Where the parts of `config/components.py` lie in a model's tensors."""

import torch

from megatron_nca.config.model import ModelConfig


def part_of(tensor: torch.Tensor, part: str, model: ModelConfig) -> torch.Tensor:
    """A view of one part of a contiguous tensor that holds it, the tensor itself where it is all of it.

    q (groups, heads / groups x head_size, H), k and v (groups, head_size, H): the qkv tensor has for each group of
    heads its queries, then its key, then its value. gate and up (F, H).
    """
    if part in ("q", "k", "v"):
        size, queries = model.head_size, model.num_heads // model.query_groups * model.head_size
        first, last = {"q": (0, queries), "k": (queries, queries + size), "v": (queries + size, None)}[part]
        return tensor.view(model.query_groups, queries + 2 * size, model.hidden_size)[:, first:last]
    if part in ("gate", "up"):
        half = model.ffn_hidden_size
        return tensor[:half] if part == "gate" else tensor[half:]
    return tensor


def part_shape(shape: tuple[int, ...], part: str, model: ModelConfig) -> tuple[int, ...]:
    """Rows and columns of one part of a tensor of `shape`."""
    rows = {"q": model.hidden_size, "k": model.query_groups * model.head_size, "v": model.query_groups
            * model.head_size, "gate": model.ffn_hidden_size, "up": model.ffn_hidden_size}
    return (rows[part], *shape[1:]) if part in rows else shape
