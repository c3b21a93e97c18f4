"""Grids <-> patch tokens (paper, tokeniser; released code utils/tokenizers.py).

Patches are row-major over the grid; token = sum_i cell_i * S^i over a patch's cells, row-major, the first cell the
least significant digit. Delimiters: start = S^(patch^2), end = start + 1.
N sequences, T frames, H W grid, S states of a cell, P patches of a frame.
"""

import numpy as np

from megatron_nca.errors import DataError, explain


def start_token(num_states: int, patch: int) -> int:
    """Token before each frame; the one after it is this + 1, and no token is larger."""
    return num_states ** (patch * patch)


def encode(frames: np.ndarray, num_states: int, patch: int) -> np.ndarray:
    """Tokens int32 (N,T,P) of `frames` (N,T,H,W), without delimiters.

    Raises DataError for another shape, a grid that patches do not cover, or a state outside 0..S-1.
    """
    frames = _check(frames, "frames", 4, num_states, "num_states")
    num, times, height, width = frames.shape
    if height % patch or width % patch:
        raise DataError(explain("patch", patch, f"does not divide the grid {height} x {width}.", "choose another."))
    tiles = frames.reshape(num, times, height // patch, patch, width // patch, patch).transpose(0, 1, 2, 4, 3, 5)
    cells = tiles.reshape(num, times, -1, patch * patch).astype(np.int32)
    return cells @ _digits(num_states, patch)


def encode_sequence(frames: np.ndarray, num_states: int, patch: int) -> np.ndarray:
    """Tokens int32 (N, T*(P+2)) of `frames` (N,T,H,W): each frame between a start and an end token."""
    tokens = encode(frames, num_states, patch)
    start = start_token(num_states, patch)
    framed = np.pad(tokens, ((0, 0), (0, 0), (1, 1)))
    framed[..., 0], framed[..., -1] = start, start + 1
    return framed.reshape(len(tokens), -1)


def decode(tokens: np.ndarray, num_states: int, patch: int, height: int, width: int) -> np.ndarray:
    """Frames uint8 (N,T,H,W) of `tokens` (N,T,P) without delimiters.

    Raises DataError for a token that is no patch (the released code decodes a delimiter to zeros) or a wrong count.
    """
    tokens = _check(tokens, "tokens", 3, start_token(num_states, patch), "number of patches")
    rows, columns = height // patch, width // patch
    if height % patch or width % patch or tokens.shape[2] != rows * columns:
        raise DataError(
            explain(
                "tokens",
                tokens.shape,
                f"do not fill a grid {height} x {width} with patches of side {patch}.",
                "check height, width and patch.",
            )
        )
    cells = tokens[..., None].astype(np.int64) // _digits(num_states, patch) % num_states
    tiles = cells.reshape(*tokens.shape[:2], rows, columns, patch, patch).transpose(0, 1, 2, 4, 3, 5)
    return tiles.reshape(*tokens.shape[:2], height, width).astype(np.uint8)


def _digits(num_states: int, patch: int) -> np.ndarray:
    return num_states ** np.arange(patch * patch, dtype=np.int32)


def _check(values: np.ndarray, name: str, ndim: int, bound: int, bound_name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != ndim or values.dtype.kind not in "iu":
        raise DataError(
            explain(
                name,
                (values.shape, str(values.dtype)),
                f"expected integers of {ndim} dimensions.",
                "check the argument.",
            )
        )
    if values.size and not 0 <= values.min() <= values.max() < bound:
        raise DataError(
            explain(
                name,
                [int(values.min()), int(values.max())],
                f"must lie in 0..{bound - 1} ({bound_name} = {bound}).",
                "check what made them.",
            )
        )
    return values
