"""The automaton in plain NumPy: slow, short, and the truth that the compiled module must equal to the bit.

Same functions and arguments as `simulate`. Every float32 operation is the one of csrc/nca_cell.h and csrc/float_math.h,
in the same order; fused multiply-adds are emulated exactly.
N rules or candidates, T states in time, H W grid, S states of a cell, C input channels.
"""

import gzip
import math

import numpy as np

from megatron_nca.config.law import NcaLaw
from megatron_nca.nca import patches, rule
from megatron_nca.nca.rule import NUM_FEATURES, NUM_HIDDEN, RuleShape, Weights

RULE, SCORE_START, SCORE_NOISE, EMIT_START, EMIT_NOISE, GIVEN_NOISE = range(6)
"""Purposes of random bits: csrc/counter_rng.h."""
LOGIT_WINDOW = np.float32(17)
LN_2 = np.float32(0.693147182464599609375)
CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)
"""Inverse error function: M. Giles, "Approximating the erfinv function" (2012)."""


def philox(counter: list, key0: np.ndarray, key1: np.ndarray) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al. 2011): four words from four broadcastable words and a key of two."""
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    key0, key1 = np.uint64(key0), np.uint64(key1)
    for _ in range(10):
        left, right = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (right >> np.uint64(32)) ^ c1 ^ key0,
            right & mask,
            (left >> np.uint64(32)) ^ c3 ^ key1,
            left & mask,
        )
        key0, key1 = (key0 + np.uint64(0x9E3779B9)) & mask, (key1 + np.uint64(0xBB67AE85)) & mask
    return [c0, c1, c2, c3]


def bits_at(seed: int, candidates: np.ndarray, purpose: int, repeats: np.ndarray, step: int, count: int) -> np.ndarray:
    """Random words uint64 below 2^32 (N, count, 4) of `count` draws of each candidate at one step."""
    counter = [np.arange(count) | purpose << 24, step, np.asarray(candidates)[:, None], np.asarray(repeats)[:, None]]
    words = philox(counter, seed & 0xFFFFFFFF, seed >> 32)
    return np.stack(np.broadcast_arrays(*words), axis=-1)


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 a * b + c, rounded once: the product is exact in float64, the sum is rounded to odd before float32."""
    product = np.float64(a) * np.float64(b)
    addend = np.float64(c)
    total = product + addend
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    inexact_even = (error != 0) & (np.asarray(total).view(np.int64) & 1 == 0)
    return np.where(inexact_even, np.nextafter(total, np.copysign(np.inf, error)), total).astype(np.float32)


