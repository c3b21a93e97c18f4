"""The tensors of a Llama as its usual modules name and divide them, from and to those of the hub.

The modules are those of Hugging Face's LlamaModel, which other programs keep under names of their own for the rest.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.convert.canonical import CanonicalCheckpoint, CanonicalTensor
from megatron_nca.errors import CheckpointError, ConfigError

LAYER_PARTS = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.proj.weight": ("self_attn.o_proj.weight",),
    "mlp_norm.weight": ("post_attention_layernorm.weight",),
    "mlp.fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.fc2.weight": ("mlp.down_proj.weight",),
}
"""Canonical name within a layer -> the tensors that it consists of."""


@dataclass(frozen=True)
class Names:
    """What a program calls what is around a layer's own names: `layers` is what stands before the layer's number."""

    layers: str
    embedding: str
    final_norm: str
    head: str

    def of(self, canonical: str) -> tuple[str, ...]:
        """The names of the tensors that the canonical one consists of."""
        if match := re.fullmatch(r"layers\.(\d+)\.(.+)", canonical):
            return tuple(f"{self.layers}{match[1]}.{part}" for part in LAYER_PARTS[match[2]])
        return ({"embedding.weight": self.embedding, "final_norm.weight": self.final_norm,
                 "head.weight": self.head}[canonical],)


HUGGING_FACE = Names("model.layers.", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


@dataclass(frozen=True)
class Part:
    """One tensor under its program's name; `read()` gives it in its type, on the CPU."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], torch.Tensor]


