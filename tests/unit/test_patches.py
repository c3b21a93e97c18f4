"""Grids <-> patch tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_nca.errors import DataError
from megatron_nca.nca import patches


def test_first_cell_is_the_least_significant_digit():
    frame = np.array([[[[1, 2, 5, 6], [3, 4, 7, 8]]]])
    assert patches.encode(frame, 10, 2).tolist() == [[[4321, 8765]]]
    assert patches.encode_sequence(frame, 10, 2).tolist() == [[10_000, 4321, 8765, 10_001]]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_decode_undoes_encode(data):
    patch, states = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 4))
    rows, columns, num, times = (data.draw(st.integers(1, 3)) for _ in range(4))
    shape = (num, times, rows * patch, columns * patch)
    frames = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, states, shape)
    tokens = patches.encode(frames, states, patch)
    assert tokens.shape == (num, times, rows * columns)
    assert tokens.max() < patches.start_token(states, patch)
    np.testing.assert_array_equal(patches.decode(tokens, states, patch, *shape[2:]), frames)


def test_largest_vocabulary_does_not_overflow():
    frame = np.full((1, 1, 4, 4), 1)
    assert patches.encode(frame, 2, 4).item() == 2**16 - 1
    frame = np.full((1, 1, 2, 2), 15)
    assert patches.encode(frame, 16, 2).item() == 2**16 - 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: patches.encode(np.zeros((2, 4, 4), dtype=int), 10, 2), "4 dimensions"),
        (lambda: patches.encode(np.zeros((1, 1, 4, 4)), 10, 2), "integers"),
        (lambda: patches.encode(np.full((1, 1, 4, 4), 10), 10, 2), "num_states = 10"),
        (lambda: patches.encode(np.full((1, 1, 4, 4), -1), 10, 2), "num_states = 10"),
        (lambda: patches.encode(np.zeros((1, 1, 4, 5), dtype=int), 10, 2), "patch = 2"),
        (lambda: patches.decode(np.full((1, 1, 4), 10_000), 10, 2, 4, 4), "must lie in 0..9999"),
        (lambda: patches.decode(np.zeros((1, 1, 5), dtype=int), 10, 2, 4, 4), "do not fill"),
        (lambda: patches.decode(np.zeros((1, 1, 4), dtype=int), 10, 2, 5, 4), "do not fill"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(DataError, match=message):
        call()
