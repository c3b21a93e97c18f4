"""The law's derived sizes as released, and what it refuses."""

import pytest

from megatron_nca.config.law import NcaLaw, preset, replace
from megatron_nca.errors import ConfigError
from megatron_nca.nca import rule


def test_sizes_as_released():
    law = preset("released")
    sizes = (law.patches_per_frame, law.frame_tokens, law.num_frames, law.document_tokens)
    assert sizes == (36, 38, 27, 1026)
    assert (law.start_token, law.end_token, law.num_tokens, law.vocab_size) == (10_000, 10_001, 10_002, 64_000)
    assert law.sequence_length + 1 - law.first_scored_token == 987
    assert rule.params_of(law).score_bytes == 1440 and rule.params_of(law).document_tokens == 1026


def test_parameters_of_a_rule():
    """686 as released, 614 where only the two spatial axes are padded."""
    for wrap, expected in ((True, 686), (False, 614)):
        shapes = rule.kernel_shapes(10, wrap)
        kernels = sum(len_product(shape) for shape in shapes.values())
        assert kernels + 4 + 16 + 10 == expected


def len_product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def test_paper_differs_where_the_ledger_says():
    paper = preset("paper")
    assert (paper.temperature, paper.initial_state, paper.channel_padding) == (1e-3, "uniform", "none")
    assert paper.vocab_size == 10_002 and paper.first_scored_token == 1 and paper.num_rules is None
    assert rule.fan_ins(10, wrap_channels=False) == (90, 4, 16)


def test_document_covers_the_target_of_a_whole_number_of_frames():
    law = NcaLaw(sequence_length=38 * 3)
    assert law.num_frames == 4 and law.document_tokens > law.sequence_length


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_states": 1}, "law.num_states = 1"),
        ({"num_states": 17}, "law.num_states = 17"),
        ({"patch": 5}, "law.patch = 5"),
        ({"height": 13}, "law.height = 13.*multiple of patch"),
        ({"patch": 3, "num_states": 10}, "tokens exceed 2"),
        ({"sequence_length": 30}, "fewer than two frames"),
        ({"band": (0.5, 0.5)}, r"law.band = \[0.5, 0.5\]"),
        ({"temperature": 0.0}, "law.temperature = 0.0"),
        ({"num_rules": 0}, "law.num_rules = 0"),
        ({"allocated_vocab_size": 10_000}, "below the 10002 tokens"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(preset("released"), **changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"temperature": 1e-40}, "temperature = 1e-40"),
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"identity_bias": float("nan")}, "identity_bias = nan"),
        ({"score_dtype": "uint8"}, "cannot hold 10002 tokens"),
        ({"burn_in_steps": 2**20, "score_frames": 2**16, "steps_per_frame": 2**16}, "2\\^32 steps"),
    ],
)
def test_what_the_generator_cannot_do_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        rule.params_of(replace(preset("released"), **changes))


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="released"):
        preset("relased")


def test_the_scored_rollout_is_emitted_by_the_cpu_only():
    from megatron_nca.sources.nca import NcaSource

    law = NcaLaw(num_states=4, height=6, width=6, sequence_length=60, score_frames=3, emitted_rollout="scored")
    with pytest.raises(ConfigError, match=r"emitted_rollout = 'scored': is not offered"):
        NcaSource(law, 4, 0, device="cuda")
