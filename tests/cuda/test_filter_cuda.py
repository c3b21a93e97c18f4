"""The device's filter against zlib: never wrong, sharp where it can be, on streams of rules and on hostile ones."""

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from megatron_nca import ops
from megatron_nca.config.law import NcaLaw

sys.path.append(str(Path(__file__).parents[1] / "ops"))
import streams

GREATEST = 2**20
KINDS = ["rules", "rules of two states", *streams.KINDS]


def tokens_of(kind: str, count: int) -> list[np.ndarray]:
    """About `count` streams of some lengths."""
    if kind == "rules":
        return [streams.of_rules(NcaLaw(), 5, 100, count)]
    if kind == "rules of two states":
        return [streams.of_rules(NcaLaw(num_states=2, height=8, width=8), 5, 100, count)]
    rng = np.random.default_rng(len(kind))
    lengths = [1, 2, 3, 7, 64, 65, 129, 360, 1024]
    return [streams.adversarial(rng, kind, max(1, count // len(lengths)), length) for length in lengths]


def static_sizes(tokens: np.ndarray) -> np.ndarray:
    """gzip bytes of each row with zlib's static code alone: the same matches, another code; stored where no longer."""

    def size(row: np.ndarray) -> int:
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_FIXED)
        return len(packer.compress(row.tobytes())) + len(packer.flush()) + streams.GZIP_FRAME_BYTES

    return np.array([size(row) for row in tokens.astype("<i4")])


@pytest.mark.parametrize("kind", KINDS)
def test_the_upper_bound_is_the_static_size(backend, kind):
    """To the byte, which only the very matches of zlib give."""
    known = 0
    for tokens in tokens_of(kind, 90):
        upper = static_sizes(tokens)
        stored = upper >= 4 * tokens.shape[1] + 5 + streams.GZIP_FRAME_BYTES
        for size in np.unique(upper[~stored]):
            rows = tokens[~stored & (upper == size)]
            at, below = (ops.accept_tokens(rows, size - i, GREATEST, device="cuda") for i in (0, 1))
            given_up = at == -1
            assert ((at == 0) | given_up).all() and (below != 0).all(), (kind, tokens.shape, size)
            known += (~given_up).sum()
        assert (ops.accept_tokens(tokens[stored], 0, GREATEST, device="cuda") == -1).all()
    assert known > 40


@pytest.mark.parametrize("kind", KINDS)
def test_no_decision_is_wrong(backend, kind):
    rng = np.random.default_rng(1)
    for tokens in tokens_of(kind, 90):
        sizes = streams.zlib_sizes(tokens)
        some = rng.choice(sizes, 4)
        for low in np.unique(np.concatenate([some - 1, some, some + rng.integers(-40, 40, 4)])):
            for high in (GREATEST, low + 2, low + 60):
                got = ops.accept_tokens(tokens, low, high, device="cuda")
                right = (low < sizes) & (sizes < high)
                assert ((got == right) | (got == -1)).all(), (kind, tokens.shape, low, high)


def test_most_rules_are_decided(backend):
    """At the released band; what is left goes to the host."""
    tokens = streams.of_rules(NcaLaw(), 1, 0, 400)
    got = ops.accept_tokens(tokens, 720, 1440, device="cuda")
    assert 0.02 < (got == -1).mean() < 0.35 and (got == 0).mean() > 0.3 and (got == 1).mean() > 0.2


def test_shapes_are_checked(backend):
    with pytest.raises(ValueError, match="rows of 1 to 1,024"):
        ops.accept_tokens(np.zeros((2, 1025)), 0, 9, device="cuda")
    assert ops.accept_tokens(np.zeros((0, 5)), 0, 9, device="cuda").shape == (0,)
