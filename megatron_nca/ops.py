"""The typed face of the compiled modules, and their only door. NumPy in and out; nothing here imports torch.

N rules or candidates, T states in time, H W grid, S states of a cell, L bytes or tokens.
`threads`, `kernel` ("" is the fastest of `kernel_names()`) and `device` change how long it takes and never the result.
On the device "cuda" candidates are rolled out and filtered by the GPU; `threads` of the host do the rest. It raises
LaunchError where the generator was built without CUDA, or there is no GPU.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Literal

import numpy as np

from megatron_nca.errors import LaunchError, explain

try:
    from megatron_nca import _generator
except ImportError as error:
    raise LaunchError(
        f"megatron_nca._generator: the compiled generator cannot be loaded ({error}). "
        "Cure: build it with `pip install --no-build-isolation -e .`; it needs g++ and zlib's headers (zlib1g-dev)."
    ) from error

Params = _generator.Params
"""The law as numbers: csrc/rollout.h."""

WordMemory = _generator.WordMemory
"""Texts cut into words, and the tokens of words remembered: csrc/words.h. `cut(texts)` gives the words that are new,
`tokens(of_new_words)` int32 (n,) of all texts of that batch and int64 (texts,) how many each has."""

Device = Literal["cpu", "cuda"]

WEIGHTS = ("conv0", "conv0_bias", "conv1", "conv1_bias", "conv2", "conv2_bias")
"""Names of the arrays of a batch of rules, in the order of the network."""


def kernel_names() -> list[str]:
    """The kernels that this processor can run, fastest first."""
    return _generator.kernel_names()


def philox(counter: Sequence[int], key: Sequence[int]) -> np.ndarray:
    """Philox4x32-10: uint32 (4,) from a counter of four words and a key of two."""
    return _generator.philox(np.array(counter, dtype=np.uint32), np.array(key, dtype=np.uint32))


def draw_rules(
    params: Params, seed: int, candidates: np.ndarray, *, threads: int = 1, kernel: str = ""
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernels conv0 (N,3,3,C,4), conv1 (N,4,16), conv2 (N,16,S) of the candidates (N,), float32."""
    return _generator.draw_rules(params, seed, _uint32(candidates), _generator.Execution(threads, kernel))


def rollout(
    params: Params,
    weights: Mapping[str, np.ndarray],
    states: np.ndarray,
    num_steps: int,
    seed: int,
    *,
    threads: int = 1,
    kernel: str = "",
) -> np.ndarray:
    """States uint8 (N,T,H,W), T = num_steps + 1, from `states` (N,H,W); row n draws as candidate n."""
    arrays = [np.ascontiguousarray(weights[name], dtype=np.float32) for name in WEIGHTS]
    start = np.ascontiguousarray(states, dtype=np.uint8)
    return _generator.rollout(params, *arrays, start, num_steps, seed, _generator.Execution(threads, kernel))


def score(
    params: Params, seed: int, first: int, count: int, *, threads: int = 1, kernel: str = "", device: Device = "cpu"
) -> np.ndarray:
    """gzip bytes int32 (count,) of the scored frames of candidates first .. first + count - 1."""
    return on(device).score(params, seed, first, count, _generator.Execution(threads, kernel))


def accept(
    params: Params,
    seed: int,
    first: int,
    count: int,
    low: int,
    high: int,
    *,
    threads: int = 1,
    kernel: str = "",
    device: Device = "cpu",
) -> np.ndarray:
    """Boolean (count,): low < score < high, `low` and `high` in bytes; the same answers as `score`'s, sooner."""
    accepted = on(device).accept(params, seed, first, count, low, high, _generator.Execution(threads, kernel))
    return accepted.astype(bool)


def covers(params: Params) -> bool:
    """Whether `score` and `accept` of the law do without zlib (csrc/deflate_fast.h).

    They do where `score_token_bytes` is 4, all compressed tokens are below 2^16 and a buffer has at most 4,096 bytes.
    Their answers are zlib's either way.
    """
    return _generator.covers(params)


