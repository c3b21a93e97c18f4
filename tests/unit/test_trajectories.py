"""data/trajectories.py: which tokens of a document are input, target and scored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_nca.config.law import PRESETS, NcaLaw
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.errors import DataError


def test_the_released_law_scores_987_of_1024():
    layout = Trajectory.of_law(PRESETS["released"])
    assert (layout.document_tokens, layout.sequence_length) == (1026, 1024)
    assert (layout.num_scored, layout.num_frames) == (987, 27)
    assert layout.loss_mask().sum() == 987
    assert not layout.loss_mask()[:37].any() and layout.loss_mask()[37:].all()
    assert layout.frames()[[0, 36, 37, 1023]].tolist() == [0, 0, 1, 26]


def test_the_paper_preset_scores_all():
    layout = Trajectory.of_law(PRESETS["paper"])
    assert layout.num_scored == 1024 and layout.loss_mask().all()


@given(sides=st.tuples(st.integers(1, 6), st.integers(1, 6)), length=st.integers(20, 400),
       scored=st.sampled_from(["after_first_frame", "all"]))
def test_views_mask_and_frames_agree(sides, length, scored):
    height, width = (2 * side for side in sides)
    if length + 1 <= height * width // 4 + 2:
        length += 100
    law = NcaLaw(num_states=2, height=height, width=width, sequence_length=length, scored_positions=scored)
    layout = Trajectory.of_law(law)
    documents = np.arange(3 * law.document_tokens).reshape(3, -1)
    inputs, targets = layout.inputs(documents), layout.targets(documents)
    assert inputs.shape == targets.shape == (3, length)
    assert np.array_equal(inputs + 1, targets)
    mask = layout.loss_mask()
    assert mask.sum() == layout.num_scored > 0
    assert np.array_equal(targets[:, mask], layout.scored_targets(documents))
    assert np.array_equal(layout.frames(), targets[0] // law.frame_tokens)
    assert layout.frames().max() + 1 == layout.num_frames
    if scored == "after_first_frame":
        assert np.array_equal(mask, layout.frames() >= 1)


@pytest.mark.parametrize("change", [{"document_tokens": 1025}, {"sequence_length": 1026}, {"first_scored_token": 0},
                                    {"first_scored_token": 1025}, {"frame_tokens": 0}])
def test_an_impossible_layout_is_refused(change):
    good = {"sequence_length": 1024, "document_tokens": 1026, "frame_tokens": 38, "first_scored_token": 38}
    with pytest.raises(DataError):
        Trajectory(**{**good, **change})
