"""What the settings of the law do to the shares of rules by gzip ratio, against the released code's measured shares.

The expected figures were measured with the released code on 6,000 rules, whose standard error is 0.6 points.
"""

import numpy as np
import pytest

from megatron_nca.config.law import preset, replace
from megatron_nca.nca import simulate

RULES = 6_000
TOLERANCE = 0.015


@pytest.fixture(scope="module")
def ratios() -> np.ndarray:
    return simulate.score(preset("released"), 11, 0, RULES, threads=2)


@pytest.mark.parametrize(
    ("low", "high", "share"),
    [(0, 0.2, 0.199), (0.2, 0.3, 0.062), (0.3, 0.4, 0.092), (0.4, 0.5, 0.178), (0.5, 1, 0.467)],
)
def test_shares_of_the_released_law(ratios, low, high, share):
    assert abs(((low <= ratios) & (ratios < high)).mean() - share) < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "share"),
    [({"score_dtype": "uint16"}, 0.741), ({"score_frames": 27}, 0.255), ({"burn_in_steps": 0}, 0.634)],
    ids=["uint16 bytes", "27 frames", "no burn-in"],
)
def test_shares_above_one_half_of_its_variants(changes, share):
    ratios = simulate.score(replace(preset("released"), **changes), 11, 0, RULES, threads=2)
    assert abs((ratios > 0.5).mean() - share) < TOLERANCE


@pytest.mark.parametrize(
    "changes", [{"temperature": 1e-3}, {"initial_state": "uniform"}, {"channel_padding": "none"}], ids=str
)
def test_what_hardly_changes_the_shares(changes):
    ratios = simulate.score(replace(preset("released"), **changes), 11, 0, RULES, threads=2)
    assert abs((ratios > 0.5).mean() - 0.471) < TOLERANCE
