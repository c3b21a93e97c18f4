"""The fast automaton: the functions of `reference`, with the same arguments and, to the bit, the same results.

N rules or candidates, T states in time, H W grid, S states of a cell. Everything random is a function of
(seed, candidate, purpose), so no result depends on threads, processor or batch.
"""

from collections.abc import Iterator

import numpy as np

from megatron_nca import ops
from megatron_nca.config.law import NcaLaw
from megatron_nca.errors import ConfigError, explain
from megatron_nca.nca import rule
from megatron_nca.nca.rule import RuleShape, Weights

Device = ops.Device


def step(
    weights: Weights, states: np.ndarray, temperature: float, seed: int, *, identity_bias: float = 0.0, threads: int = 1
) -> np.ndarray:
    """One update of all cells: uint8 (N,H,W) from `states` (N,H,W), one grid per rule.

    next = categorical(softmax((logits + identity_bias * onehot) / temperature)); channel padding is read from
    conv0's input channels. Equal to rollout(..., num_steps=1)[:, 1]. Raises ConfigError.
    """
    return rollout(weights, states, 1, temperature, seed, identity_bias=identity_bias, threads=threads)[:, 1]


def rollout(
    weights: Weights,
    states: np.ndarray,
    num_steps: int,
    temperature: float,
    seed: int,
    *,
    identity_bias: float = 0.0,
    threads: int = 1,
    kernel: str = "",
) -> np.ndarray:
    """States uint8 (N,T,H,W), T = num_steps + 1: index i is the state after i updates, index 0 `states` (N,H,W).

    Raises ConfigError for weights or states of a wrong shape or range.
    """
    shape = RuleShape.of(weights)
    states = shape.check_states(states)
    if num_steps < 0:
        raise ConfigError(explain("num_steps", num_steps, "must not be negative.", "0 gives the state itself."))
    height, width = states.shape[1:]
    params = ops.Params(
        num_states=shape.num_states,
        height=height,
        width=width,
        patch=1,
        burn_in_steps=0,
        steps_per_frame=1,
        num_frames=1,
        temperature=rule.check_temperature(temperature),
        identity_bias=identity_bias,
        uniform_start=False,
        wrap_channels=shape.wrap_channels,
        score_frames=1,
        score_token_bytes=4,
        score_delimiters=False,
        emit_scored=False,
    )
    return ops.rollout(params, weights, states, num_steps, rule.check_seed(seed), threads=threads, kernel=kernel)


def draw(
    law: NcaLaw, seed: int, candidates: np.ndarray, *, threads: int = 1, kernel: str = ""
) -> dict[str, np.ndarray]:
    """The weights of the candidates (N,): lecun-normal kernels, zero biases."""
    params = rule.params_of(law)
    return rule.with_zero_biases(
        *ops.draw_rules(params, rule.check_seed(seed), candidates, threads=threads, kernel=kernel)
    )


def score(
    law: NcaLaw,
    seed: int,
    first: int,
    count: int,
    *,
    threads: int = 1,
    kernel: str = "",
    device: Device = "cpu",
) -> np.ndarray:
    """gzip ratios float64 (count,) of candidates first .. first + count - 1, each over a rollout of its own.

    `score_frames` frames from `burn_in_steps` on, tokens as `score_dtype` bytes, level 9 (paper, complexity filter).
    """
    params = rule.params_of(law)
    sizes = ops.score(params, rule.check_seed(seed), first, count, threads=threads, kernel=kernel, device=device)
    return sizes / params.score_bytes


def accept(
    law: NcaLaw,
    seed: int,
    first: int,
    count: int,
    *,
    band: tuple[float, float] | None = None,
    threads: int = 1,
    kernel: str = "",
    device: Device = "cpu",
) -> np.ndarray:
    """Boolean (count,): whether the ratio that `score` gives lies in `band` (the law's), both bounds excluded."""
    params = rule.params_of(law)
    low, high = byte_band(band or law.band, params.score_bytes)
    how = {"threads": threads, "kernel": kernel, "device": device}
    return ops.accept(params, rule.check_seed(seed), first, count, low, high, **how)


def search(
    law: NcaLaw, seed: int, band: tuple[float, float], wanted: int, *, threads: int = 1
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """`accept` and `documents` in one, on a GPU, without an end: `ops.search`. Raises LaunchError without a GPU."""
    params = rule.params_of(law)
    low, high = byte_band(band, params.score_bytes)
    return ops.search(params, rule.check_seed(seed), low, high, wanted, token_dtype(law), threads=threads)


def covers(law: NcaLaw) -> bool:
    """Whether `score` and `accept` do without zlib: `ops.covers`."""
    return ops.covers(rule.params_of(law))


def byte_band(band: tuple[float, float], total: int) -> tuple[int, int]:
    """(low, high): a size of `total` bytes has its ratio in `band`, bounds excluded, where low < size < high."""
    return bytes_at_most(band[0], total), bytes_at_least(band[1], total)


def bytes_at_most(ratio: float, total: int) -> int:
    """The greatest size whose ratio to `total`, in float64 as `score` divides, is at most `ratio`; 2^40 at most."""
    size = int(min(max(ratio * total, 0.0), 2.0**40))
    while size / total > ratio:
        size -= 1
    while size < 2**40 and (size + 1) / total <= ratio:
        size += 1
    return size


def bytes_at_least(ratio: float, total: int) -> int:
    """The least size whose ratio to `total` is at least `ratio`; 2^40 at most, which no buffer reaches."""
    size = int(min(max(ratio * total, 0.0), 2.0**40))
    while size > 0 and (size - 1) / total >= ratio:
        size -= 1
    while size < 2**40 and size / total < ratio:
        size += 1
    return size


def token_dtype(law: NcaLaw) -> type:
    """uint16 where all tokens of the law fit, else int32."""
    return np.uint16 if law.num_tokens <= 2**16 else np.int32


def documents(
    law: NcaLaw,
    seed: int,
    candidates: np.ndarray,
    repeats: np.ndarray,
    *,
    threads: int = 1,
    kernel: str = "",
    device: Device = "cpu",
) -> np.ndarray:
    """Tokens (N, document_tokens) of the candidates (N,), whole frames with delimiters; uint16 where they fit.

    `repeats` (N,) tells sequences of the same rule apart: each has its own initial state and sampling.
    """
    how = {"threads": threads, "kernel": kernel, "device": device}
    return ops.documents(rule.params_of(law), rule.check_seed(seed), candidates, repeats, token_dtype(law), **how)