def polynomial(coefficients: tuple, x: np.ndarray) -> np.ndarray:
    """Horner's rule from the highest power on."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = fma32(value, x, np.float32(coefficient))
    return value


def log32(x: np.ndarray) -> np.ndarray:
    """Natural logarithm of positive normal float32: csrc/float_math.h."""
    shifted = (x.view(np.uint32) - np.uint32(0x3F3504F3)).view(np.int32)
    m = ((shifted & 0x007FFFFF) + 0x3F3504F3).view(np.float32)
    s = (m - np.float32(1)) / (m + np.float32(1))
    series = polynomial(tuple(np.float32(2) / np.float32(n) for n in (9, 7, 5, 3, 1)), s * s)
    return fma32((shifted >> 23).astype(np.float32), LN_2, s * series)


def exp32(x: np.ndarray) -> np.ndarray:
    """e^x for float32 in -80..80: csrc/float_math.h."""
    scaled = x * np.float32(1.44269502162933349609375)
    k = (scaled + np.where(scaled < 0, np.float32(-0.5), np.float32(0.5))).astype(np.int32)
    r = fma32(k.astype(np.float32), -LN_2, x)
    coefficients = tuple(np.float32(1) / np.float32(math.factorial(n)) for n in range(7, -1, -1))
    return polynomial(coefficients, r) * ((k + 127) << 23).astype(np.int32).view(np.float32)


def unit_uniform(words: np.ndarray) -> np.ndarray:
    """float32 in [0, 1) on multiples of 2^-24."""
    return (words >> np.uint64(8)).astype(np.float32) * np.float32(2**-24)


def symmetric_uniform(words: np.ndarray) -> np.ndarray:
    """float32 in (-1, 1) on odd multiples of 2^-23."""
    return ((words >> np.uint64(9)).astype(np.int64) * 2 + 1 - (1 << 23)).astype(np.float32) * np.float32(2**-23)


def standard_normal(u: np.ndarray) -> np.ndarray:
    """N(0, 1) from a symmetric uniform."""
    w = -log32(fma32(-u, u, np.float32(1)))
    centre = polynomial(CENTRE, w - np.float32(2.5)) * u
    tail = polynomial(TAIL, np.sqrt(w) - np.float32(3)) * u
    return np.float32(1.41421353816986083984375) * np.where(w < 5, centre, tail)


def draw(law: NcaLaw, seed: int, candidates: np.ndarray) -> dict[str, np.ndarray]:
    """The weights of the candidates (N,): lecun-normal kernels, zero biases."""
    wrap = law.channel_padding == "wrap"
    shapes = rule.kernel_shapes(law.num_states, wrap)
    sizes = [math.prod(shape) for shape in shapes.values()]
    words = bits_at(seed, candidates, RULE, np.zeros_like(candidates), 0, -(-sum(sizes) // 4))
    words = words.reshape(len(candidates), -1)[:, : sum(sizes)]
    normals = standard_normal(symmetric_uniform(words) * np.float32(0.954499721527099609375))
    parts = np.split(normals, np.cumsum(sizes)[:-1], axis=1)
    fan_ins = rule.fan_ins(law.num_states, wrap)
    kernels = [
        (part * rule.deviation(fan_in)).reshape(-1, *shape)
        for part, fan_in, shape in zip(parts, fan_ins, shapes.values(), strict=True)
    ]
    return rule.with_zero_biases(*kernels)


def initial_states(law: NcaLaw, seed: int, candidates: np.ndarray, purpose: int, repeats: np.ndarray) -> np.ndarray:
    """States uint8 (N,H,W): one categorical with N(0, 1) logits shared by all cells of a rollout, or uniform (D03)."""
    cells, states = law.height * law.width, law.num_states
    draws = -(-cells // 4)
    words = bits_at(seed, candidates, purpose, repeats, 0, draws + -(-states // 4)).reshape(len(candidates), -1)
    of_cells = words[:, :cells]
    if law.initial_state == "uniform":
        chosen = of_cells * np.uint64(states) >> np.uint64(32)
    else:
        logits = standard_normal(symmetric_uniform(words[:, 4 * draws : 4 * draws + states]))
        cumulative = np.cumsum(exp32(logits - logits.max(axis=1, keepdims=True)), axis=1, dtype=np.float32)
        target = unit_uniform(of_cells) * cumulative[:, -1:]
        chosen = (cumulative[:, None, :-1] <= target[..., None]).sum(axis=-1)
    return chosen.astype(np.uint8).reshape(-1, law.height, law.width)


def logits(weights: Weights, states: np.ndarray) -> np.ndarray:
    """float32 (N,H,W,S) of the next state of each cell, from `states` (N,H,W)."""
    shape = RuleShape.of(weights)
    num, height, width = states.shape
    arrays = {name: np.asarray(values, dtype=np.float32) for name, values in weights.items()}
    table = _table(arrays["conv0"].reshape(num, 9, -1, NUM_FEATURES), shape)
    bordered = np.pad(states, ((0, 0), (1, 1), (1, 1)), mode="wrap")
    rows = np.arange(num)[:, None, None]
    features = np.broadcast_to(arrays["conv0_bias"][:, None, None], (num, height, width, NUM_FEATURES))
    for y in range(3):  # a row of the neighbourhood is summed first: (left + centre) + right
        left, centre, right = (table[rows, 3 * y + x, bordered[:, y : y + height, x : x + width]] for x in range(3))
        features = features + ((left + centre) + right)
    return _layers(arrays, features)


def _table(conv0: np.ndarray, shape: RuleShape) -> np.ndarray:
    """(N, 9, S, 4): what a neighbour in each state adds. Padded by wrap, channel 0 is state S-1 again, S+1 is 0."""
    if not shape.wrap_channels:
        return conv0
    table = conv0[:, :, 1:-1].copy()
    table[:, :, 0] += conv0[:, :, -1]
    table[:, :, -1] += conv0[:, :, 0]
    return table


def _layers(arrays: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    spread = [arrays[name][:, None, None] for name in ("conv1", "conv1_bias", "conv2", "conv2_bias")]
    conv1, hidden, conv2, result = spread
    for k in range(NUM_FEATURES):
        hidden = fma32(features[..., k, None], conv1[:, :, :, k], hidden)
    hidden = np.where(hidden > 0, hidden, np.float32(0))
    for j in range(NUM_HIDDEN):
        result = fma32(hidden[..., j, None], conv2[:, :, :, j], result)
    return result


def _sample(values: np.ndarray, temperature: float, words: np.ndarray) -> np.ndarray:
    """Categorical samples (...) of softmax(values (..., S) / T) with one random word each, by inversion."""
    temperature = np.float32(temperature)
    best = values.max(axis=-1, keepdims=True)
    inside = values >= best - LOGIT_WINDOW * temperature
    scaled = np.where(inside, values - best, np.float32(0)) * (np.float32(1) / temperature)
    cumulative = np.cumsum(np.where(inside, exp32(scaled), np.float32(0)), axis=-1, dtype=np.float32)
    target = unit_uniform(words) * cumulative[..., -1]
    return (cumulative[..., :-1] <= target[..., None]).sum(axis=-1).astype(np.uint8)


def step(
    weights: Weights, states: np.ndarray, temperature: float, seed: int, *, identity_bias: float = 0.0
) -> np.ndarray:
    """One update of all cells: uint8 (N,H,W) from `states` (N,H,W), one grid per rule; see `simulate.step`."""
    return rollout(weights, states, 1, temperature, seed, identity_bias=identity_bias)[:, 1]


def rollout(
    weights: Weights, states: np.ndarray, num_steps: int, temperature: float, seed: int, *, identity_bias: float = 0.0
) -> np.ndarray:
    """States uint8 (N,T,H,W), T = num_steps + 1, index 0 `states` (N,H,W); see `simulate.rollout`."""
    candidates = np.arange(len(states))
    return _run(weights, states, num_steps, temperature, identity_bias, seed, candidates, GIVEN_NOISE, 0 * candidates)


def _run(
    weights: Weights,
    states: np.ndarray,
    num_steps: int,
    temperature: float,
    identity_bias: float,
    seed: int,
    candidates: np.ndarray,
    purpose: int,
    repeats: np.ndarray,
) -> np.ndarray:
    shape = RuleShape.of(weights)
    result = [shape.check_states(states)]
    for index in range(num_steps):
        now = result[-1]
        values = logits(weights, now)
        present = now[..., None] == np.arange(shape.num_states)
        values = values + np.where(present, np.float32(identity_bias), np.float32(0))
        words = bits_at(seed, candidates, purpose, repeats, index, now[0].size)[..., 0].reshape(now.shape)
        result.append(_sample(values, temperature, words))
    return np.stack(result, axis=1)


def _frames(
    law: NcaLaw, seed: int, candidates: np.ndarray, repeats: np.ndarray, purposes: tuple[int, int], num_frames: int
) -> np.ndarray:
    start = initial_states(law, seed, candidates, purposes[0], repeats)
    num_steps = law.burn_in_steps + (num_frames - 1) * law.steps_per_frame
    states = _run(
        draw(law, seed, candidates),
        start,
        num_steps,
        law.temperature,
        law.identity_bias,
        seed,
        candidates,
        purposes[1],
        repeats,
    )
    return states[:, law.burn_in_steps :: law.steps_per_frame]


def score(law: NcaLaw, seed: int, first: int, count: int) -> np.ndarray:
    """gzip ratios float64 (count,) of candidates first .. first + count - 1; see `simulate.score`."""
    candidates = np.arange(first, first + count)
    frames = _frames(law, seed, candidates, 0 * candidates, (SCORE_START, SCORE_NOISE), law.score_frames)
    encode = patches.encode_sequence if law.score_delimiters else patches.encode
    tokens = encode(frames, law.num_states, law.patch).astype(np.dtype(law.score_dtype).newbyteorder("<"))
    return np.array([len(gzip.compress(row.tobytes(), 9)) / row.nbytes for row in tokens])


def documents(law: NcaLaw, seed: int, candidates: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Tokens int32 (N, document_tokens) of the candidates (N,); see `simulate.documents`."""
    candidates, repeats = np.asarray(candidates), np.asarray(repeats)
    frames = _frames(law, seed, candidates, repeats, (EMIT_START, EMIT_NOISE), law.num_frames)
    if law.emitted_rollout == "scored":
        scored = _frames(law, seed, candidates, 0 * repeats, (SCORE_START, SCORE_NOISE), law.num_frames)
        frames = np.where((repeats == 0)[:, None, None, None], scored, frames)
    return patches.encode_sequence(frames, law.num_states, law.patch)
