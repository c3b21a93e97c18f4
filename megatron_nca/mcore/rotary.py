"""Rotary position embedding without Transformer Engine, at half the time of Megatron's own plain version.

Megatron's (rope_utils, 0.16 to 0.19) takes cosines and sines anew for every tensor of every layer, copies each result
once more than needed, and leaves autograd to undo eight small steps. The gradient of a rotation is the rotation back.
"""

import math
from functools import lru_cache

import torch

from megatron_nca.config.model import ModelConfig


def inverse_frequencies(model: ModelConfig) -> torch.Tensor:
    """Radians a position for each pair of a head's components: (head size / 2), float32, scaled as the model says.

    Every step rounds to float32 as in Megatron's and Hugging Face's code: late positions see the last bit.
    """
    exponents = torch.arange(0, model.head_size, 2, dtype=torch.float32) / model.head_size
    plain = 1.0 / model.rope_base**exponents
    scaling = model.rope_scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    wavelength = 2 * math.pi / plain
    share = (scaling.original_length / wavelength - low) / (high - low)
    blended = (1 - share) * plain / scaling.factor + share * plain
    scaled = torch.where(wavelength > scaling.original_length / low, plain / scaling.factor, plain)
    between = (wavelength <= scaling.original_length / low) & (wavelength >= scaling.original_length / high)
    return torch.where(between, blended, scaled)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(heads, cosine, sine, 1)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _rotated(gradient, *ctx.saved_tensors, -1), None, None


def _rotated(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, direction: int) -> torch.Tensor:
    half = heads.shape[-1] // 2
    out = heads * cosine
    out[..., :half].addcmul_(heads[..., half:], sine, value=-direction)
    out[..., half:].addcmul_(heads[..., :half], sine, value=direction)
    return out


@lru_cache(maxsize=8)
def _cosine_and_sine(angles: torch.Tensor, scale: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Of angles (S, 1, 1, D), once for each tensor of angles; Megatron hands out the same one at every iteration.

    The two halves of D hold the same angles, so one half of the sines is enough.
    """
    cosine = (torch.cos(angles) * scale).to(dtype)
    sine = (torch.sin(angles[..., : angles.shape[-1] // 2]) * scale).to(dtype)
    return cosine, sine


def install() -> None:
    """Put it in the place of Megatron's; interleaved, partial and latent rotations stay Megatron's."""
    from megatron.core.models.common.embeddings import rope_utils

    megatrons = rope_utils._apply_rotary_pos_emb_bshd
    if getattr(megatrons, "replaced", None):
        return

    def rotate(
        heads: torch.Tensor,
        angles: torch.Tensor,
        rotary_interleaved: bool = False,
        *others: object,
        mscale: float = 1.0,
        **named_others: object,
    ) -> torch.Tensor:
        """heads (S, B, N, D), angles (S, 1, 1, D) -> (S, B, N, D)."""
        special = rotary_interleaved or any(others) or any(named_others.values())
        if special or angles.shape[-1] != heads.shape[-1]:
            return megatrons(heads, angles, rotary_interleaved, *others, mscale=mscale, **named_others)
        return _Rotation.apply(heads, *_cosine_and_sine(angles, mscale, heads.dtype))

    rotate.replaced = megatrons
    rope_utils._apply_rotary_pos_emb_bshd = rotate