def documents(
    params: Params,
    seed: int,
    candidates: np.ndarray,
    repeats: np.ndarray,
    dtype: np.dtype,
    *,
    threads: int = 1,
    kernel: str = "",
    device: Device = "cpu",
) -> np.ndarray:
    """Tokens (N,L) of sequences of the candidates (N,), each with its repeat number (N,); dtype uint16 or int32."""
    module = on(device)
    make = module.documents_uint16 if np.dtype(dtype) == np.uint16 else module.documents_int32
    return make(params, seed, _uint32(candidates), _uint32(repeats), _generator.Execution(threads, kernel))


def search(
    params: Params, seed: int, low: int, high: int, wanted: int, dtype: np.dtype, *, threads: int = 1
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """On the GPU: all candidates from 0 on, batch by batch: (count, accepted (N,) uint32, their documents (N,L)).

    `accept` and `documents` with repeat 0 in one, several batches under way at once; the documents lie in pinned
    memory, which is used again when nothing refers to them. `wanted`: about how many accepted ones will be asked for.
    Raises IndexError behind the last of the 2^32 candidates.
    """
    wide = np.dtype(dtype) != np.uint16
    found = on("cuda").Search(params, seed, low, high, wanted, wide, _generator.Execution(threads, ""))
    while True:
        yield found.next()


def on(device: Device) -> ModuleType:
    """The compiled module of a device. Raises LaunchError where it was not built, or the device is not there."""
    if device == "cpu":
        return _generator
    try:
        from megatron_nca import _generator_cuda
    except ImportError as error:
        raise LaunchError(
            f"device = {device!r}: the generator was built without CUDA, or cannot be loaded ({error}). Cure: build it "
            "with `MEGATRON_NCA_CUDA=1 pip install --no-build-isolation -e .`, which needs nvcc; or use the cpu."
        ) from error
    try:
        _generator_cuda.check_device()
    except RuntimeError as error:
        cure = "run where `nvidia-smi` lists a GPU and its driver is as new as the CUDA toolkit; or use the device cpu."
        raise LaunchError(explain("device", device, f"{error}.", cure)) from error
    return _generator_cuda


def gzip_sizes(buffers: np.ndarray, *, threads: int = 1) -> np.ndarray:
    """Bytes int64 (N,) that gzip at level 9 makes of each row of `buffers` uint8 (N,L), header and trailer included."""
    return _generator.gzip_sizes(np.ascontiguousarray(buffers, dtype=np.uint8), _generator.Execution(threads, ""))


def token_gzip_sizes(tokens: np.ndarray, *, threads: int = 1) -> np.ndarray:
    """`gzip_sizes` int32 (N,) of `tokens` uint16 (N,L) laid out as little-endian int32, without zlib; L <= 1,024.

    -1 where that is not known: an almost empty stream in which zlib would give up a search.
    """
    return _generator.token_gzip_sizes(np.ascontiguousarray(tokens, np.uint16), _generator.Execution(threads, ""))


def accept_tokens(
    tokens: np.ndarray, low: int, high: int, *, threads: int = 1, device: Device = "cpu"
) -> np.ndarray:
    """int8 (N,): 1 where low < token_gzip_sizes(tokens) < high, else 0; -1 where that is not known.

    The GPU knows less: it has two bounds of a size (csrc/cuda/filter.cuh), and says nothing where they do not decide.
    """
    tokens = np.ascontiguousarray(tokens, np.uint16)
    return on(device).accept_tokens(tokens, low, high, _generator.Execution(threads, ""))


def token_counts(tokens: np.ndarray, columns: slice, num_tokens: int) -> np.ndarray:
    """int64 (num_tokens,): how often each id stands in these columns of `tokens` (N,L), uint16 or int32.

    As np.bincount, without copies, and while other threads of Python go on. Raises ValueError for other ids.
    """
    first, last, _ = columns.indices(tokens.shape[1])
    count = _generator.token_counts_uint16 if tokens.dtype == np.uint16 else _generator.token_counts_int32
    return count(tokens, first, last, num_tokens)


def _uint32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.uint32)
