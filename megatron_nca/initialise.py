"""The tensors of a model and the law by which each one starts, the same at every layout.

Megatron's own initialisation differs between pipeline layouts, so every phase starts from a checkpoint made here
(`convert transfer`); training only loads. A tensor's numbers depend on the seed, its name and the position in it, on
nothing else: layer 3 is the same in a model of 4 and of 24 layers, row 17 of the embedding the same for every
vocabulary. The bits come from NumPy's Philox bit generator, whose stream NumPy keeps fixed, and become normal numbers
by the arithmetic below rather than by `numpy.random.Generator`, whose distributions may change.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_nca.config.components import LAYER_PARTS, OTHER_PARTS, component_of
from megatron_nca.config.model import ModelConfig

LAYER_TENSORS = {kind: component_of(part) for part, kind in LAYER_PARTS.items()}
OTHER_TENSORS = {kind: component_of(part) for part, kind in OTHER_PARTS.items()}
"""Tensor, of a layer or not -> the component it belongs to."""

_BLOCK = 1 << 17
"""Elements drawn at once: even, so that pairs of normal numbers never straddle two blocks."""


@dataclass(frozen=True)
class Law:
    """`normal`: mean 0, standard deviation `scale`. `uniform`: in (-scale, scale). `constant`: `scale` everywhere."""

    kind: Literal["normal", "uniform", "constant"]
    scale: float

    def __str__(self) -> str:
        return {"normal": f"N(0, {self.scale:.6g})", "uniform": f"U(-{self.scale:.6g}, {self.scale:.6g})",
                "constant": f"{self.scale:g}"}[self.kind]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model: `name` is canonical, such as ``layers.3.attention.qkv.weight``."""

    name: str
    shape: tuple[int, ...]
    component: str
    layer: int | None
    law: Law
    filled_rows: int | None = None
    """Rows that belong to the vocabulary; those after them are padding and zero. None: all rows."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def tensor_table(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """All tensors of a model, embedding first, head last; a tied head is none.

    Shapes are those of docs/architecture.md, layers unstacked.

    Laws: layer matrices N(0, init_std), the two output projections divided by sqrt(2 num_layers) only if
    scaled_residual_init; norms 1; embedding N(0, embedding_init_std); head as head_init says. The defaults are the
    released code's: nn.Embedding's and nn.Linear's own (parity E3), no residual scaling.
    """
    table = [_vocabulary_spec("embedding.weight", config, Law("normal", config.embedding_init_std))]
    for layer in range(config.num_layers):
        table += [_layer_spec(layer, kind, config) for kind in LAYER_TENSORS]
    table.append(TensorSpec("final_norm.weight", (config.hidden_size,), "final_norm", None, Law("constant", 1.0)))
    if config.tied_embeddings:
        return tuple(table)
    uniform = config.head_init == "kaiming_uniform"
    head_law = Law("uniform", config.hidden_size**-0.5) if uniform else Law("normal", config.init_std)
    table.append(_vocabulary_spec("head.weight", config, head_law))
    return tuple(table)


def initial_tensor(spec: TensorSpec, seed: int) -> np.ndarray:
    """The start of one tensor, float32 of `spec.shape`; beside the result it needs a few megabytes."""
    flat = np.zeros(spec.size, dtype=np.float32)
    filled = spec.size if spec.filled_rows is None else spec.filled_rows * (spec.size // spec.shape[0])
    if spec.law.kind == "constant":
        flat[:filled] = spec.law.scale
        return flat.reshape(spec.shape)
    draw = _normal if spec.law.kind == "normal" else _symmetric_uniform
    bits = random_bits(seed, spec.name)
    for first in range(0, filled, _BLOCK):
        count = min(_BLOCK, filled - first)
        unit = draw(bits.random_raw(count + count % 2))  # whole pairs, so that a cut vocabulary changes nothing
        flat[first:first + count] = (unit * spec.law.scale)[:count]
    return flat.reshape(spec.shape)


def _layer_spec(layer: int, kind: str, config: ModelConfig) -> TensorSpec:
    hidden, ffn = config.hidden_size, config.ffn_hidden_size
    qkv_rows = hidden + 2 * config.query_groups * config.head_size
    shape = {"attention_norm.weight": (hidden,), "attention.qkv.weight": (qkv_rows, hidden),
             "attention.proj.weight": (hidden, hidden), "mlp_norm.weight": (hidden,),
             "mlp.fc1.weight": (2 * ffn, hidden), "mlp.fc2.weight": (hidden, ffn)}[kind]
    law = Law("constant", 1.0) if len(shape) == 1 else Law("normal", config.init_std)
    if kind in ("attention.proj.weight", "mlp.fc2.weight") and config.scaled_residual_init:
        law = Law("normal", config.init_std / math.sqrt(2 * config.num_layers))
    return TensorSpec(f"layers.{layer}.{kind}", shape, LAYER_TENSORS[kind], layer, law)


def _vocabulary_spec(name: str, config: ModelConfig, law: Law) -> TensorSpec:
    shape = (config.padded_vocab_size, config.hidden_size)
    return TensorSpec(name, shape, OTHER_TENSORS[name], None, law, filled_rows=config.vocab_size)


def random_bits(seed: int, name: str) -> np.random.Philox:
    """One tensor's stream of 64-bit words (`random_raw`)."""
    digest = hashlib.sha256(f"megatron_nca initial tensor\n{seed}\n{name}".encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64))


def _normal(raw: np.ndarray) -> np.ndarray:
    """Box-Muller in float64: words 2i and 2i+1 of `raw` (even length) become the normal numbers 2i and 2i+1."""
    radius = np.sqrt(-2.0 * np.log(((raw[0::2] >> np.uint64(11)) + np.uint64(1)) * 2.0**-53))  # of (0, 1]
    angle = (raw[1::2] >> np.uint64(11)) * (2.0 * math.pi * 2.0**-53)
    result = np.empty(raw.size)
    result[0::2] = radius * np.cos(angle)
    result[1::2] = radius * np.sin(angle)
    return result


def _symmetric_uniform(raw: np.ndarray) -> np.ndarray:
    """Uniform in (-1, 1), float64, symmetric about 0."""
    return ((raw >> np.uint64(11)) + 0.5) * 2.0**-52 - 1.0
