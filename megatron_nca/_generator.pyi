"""Types of the compiled module (csrc/bind.cpp). Its only importer is megatron_nca.ops."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class Params:
    def __init__(
        self,
        *,
        num_states: int,
        height: int,
        width: int,
        patch: int,
        burn_in_steps: int,
        steps_per_frame: int,
        num_frames: int,
        temperature: float,
        identity_bias: float,
        uniform_start: bool,
        wrap_channels: bool,
        score_frames: int,
        score_token_bytes: int,
        score_delimiters: bool,
        emit_scored: bool,
    ) -> None: ...
    @property
    def score_bytes(self) -> int: ...
    @property
    def document_tokens(self) -> int: ...

class Execution:
    def __init__(self, threads: int = 1, kernel: str = "") -> None: ...

class WordMemory:
    def __init__(self, kinds: bytes, *, gpt2: bool, most_words: int, longest: int) -> None: ...
    def cut(self, texts: list[str]) -> list[str]: ...
    def tokens(self, of_new_words: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]: ...

def kernel_names() -> list[str]: ...
def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]: ...
def draw_rules(
    params: Params, seed: int, candidates: NDArray[np.uint32], execution: Execution
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]: ...
def rollout(
    params: Params,
    conv0: NDArray[np.float32],
    conv0_bias: NDArray[np.float32],
    conv1: NDArray[np.float32],
    conv1_bias: NDArray[np.float32],
    conv2: NDArray[np.float32],
    conv2_bias: NDArray[np.float32],
    start: NDArray[np.uint8],
    num_steps: int,
    seed: int,
    execution: Execution,
) -> NDArray[np.uint8]: ...
def score(params: Params, seed: int, first: int, count: int, execution: Execution) -> NDArray[np.int32]: ...
def accept(
    params: Params, seed: int, first: int, count: int, low: int, high: int, execution: Execution
) -> NDArray[np.uint8]: ...
def covers(params: Params) -> bool: ...
def documents_uint16(
    params: Params, seed: int, candidates: NDArray[np.uint32], repeats: NDArray[np.uint32], execution: Execution
) -> NDArray[np.uint16]: ...
def documents_int32(
    params: Params, seed: int, candidates: NDArray[np.uint32], repeats: NDArray[np.uint32], execution: Execution
) -> NDArray[np.int32]: ...
def gzip_sizes(buffers: NDArray[np.uint8], execution: Execution) -> NDArray[np.int64]: ...
def token_gzip_sizes(tokens: NDArray[np.uint16], execution: Execution) -> NDArray[np.int32]: ...
def accept_tokens(tokens: NDArray[np.uint16], low: int, high: int, execution: Execution) -> NDArray[np.int8]: ...
def token_counts_uint16(tokens: NDArray[np.uint16], first: int, last: int, num_tokens: int) -> NDArray[np.int64]: ...
def token_counts_int32(tokens: NDArray[np.int32], first: int, last: int, num_tokens: int) -> NDArray[np.int64]: ...
