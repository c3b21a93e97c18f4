"""A rule's weights: their names and shapes, and how they are drawn.

Network (paper, the rule network; released code utils/nca.py): 3x3 convolution over one-hot states -> 4 features,
1x1 -> 16 hidden, ReLU, 1x1 -> one logit a state. 686 parameters for 10 states.
N rules, S states of a cell, C input channels: S, or S + 2 where the channels are padded by wrap (D10).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from megatron_nca import ops
from megatron_nca.config.law import NcaLaw
from megatron_nca.errors import ConfigError, explain

NUM_FEATURES = 4
NUM_HIDDEN = 16
MAX_STATES = 16
TRUNCATED_DEVIATION = 0.87962566103423978
"""Standard deviation of N(0, 1) truncated to [-2, 2]; lecun_normal divides by it to get variance 1/fan_in."""

Weights = Mapping[str, np.ndarray]
"""conv0 (N,3,3,C,4), conv0_bias (N,4), conv1 (N,4,16), conv1_bias (N,16), conv2 (N,16,S), conv2_bias (N,S), float32."""


@dataclass(frozen=True)
class RuleShape:
    """What the shapes of a batch of weights say."""

    num_rules: int
    num_states: int
    wrap_channels: bool

    @classmethod
    def of(cls, weights: Weights) -> "RuleShape":
        """Read and check. Raises ConfigError naming the array that is missing or of another shape."""
        missing = [name for name in ops.WEIGHTS if name not in weights]
        if missing:
            raise ConfigError(
                explain("weights", sorted(weights), f"'{missing[0]}' is missing.", "give all six arrays.")
            )
        conv0, conv2 = np.shape(weights["conv0"]), np.shape(weights["conv2"])
        if len(conv0) != 5 or len(conv2) != 3:
            raise ConfigError(
                explain(
                    "weights",
                    {"conv0": conv0, "conv2": conv2},
                    "are not batches of kernels.",
                    "give conv0 (N,3,3,C,4) and conv2 (N,16,S).",
                )
            )
        num_rules, channels, num_states = conv0[0], conv0[3], conv2[-1]
        if not 2 <= num_states <= MAX_STATES or channels not in (num_states, num_states + 2):
            raise ConfigError(
                explain(
                    "weights.conv0",
                    conv0,
                    f"has {channels} input channels, which {num_states} states do not give.",
                    f"{num_states} channels, or {num_states + 2} padded by wrap.",
                )
            )
        expected = {
            "conv0": (num_rules, 3, 3, channels, NUM_FEATURES),
            "conv0_bias": (num_rules, NUM_FEATURES),
            "conv1": (num_rules, NUM_FEATURES, NUM_HIDDEN),
            "conv1_bias": (num_rules, NUM_HIDDEN),
            "conv2": (num_rules, NUM_HIDDEN, num_states),
            "conv2_bias": (num_rules, num_states),
        }
        for name, shape in expected.items():
            if np.shape(weights[name]) != shape:
                raise ConfigError(
                    explain(
                        f"weights.{name}",
                        np.shape(weights[name]),
                        f"expected the shape {shape}.",
                        "give arrays of one batch.",
                    )
                )
        return cls(num_rules, num_states, channels == num_states + 2)

    def check_states(self, states: np.ndarray) -> np.ndarray:
        """`states` (N,H,W) as uint8. Raises ConfigError for another shape or a value outside 0..S-1."""
        states = np.asarray(states)
        if states.ndim != 3 or len(states) != self.num_rules or min(states.shape[1:], default=0) < 2:
            raise ConfigError(
                explain(
                    "states",
                    states.shape,
                    f"expected ({self.num_rules}, H, W) with H, W >= 2.",
                    "give one grid per rule.",
                )
            )
        if states.size and not 0 <= states.min() <= states.max() < self.num_states:
            raise ConfigError(
                explain(
                    "states",
                    [int(states.min()), int(states.max())],
                    f"values must lie in 0..{self.num_states - 1}.",
                    "check the number of states.",
                )
            )
        return states.astype(np.uint8)


def fan_ins(num_states: int, wrap_channels: bool) -> tuple[int, int, int]:
    """Inputs of one output of conv0, conv1, conv2 (108, 4, 16 as released)."""
    return 9 * (num_states + 2 * wrap_channels), NUM_FEATURES, NUM_HIDDEN


def deviation(fan_in: int) -> np.float32:
    """Scale of the truncated normals of a kernel: lecun_normal as in flax and jax."""
    return np.float32(math.sqrt(1.0 / fan_in) / TRUNCATED_DEVIATION)


def kernel_shapes(num_states: int, wrap_channels: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of one rule's kernels in the order in which their values are drawn."""
    channels = num_states + 2 * wrap_channels
    return {
        "conv0": (3, 3, channels, NUM_FEATURES),
        "conv1": (NUM_FEATURES, NUM_HIDDEN),
        "conv2": (NUM_HIDDEN, num_states),
    }


