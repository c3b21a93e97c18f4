"""Against the paper's released code: its own rules step by step, and the law of its scores (tests/golden)."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from megatron_nca.config.law import preset
from megatron_nca.nca import complexity, patches, reference, simulate

GOLDEN = Path(__file__).parents[1] / "golden"
SCORE_BYTES = 1440
SURE_GAP = 2e-3


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "golden_rules.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def teacher_forced(golden):
    """Weights, present and next states (64 x 36, ...) of every official update."""
    weights = {name: np.repeat(golden[name], 36, axis=0) for name in golden if name.startswith("conv")}
    now = golden["states"][:, :-1].reshape(-1, 12, 12)
    after = golden["states"][:, 1:].reshape(-1, 12, 12)
    return weights, now, after


@pytest.fixture(scope="module")
def logits(teacher_forced):
    weights, now, _ = teacher_forced
    return reference.logits(weights, now).astype(np.float64)


def test_gaps_are_the_official_ones(golden, logits):
    best = np.sort(logits, axis=-1)
    gaps = (best[..., -1] - best[..., -2]).reshape(64, 36, -1).min(axis=-1)
    np.testing.assert_allclose(gaps, golden["min_gap"], atol=2e-6)


@pytest.mark.parametrize("module, rules", [(simulate, 64), (reference, 8)], ids=["simulate", "reference"])
def test_every_sure_next_state_is_reproduced(module, rules, teacher_forced, logits):
    weights, now, after = teacher_forced
    best = np.sort(logits[: rules * 36], axis=-1)
    sure = best[..., -1] - best[..., -2] > SURE_GAP
    weights = {name: array[: rules * 36] for name, array in weights.items()}
    now, after = now[: rules * 36], after[: rules * 36]
    got = module.step(weights, now, 1e-4, seed=11)
    assert sure.mean() > 0.98
    assert np.array_equal(got[sure], after[sure])
    assert (got == after).mean() > 0.999


def test_tokens_and_ratios_are_the_official_ones(golden):
    frames = golden["states"][:, 10:]
    assert np.array_equal(patches.encode_sequence(frames, 10, 2), golden["tokens"])
    assert np.array_equal(complexity.gzip_ratio(patches.encode(frames[:, :10], 10, 2)), golden["gzip_ratio"])


def test_scores_follow_the_official_distribution():
    ratios = simulate.score(preset("released"), 7, 0, 20_000, threads=2)
    official = np.load(GOLDEN / "reference_scores.npy")
    assert abs((ratios > 0.5).mean() - 0.464) < 0.015
    assert ks_2samp(np.rint(ratios * SCORE_BYTES), np.rint(official * SCORE_BYTES)).pvalue > 1e-3


def test_sampling_flips_the_official_share_of_cells():
    """At temperature 1e-4 the sampled next state differs from the best in 5e-4 of the cells."""
    law, candidates = preset("released"), np.arange(400)
    weights = simulate.draw(law, 1, candidates)
    start = reference.initial_states(law, 1, candidates, reference.EMIT_START, 0 * candidates)
    states = simulate.rollout(weights, start, 37, law.temperature, 1, threads=2)
    repeated = {name: np.repeat(array, 37, axis=0) for name, array in weights.items()}
    now, after = states[:, :-1].reshape(-1, 12, 12), states[:, 1:].reshape(-1, 12, 12)
    best = simulate.step(repeated, now, 1e-30, 2, threads=2)
    assert 4e-4 < (best != after).mean() < 7e-4


def test_rules_are_lecun_normal():
    weights = simulate.draw(preset("released"), 5, np.arange(2000), threads=2)
    for name, fan_in in (("conv0", 108), ("conv1", 4), ("conv2", 16)):
        values = weights[name].ravel() * np.sqrt(fan_in)
        assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
        assert 2.2 < abs(values).max() <= 2 / 0.8796 + 1e-6
        assert not weights[f"{name}_bias"].any()


def test_initial_states_are_a_shared_random_mix():
    """Mean entropy of the released start 2.73 bits, mean share of its commonest state 33 %; uniform: 3.32 bits."""
    law, candidates = preset("released"), np.arange(3000)
    states = reference.initial_states(law, 1, candidates, reference.EMIT_START, 0 * candidates).reshape(3000, -1)
    shares = (states[..., None] == np.arange(10)).mean(axis=1)
    entropy = -(shares * np.log2(np.maximum(shares, 1e-12))).sum(axis=1).mean()
    assert 2.6 < entropy < 2.8
    assert 0.31 < shares.max(axis=1).mean() < 0.37