def shape_of(origin: str, parts: Mapping[str, Part], names: Names, num_heads: int) -> dict:
    """The settings of a model that its tensors and the number of heads decide. Raises CheckpointError."""
    numbers = [int(match[1]) for name in parts if (match := re.match(re.escape(names.layers) + r"(\d+)\.", name))]
    needed = (names.embedding, *(f"{names.layers}0.{part}" for part in
                                 ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.gate_proj.weight")))
    missing = [name for name in needed if name not in parts or len(parts[name].shape) != 2]
    if missing:
        raise CheckpointError(f"{origin}: holds no Llama-like model: {', '.join(missing)} is not there as a matrix. "
                              "Cure: use another checkpoint.")
    embedding, query, key, gate = (parts[name].shape for name in needed)
    if num_heads < 1 or query[0] % num_heads or key[0] % (query[0] // num_heads):
        raise CheckpointError(f"{origin}: num_heads = {num_heads}: does not divide queries of {query[0]} and keys of "
                              f"{key[0]} rows into heads of one size. Cure: give the model's own with --num-heads.")
    groups = key[0] // (query[0] // num_heads)
    return {"num_layers": max(numbers) + 1, "hidden_size": embedding[1], "num_heads": num_heads,
            "num_query_groups": None if groups == num_heads else groups, "ffn_hidden_size": gate[0],
            "vocab_size": embedding[0], "tied_embeddings": names.head not in parts}


def build_model(origin: str, settings: dict) -> ModelConfig:
    """A ModelConfig; what does not fit is said of `origin`. Raises CheckpointError."""
    try:
        return ModelConfig(**settings)
    except ConfigError as error:
        raise CheckpointError(f"{origin}: {error}") from error


def gather(origin: str, parts: Mapping[str, Part], names: Names, model: ModelConfig) -> tuple[CanonicalTensor, ...]:
    """The tensors of `model` made of `parts`, each used exactly once; rows of padding are zero.

    Raises CheckpointError naming each part too many, too few, of another shape, or of another type than its fellows.
    """
    faults, tensors, left = [], [], dict(parts)
    for name, shapes in _divided_shapes(model).items():
        found = []
        for part_name, shape in zip(names.of(name), shapes, strict=True):
            part = left.pop(part_name, None)
            if part is None:
                faults.append(f"{part_name} is missing")
            elif part.shape != shape:
                faults.append(f"{part_name} has shape {part.shape}, expected {shape}")
            else:
                found.append(part)
        if len(found) < len(shapes):
            continue
        if len({part.dtype for part in found}) > 1:
            faults.append(f"{', '.join(names.of(name))} are of different types")
        tensors.append(_joined(name, found, model))
    faults += [f"{name} is not a tensor of this model" for name in left]
    if faults:
        raise CheckpointError(f"{origin}: does not hold the model it describes: {'; '.join(faults[:8])}"
                              f"{f' and {len(faults) - 8} more' if faults[8:] else ''}. Cure: use another checkpoint.")
    return tuple(tensors)


def divide(checkpoint: CanonicalCheckpoint, names: Names) -> Iterator[tuple[str, Part]]:
    """Every tensor of `checkpoint` as its parts, without the vocabulary's rows of padding."""
    model = checkpoint.model
    by_name = {tensor.name: tensor for tensor in checkpoint.tensors}
    for name, shapes in _divided_shapes(model).items():
        tensor = by_name[name]
        for number, (part_name, shape) in enumerate(zip(names.of(name), shapes, strict=True)):
            yield part_name, Part(shape, tensor.dtype, partial(_part, tensor, number, model))


def _divided_shapes(model: ModelConfig) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Canonical name -> the shapes of its parts, embedding first, head last if it is not tied."""
    hidden, ffn, keys = model.hidden_size, model.ffn_hidden_size, model.query_groups * model.head_size
    shapes = {"attention_norm.weight": ((hidden,),), "mlp_norm.weight": ((hidden,),),
              "attention.qkv.weight": ((hidden, hidden), (keys, hidden), (keys, hidden)),
              "attention.proj.weight": ((hidden, hidden),),
              "mlp.fc1.weight": ((ffn, hidden), (ffn, hidden)), "mlp.fc2.weight": ((hidden, ffn),)}
    rows = ((model.vocab_size, hidden),)
    table = {"embedding.weight": rows}
    table |= {f"layers.{layer}.{kind}": shapes[kind] for layer in range(model.num_layers) for kind in LAYER_PARTS}
    table["final_norm.weight"] = ((hidden,),)
    return table if model.tied_embeddings else {**table, "head.weight": rows}


def _joined(name: str, parts: list[Part], model: ModelConfig) -> CanonicalTensor:
    rows = sum(part.shape[0] for part in parts)
    if name in ("embedding.weight", "head.weight"):
        rows = model.padded_vocab_size

    def read() -> torch.Tensor:
        values = [part.read() for part in parts]
        if len(values) == 3:
            return _queries_by_group(values, model)
        if len(values) == 1 and rows > len(values[0]):
            values.append(values[0].new_zeros(rows - len(values[0]), *values[0].shape[1:]))
        return values[0] if len(values) == 1 else torch.cat(values)

    return CanonicalTensor(name, (rows, *parts[0].shape[1:]), parts[0].dtype, read)


def _queries_by_group(values: list[torch.Tensor], model: ModelConfig) -> torch.Tensor:
    """Megatron keeps each group's queries, key and value together."""
    grouped = [value.reshape(model.query_groups, -1, value.shape[-1]) for value in values]
    return torch.cat(grouped, dim=1).reshape(-1, model.hidden_size)


def _part(tensor: CanonicalTensor, number: int, model: ModelConfig) -> torch.Tensor:
    values = tensor.read()
    if tensor.name in ("embedding.weight", "head.weight"):
        return values[:model.vocab_size]
    if tensor.name.endswith("mlp.fc1.weight"):
        return values[number * model.ffn_hidden_size:][:model.ffn_hidden_size]
    if tensor.name.endswith("attention.qkv.weight"):
        queries = model.hidden_size // model.query_groups
        first, count = ((0, queries), (queries, model.head_size), (queries + model.head_size, model.head_size))[number]
        return values.reshape(model.query_groups, -1, model.hidden_size)[:, first:first + count].reshape(
            -1, model.hidden_size)
    return values


def bytes_of(parts: Mapping[str, Part]) -> int:
    """What the values of `parts` take on a disk."""
    return sum(getattr(torch, part.dtype).itemsize * math.prod(part.shape) for part in parts.values())
