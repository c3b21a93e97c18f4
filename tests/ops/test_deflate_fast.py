"""The sizes and decisions of csrc/deflate_fast.h are zlib's, on rules and on streams made to break them."""

import os

import numpy as np
import pytest
import streams

from megatron_nca import ops
from megatron_nca.config.law import NcaLaw
from megatron_nca.nca import reference, rule, simulate

LAWS = {
    "released": NcaLaw(sequence_length=379),
    "delimiters": NcaLaw(score_delimiters=True),
    "two states": NcaLaw(num_states=2, sequence_length=379),
    "three states, patch 3": NcaLaw(num_states=3, patch=3, score_frames=20),
    "fifteen states": NcaLaw(num_states=15, temperature=1e-3, initial_state="uniform", channel_padding="none"),
    "no patches": NcaLaw(num_states=6, patch=1, height=9, width=7, score_frames=7),
    "27 frames": NcaLaw(score_frames=27),
    "most tokens": NcaLaw(num_states=16),
}
LENGTHS = [360, 360, 360, 360, 380, 1, 2, 3, 5, 36, 65, 257, 512, 777, 1024]


def compare(tokens: np.ndarray, sizes: np.ndarray, *, threads: int = 1) -> int:
    """Sizes and decisions are zlib's where they are known, at bounds that cut through the sizes; how many are not.

    A decision may be known where the size is not.
    """
    fast = ops.token_gzip_sizes(tokens, threads=threads)
    known = fast >= 0
    np.testing.assert_array_equal(fast[known], sizes[known])
    middle, half = int(np.median(sizes)), 2 * tokens.shape[1]
    for low, high in [(half, 2 * half), (middle, 2**40), (-1, middle)]:
        accepted = ops.accept_tokens(tokens, low, high, threads=threads)
        right = (low < sizes) & (sizes < high)
        np.testing.assert_array_equal(accepted[known], right[known])
        assert ((accepted == right) | (accepted == -1))[~known].all()
    return int((~known).sum())


@pytest.mark.parametrize("name", LAWS)
def test_rules(name):
    tokens = streams.of_rules(LAWS[name], 1, 0, 13_000 if name == "released" else 1_000, threads=2)
    assert compare(tokens, streams.zlib_sizes(tokens)) <= len(tokens) // 100


@pytest.mark.parametrize("kind", streams.KINDS)
def test_streams_made_to_break_it(kind):
    rng = np.random.default_rng(1)
    for block in range(100):
        tokens = streams.adversarial(rng, kind, 25, LENGTHS[block % len(LENGTHS)])
        compare(tokens, streams.zlib_sizes(tokens))


def test_an_almost_empty_stream_is_left_to_zlib():
    tokens = np.zeros((2, 360), dtype=np.uint16)
    tokens[1, 280::9] = np.arange(1, 10)
    tokens[1, 350] = 7
    assert compare(tokens, streams.zlib_sizes(tokens)) <= 2
    assert ops.token_gzip_sizes(tokens[:1])[0] == streams.zlib_sizes(tokens)[0] == 32


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9, 17])
def test_short_streams_at_every_bound(length):
    tokens = streams.adversarial(np.random.default_rng(length), "bytes of few", 2_000, length)
    tokens[0, :3] = [58596, 0, 25060][:length]  # once a bit more than enough was taken for enough
    sizes = streams.zlib_sizes(tokens)
    for low in range(17, int(sizes.max()) + 2):
        np.testing.assert_array_equal(ops.accept_tokens(tokens, low, 2**40), low < sizes)
        np.testing.assert_array_equal(ops.accept_tokens(tokens, -1, low), sizes < low)


@pytest.mark.parametrize("period", [1, 2, 36, 127, 128, 129])
def test_streams_that_end_in_a_period(period):
    """Decisions without a search, at bounds around the sizes; the first token, which zlib never matches, among them."""
    rng = np.random.default_rng(period)
    for first in [0, 1, 2, 20, 100, 320]:
        tokens = rng.integers(0, 2**16, (40, 360)).astype(np.uint16)
        for w in range(first + period, 360):
            tokens[:, w] = tokens[:, w - period]
        sizes = streams.zlib_sizes(tokens)
        for low in range(int(sizes.min()) - 2, int(sizes.max()) + 90, 11):
            np.testing.assert_array_equal(ops.accept_tokens(tokens, low, 2**40), low < sizes)


def test_what_is_covered():
    assert all(ops.covers(rule.params_of(law)) for law in LAWS.values())
    for law in (
        NcaLaw(score_dtype="uint16"),
        NcaLaw(num_states=2, score_dtype="uint8"),
        NcaLaw(num_states=16, score_delimiters=True),
        NcaLaw(score_frames=29),
        NcaLaw(num_states=4, patch=3),
    ):
        assert not ops.covers(rule.params_of(law)), law


@pytest.mark.parametrize("law", [NcaLaw(), NcaLaw(num_states=2), NcaLaw(score_dtype="uint16")])
def test_scores_and_decisions_of_candidates(law):
    params = rule.params_of(law)
    sizes = ops.score(params, 5, 100, 400)
    np.testing.assert_array_equal(sizes[:8] / params.score_bytes, reference.score(law, 5, 100, 8))
    for low, high in [(int(np.median(sizes)), 10**6), (0, int(np.median(sizes))), (-(2**62), 2**62), (720, 720)]:
        accepted = ops.accept(params, 5, 100, 400, low, high, threads=2)
        np.testing.assert_array_equal(accepted, (low < sizes) & (sizes < high))
    ratios = simulate.score(law, 5, 100, 400)
    for band in [(0.5, 1.0), (float(ratios[3]), float(ratios.max())), (0.0, 1e300), (0.1, float("inf"))]:
        accepted = simulate.accept(law, 5, 100, 400, band=band)
        np.testing.assert_array_equal(accepted, (band[0] < ratios) & (ratios < band[1]))


CAMPAIGN = 1_000_000
RULES = {"released": 0.65, "two states": 0.05, "fifteen states": 0.1, "delimiters": 0.1, "no patches": 0.1}


@pytest.mark.long
def test_campaign():
    """A million rules and a million streams, in fifty rounds; NCA_CAMPAIGN sets another number."""
    goal, threads, rounds = int(os.environ.get("NCA_CAMPAIGN", CAMPAIGN)), os.cpu_count(), 50
    rng = np.random.default_rng(3)
    rules = made = unknown_rules = unknown_made = 0
    for number in range(rounds):
        for name, share in RULES.items():
            count = -(-round(share * goal) // rounds)
            tokens = streams.of_rules(LAWS[name], 2, number * count, count, threads=threads)
            unknown_rules += compare(tokens, streams.zlib_sizes_compiled(tokens, threads), threads=threads)
            rules += count
        while made < (number + 1) * goal / rounds:
            for kind in streams.KINDS:
                tokens = streams.adversarial(rng, kind, 250, int(rng.choice(LENGTHS)))
                unknown_made += compare(tokens, streams.zlib_sizes_compiled(tokens, threads), threads=threads)
                made += len(tokens)
        print(
            f"{rules:,} rules equal, {unknown_rules:,} of them left to zlib; "
            f"{made:,} streams equal, {unknown_made:,} of them left to zlib",
            flush=True,
        )
    assert rules >= goal and made >= goal