def with_zero_biases(conv0: np.ndarray, conv1: np.ndarray, conv2: np.ndarray) -> dict[str, np.ndarray]:
    """The six arrays of a freshly drawn batch: biases start at zero and stay there."""
    zeros = [np.zeros((len(conv0), size), dtype=np.float32) for size in (NUM_FEATURES, NUM_HIDDEN, conv2.shape[-1])]
    return {
        "conv0": conv0,
        "conv0_bias": zeros[0],
        "conv1": conv1,
        "conv1_bias": zeros[1],
        "conv2": conv2,
        "conv2_bias": zeros[2],
    }


def check_seed(seed: int) -> int:
    """Raises ConfigError unless `seed` fits 64 bits."""
    if not 0 <= seed < 2**64:
        raise ConfigError(explain("seed", seed, "must lie in 0..2^64-1.", "choose another."))
    return seed


def check_temperature(temperature: float) -> float:
    """Raises ConfigError for a temperature whose inverse float32 cannot hold."""
    if not 1e-30 <= temperature <= 1e30:
        raise ConfigError(
            explain("temperature", temperature, "must lie in 1e-30..1e30.", "use 1e-4, the released value.")
        )
    return temperature


def params_of(law: NcaLaw) -> ops.Params:
    """The law as the numbers that the compiled module takes. Raises ConfigError where they exceed its range."""
    check_temperature(law.temperature)
    if not math.isfinite(law.identity_bias):
        raise ConfigError(
            explain("law.identity_bias", law.identity_bias, "is not a number.", "0 is the released value.")
        )
    frames = max(law.num_frames, law.score_frames)
    if law.burn_in_steps + (frames - 1) * law.steps_per_frame >= 2**32:
        raise ConfigError(
            explain("law.steps_per_frame", law.steps_per_frame, "makes a rollout of 2^32 steps or more.", "lower it.")
        )
    token_bytes = np.dtype(law.score_dtype).itemsize
    if law.num_tokens > 2 ** (8 * token_bytes):
        raise ConfigError(
            explain(
                "law.score_dtype",
                law.score_dtype,
                f"cannot hold {law.num_tokens} tokens.",
                "use int32, the released layout.",
            )
        )
    return ops.Params(
        num_states=law.num_states,
        height=law.height,
        width=law.width,
        patch=law.patch,
        burn_in_steps=law.burn_in_steps,
        steps_per_frame=law.steps_per_frame,
        num_frames=law.num_frames,
        temperature=law.temperature,
        identity_bias=law.identity_bias,
        uniform_start=law.initial_state == "uniform",
        wrap_channels=law.channel_padding == "wrap",
        score_frames=law.score_frames,
        score_token_bytes=token_bytes,
        score_delimiters=law.score_delimiters,
        emit_scored=law.emitted_rollout == "scored",
    )
