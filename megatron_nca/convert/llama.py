"""The tensors of a Llama as its usual modules name and divide them, from and to those of the hub.

The modules are those of Hugging Face's LlamaModel, which other programs keep under names of their own for the rest.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.convert.canonical import CanonicalCheckpoint, CanonicalTensor
from megatron_nca.errors import CheckpointError, ConfigError
from megatron_nca.initialise import tensor_table

_LAYER = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.proj.weight": ("self_attn.o_proj.weight",),
    "mlp_norm.weight": ("post_attention_layernorm.weight",),
    "mlp.fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.fc2.weight": ("mlp.down_proj.weight",),
}
"""Canonical name within a layer -> the tensors there that it consists of."""


@dataclass(frozen=True)
class Names:
    """What a program calls what is around a layer's own names: `layers` is what stands before the layer's number."""

    layers: str
    embedding: str
    final_norm: str
    head: str

    def of(self, name: str) -> tuple[str, ...]:
        """The tensors there that make up the canonical tensor `name`."""
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            return tuple(f"{self.layers}{layer}.{part}" for part in _LAYER[rest])
        return ({"embedding.weight": self.embedding, "final_norm.weight": self.final_norm,
                 "head.weight": self.head}[name],)


HUGGING_FACE = Names("model.layers.", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


@dataclass(frozen=True)
class Box:
    """Where rows of a tensor there lie here: `rows` from `there` on are the rows from `here` on."""

    part: int
    """Which of the tensors there."""
    there: int
    here: int
    rows: int


def boxes(name: str, shape: tuple[int, ...], model: ModelConfig) -> Iterator[Box]:
    """Which rows of the tensors there are which rows of `name`, of `shape` here; rows of padding are in none."""
    if name.endswith("attention.qkv.weight"):
        head, groups = model.head_size, model.query_groups
        queries = model.num_heads // groups * head
        for group in range(groups):
            here = group * (queries + 2 * head)
            yield Box(0, group * queries, here, queries)
            yield Box(1, group * head, here + queries, head)
            yield Box(2, group * head, here + queries + head, head)
    elif name.endswith("mlp.fc1.weight"):
        yield Box(0, 0, 0, model.ffn_hidden_size)
        yield Box(1, 0, model.ffn_hidden_size, model.ffn_hidden_size)
    else:
        yield Box(0, 0, 0, model.vocab_size if name in ("embedding.weight", "head.weight") else shape[0])


def there_of(name: str, shape: tuple[int, ...], model: ModelConfig,
             names: Names = HUGGING_FACE) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors there that make up the canonical tensor `name` of `shape`."""
    rows = [0] * len(names.of(name))
    for box in boxes(name, shape, model):
        rows[box.part] += box.rows
    return [(there, (count, *shape[1:])) for there, count in zip(names.of(name), rows, strict=True)]


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
    for spec in tensor_table(model):
        found = []
        for there, shape in there_of(spec.name, spec.shape, model, names):
            part = left.pop(there, None)
            if part is None:
                faults.append(f"{there} is missing")
            elif part.shape != shape:
                faults.append(f"{there} has shape {part.shape}, expected {shape}")
            else:
                found.append(part)
        if len({part.dtype for part in found}) > 1:
            faults.append(f"{', '.join(names.of(spec.name))} are of different types")
        if found:
            read = partial(_joined, found, tuple(boxes(spec.name, spec.shape, model)), spec.shape)
            tensors.append(CanonicalTensor(spec.name, spec.shape, found[0].dtype, read))
    faults += [f"{name} is not a tensor of this model" for name in left]
    if faults:
        raise CheckpointError(f"{origin}: does not hold the model it describes: {'; '.join(faults[:8])}"
                              f"{f' and {len(faults) - 8} more' if faults[8:] else ''}. Cure: use another checkpoint.")
    return tuple(tensors)


def divide(checkpoint: CanonicalCheckpoint, names: Names) -> Iterator[tuple[str, Part]]:
    """Every tensor of `checkpoint` as its parts, without the vocabulary's rows of padding."""
    for spec in tensor_table(checkpoint.model):
        tensor = checkpoint.tensor(spec.name)
        placed = tuple(boxes(spec.name, spec.shape, checkpoint.model))
        for number, (there, shape) in enumerate(there_of(spec.name, spec.shape, checkpoint.model, names)):
            own = tuple(box for box in placed if box.part == number)
            yield there, Part(shape, tensor.dtype, partial(_part, tensor, own))


def _joined(parts: list[Part], placed: tuple[Box, ...], shape: tuple[int, ...]) -> torch.Tensor:
    """One part in memory beside the result."""
    result = torch.zeros(shape, dtype=getattr(torch, parts[0].dtype))
    for number, part in enumerate(parts):
        values = part.read()
        for box in placed:
            if box.part == number:
                result[box.here:box.here + box.rows] = values[box.there:box.there + box.rows]
    return result


def _part(tensor: CanonicalTensor, placed: tuple[Box, ...]) -> torch.Tensor:
    values = tensor.read()
    rows = [values[box.here:box.here + box.rows] for box in placed]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
