"""Token streams for `test_deflate_fast`: those of rules, and ones made to meet each special case of zlib's search.

Arrays are uint16 (N,L): N streams of L tokens.
"""

import zlib

import numpy as np

from megatron_nca import ops
from megatron_nca.config.law import NcaLaw
from megatron_nca.nca import simulate

GZIP_FRAME_BYTES = 18


def zlib_sizes(tokens: np.ndarray) -> np.ndarray:
    """By Python's zlib as gzip calls it."""

    def size(row: np.ndarray) -> int:
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL)
        return len(packer.compress(row.tobytes())) + len(packer.flush()) + GZIP_FRAME_BYTES

    return np.array([size(row) for row in tokens.astype("<i4")])


def zlib_sizes_compiled(tokens: np.ndarray, threads: int) -> np.ndarray:
    """The same zlib, called by the compiled module: sooner."""
    return ops.gzip_sizes(tokens.astype("<i4").view(np.uint8), threads=threads)


def of_rules(law: NcaLaw, seed: int, first: int, count: int, *, threads: int = 1) -> np.ndarray:
    """The frames of candidates first .. first + count - 1, as many and laid out as the law scores them."""
    candidates = np.arange(first, first + count)
    tokens = simulate.documents(law, seed, candidates, np.zeros_like(candidates), threads=threads)
    frames = tokens.reshape(count, law.num_frames, law.frame_tokens)[:, : law.score_frames]
    frames = frames if law.score_delimiters else frames[:, :, 1:-1]
    return np.ascontiguousarray(frames.reshape(count, -1), dtype=np.uint16)


def adversarial(rng: np.random.Generator, kind: str, count: int, length: int) -> np.ndarray:
    """`count` streams of `length` tokens of one of KINDS."""
    return KINDS[kind](rng, count, length).astype(np.uint16)


def _symbols(rng: np.random.Generator, count: int, most: int) -> np.ndarray:
    """(N, most) tokens; a third of the rows has zero low bytes, zero high bytes or both here and there."""
    symbols = rng.integers(0, rng.choice([4, 300, 10_000, 2**16]), (count, most))
    masks = rng.choice([0xFFFF, 0xFF00, 0x00FF, 0], p=[0.4, 0.3, 0.2, 0.1], size=(count, most))
    return np.where(rng.random((count, 1)) < 1 / 3, symbols & masks, symbols)


def _few_symbols(rng, count, length):
    size = int(rng.integers(2, 40))
    pick = (rng.random((count, length)) ** rng.uniform(0.5, 6) * size).astype(int)
    return np.take_along_axis(_symbols(rng, count, size), pick, axis=1)


def _near_constant(rng, count, length):
    rare = rng.random((count, length)) < 10 ** rng.uniform(-3, -0.5, (count, 1))
    base = rng.choice([0, 0, 1, 256, 8193, 0x0101, 513, 9999], size=(count, 1))
    return np.where(rare, _symbols(rng, count, length), base)


def _periodic(rng, count, length):
    period = int(rng.choice([1, 2, 3, 7, 8, 9, 31, 36, 63, 64, 65, 66, 129, 130]))
    tokens = _symbols(rng, count, period)[:, np.arange(length) % period]
    rare = rng.random((count, length)) < 10 ** rng.uniform(-3.5, -1, (count, 1))
    return np.where(rare, rng.integers(0, 2**16, (count, length)), tokens)


def _runs(rng, count, length):
    """Runs of 8 tokens (32 bytes) and of 64 and 65 (256 and 260), and their neighbours."""
    lengths = rng.choice([1, 2, 3, 7, 8, 9, 10, 63, 64, 65, 66], size=(count, length))
    which = np.zeros((count, length + 1), dtype=int)
    for row, ends in enumerate(np.minimum(np.cumsum(lengths, axis=1), length)):
        np.add.at(which[row], ends, 1)
    which = np.minimum(np.cumsum(which, axis=1)[:, :length], length - 1)
    return np.take_along_axis(_few_symbols(rng, count, length), which, axis=1)


def _copies(rng, count, length):
    """Segments copied from earlier places at any distance, with a change at the seam."""
    tokens = _symbols(rng, count, length)
    for place in np.sort(rng.integers(1, length, min(length, 40))) if length > 1 else []:
        source = int(rng.integers(0, place))
        size = int(min(rng.choice([1, 2, 3, 7, 8, 9, 20, 64, 65]), place - source, length - place))
        tokens[:, place : place + size] = tokens[:, source : source + size]
    return tokens


def _bytes_of_few(rng, count, length):
    """Low and high bytes from a few values with zero among them, so that matches start at every byte of a token."""
    values = np.concatenate([[0], rng.integers(0, 256, int(rng.integers(1, 5)))])
    shape = (count, length)
    weights = rng.dirichlet(np.full(len(values), rng.choice([0.3, 1, 5])))
    return rng.choice(values, p=weights, size=shape) | rng.choice(values, p=weights, size=shape) << 8


def _uniform(rng, count, length):
    return rng.integers(0, int(2 ** rng.uniform(1, 16)), (count, length))


def _skewed(rng, count, length):
    """Fibonacci-like shares make deep codes."""
    ratio = rng.uniform(1.2, 2.2)
    depth = np.minimum(rng.exponential(1 / np.log(ratio), (count, length)).astype(int), 63)
    return np.take_along_axis(_symbols(rng, count, 64), depth, axis=1)


KINDS = {
    "few symbols": _few_symbols,
    "near constant": _near_constant,
    "periodic": _periodic,
    "runs": _runs,
    "copies": _copies,
    "bytes of few": _bytes_of_few,
    "uniform": _uniform,
    "skewed": _skewed,
}
