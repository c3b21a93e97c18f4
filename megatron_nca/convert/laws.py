"""How parts start that are not carried, beyond the model's own laws; equal for every layout of source and model.

Numbers come from the streams of `initialise.py`, so that a seed and a name decide them.
"""

import dataclasses

import numpy as np
import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.initialise import Law, TensorSpec, random_bits

_BLOCK = 1 << 20
_RELEASED_STD = 0.02


def with_law(spec: TensorSpec, word: str, model: ModelConfig) -> TensorSpec:
    """`spec` with the law of a word: own, released or normal:STD; numbers of other scales of one law are in ratio.

    released: what the paper's code gives a part that it makes anew: N(0, 0.02) for matrices of layers, 1 for norms,
    torch's defaults for the rest, N(0, 1) for the embedding and U(+-1/sqrt(H)) for the head (parity E3).
    """
    if word == "own":
        return spec
    if word.startswith("normal:"):
        return dataclasses.replace(spec, law=Law("normal", float(word.removeprefix("normal:"))))
    if spec.component in ("norms", "final_norm"):
        law = Law("constant", 1.0)
    elif spec.component == "head":
        law = Law("uniform", model.hidden_size**-0.5)
    else:
        law = Law("normal", 1.0 if spec.component == "embedding" else _RELEASED_STD)
    return dataclasses.replace(spec, law=law)


def mean_rows(source: torch.Tensor, rows: int, shape: tuple[int, int], filled: int) -> torch.Tensor:
    """The mean of the first `rows` rows of `source`, in each of the first `filled` rows of a tensor; zeros below."""
    result = torch.zeros(shape)
    result[:filled] = source[:rows].mean(0, dtype=torch.float64).float()
    return result


def permute(values: torch.Tensor, result: torch.Tensor, seed: int, name: str) -> None:
    """Put the numbers of `values` into `result`, of the same shape, at other places; a few megabytes beside both where
    they are contiguous."""
    flat = values.reshape(-1)
    filled = result.view(-1) if result.is_contiguous() else torch.empty_like(flat)
    keys = random_bits(seed, f"permutation of {name}").random_raw(4)
    for first in range(0, flat.numel(), _BLOCK):
        last = min(first + _BLOCK, flat.numel())
        filled[first:last] = flat[torch.from_numpy(_places(np.arange(first, last), flat.numel(), keys))]
    if not result.is_contiguous():
        result.copy_(filled.view(result.shape))


def cycle(layers: tuple[int, ...], seed: int) -> dict[int, int]:
    """A random cycle over distinct layers: none stays where it was (Sattolo's algorithm)."""
    order = list(layers)
    words = random_bits(seed, f"cycle of layers {layers}").random_raw(len(order))
    for last in range(len(order) - 1, 0, -1):
        other = int(words[last] % np.uint64(last))
        order[last], order[other] = order[other], order[last]
    return dict(zip(layers, order, strict=True))


def _places(index: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """A pseudo-random permutation of range(count), at some of its places.

    A Feistel network over the next even power of 2, walked on until it is back inside (Black and Rogaway 2002): it
    needs no table of all places.
    """
    half = np.uint64(max(1, (int(count - 1).bit_length() + 1) // 2))
    places = _feistel(index.astype(np.uint64), half, keys)
    while (outside := places >= count).any():
        places[outside] = _feistel(places[outside], half, keys)
    return places.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return left << half | right


def _mixed(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
