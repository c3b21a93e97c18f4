"""The compiled generator against plain NumPy, its kernels and threads against each other."""

import platform
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_nca import ops
from megatron_nca.config.law import NcaLaw
from megatron_nca.errors import ConfigError
from megatron_nca.nca import reference, simulate

LAWS = {
    "released": NcaLaw(),
    "two states": NcaLaw(num_states=2, height=8, width=8, sequence_length=100),
    "all other settings": NcaLaw(
        num_states=5,
        height=6,
        width=8,
        sequence_length=100,
        temperature=0.1,
        initial_state="uniform",
        channel_padding="none",
        identity_bias=0.3,
        steps_per_frame=3,
        burn_in_steps=0,
        score_delimiters=True,
        score_frames=4,
        score_dtype="uint16",
    ),
    "emits what was scored": NcaLaw(
        num_states=4, height=6, width=6, sequence_length=60, score_frames=3, emitted_rollout="scored"
    ),
    "most states": NcaLaw(num_states=16, height=10, width=6, sequence_length=60, temperature=1.0),
    "a grid that fills no vector": NcaLaw(num_states=3, height=3, width=9, patch=3, sequence_length=40),
    "rows longer than a vector": NcaLaw(num_states=9, height=4, width=38, sequence_length=120, temperature=1e-2),
}
CANDIDATES = np.array([0, 5, 77, 2**32 - 1])
REPEATS = np.array([0, 1, 2, 2**32 - 1])
SEED = 12345678901234567890


def test_philox_known_answers():
    """Of the Random123 distribution, kat_vectors, philox4x32 with 10 rounds."""
    answers = [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, key, expected in answers:
        assert ops.philox(counter, key).tolist() == expected
        assert [int(word) for word in reference.philox(counter, *key)] == expected


finite = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**40), max_value=2.0**40)


@settings(max_examples=300, deadline=None)
@given(finite, finite, finite)
def test_reference_rounds_a_fused_multiply_add_once(a, b, c):
    got = float(reference.fma32(np.float32(a), np.float32(b), np.float32(c)))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    below, above = np.nextafter(np.float32(got), np.float32([-np.inf, np.inf]))
    miss = abs(Fraction(got) - exact)
    assert miss <= abs(Fraction(float(below)) - exact) and miss <= abs(Fraction(float(above)) - exact)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("kernel", ops.kernel_names())
def test_compiled_equals_reference_to_the_bit(name, kernel):
    law = LAWS[name]
    expected, got = reference.draw(law, SEED, CANDIDATES), simulate.draw(law, SEED, CANDIDATES, kernel=kernel)
    for array in ops.WEIGHTS:
        np.testing.assert_array_equal(got[array], expected[array], err_msg=array)
    np.testing.assert_array_equal(
        simulate.documents(law, SEED, CANDIDATES, REPEATS, kernel=kernel),
        reference.documents(law, SEED, CANDIDATES, REPEATS),
    )
    np.testing.assert_array_equal(simulate.score(law, SEED, 7, 4, kernel=kernel), reference.score(law, SEED, 7, 4))


NEEDED = {"portable": set(), "avx2": {"avx2", "fma"}}
NEEDED["avx512"] = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "fma"}
NEEDED["avx512_vnni"] = NEEDED["avx512"] | {"avx512_vnni"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the vector kernels are for x86-64")
def test_kernels_are_offered_where_the_processor_has_their_instructions():
    flags = set(re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    fastest_first = ("avx512_vnni", "avx512", "avx2", "portable")
    assert ops.kernel_names() == [name for name in fastest_first if NEEDED[name] <= flags]


def test_a_grid_is_only_at_rest_when_nothing_was_drawn():
    """Logits that are the same everywhere: a gap without draws, and one that a cell in 150 crosses now and then."""
    shapes = {"conv0": (2, 3, 3, 4, 4), "conv0_bias": (2, 4), "conv1": (2, 4, 16), "conv1_bias": (2, 16)}
    weights = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    weights |= {"conv2": np.zeros((2, 16, 2), np.float32), "conv2_bias": np.array([[0, 1], [0, 0.05]], np.float32)}
    states = np.zeros((2, 6, 6), dtype=int)
    for kernel in ops.kernel_names():
        got = simulate.rollout(weights, states, 60, 1e-2, 0, kernel=kernel)
        np.testing.assert_array_equal(got, reference.rollout(weights, states, 60, 1e-2, 0))
        assert got[0, 1:].all()
        same = (got[1, 2:] == got[1, 1:-1]).all(axis=(1, 2)).tolist()
        assert False in same[same.index(True) :], "no step changed a state after one that changed none"


@pytest.mark.parametrize("temperature", [1e-4, 1e-2, 1.0, 1e-30])
def test_rollouts_over_explicit_weights(temperature):
    rng = np.random.default_rng(0)
    weights = simulate.draw(LAWS["released"], 1, np.arange(6))
    weights = {name: array + rng.normal(0, 0.1, array.shape).astype(np.float32) for name, array in weights.items()}
    states = rng.integers(0, 10, (6, 5, 7))
    got = simulate.rollout(weights, states, 6, temperature, 3, identity_bias=0.1, threads=2)
    np.testing.assert_array_equal(got, reference.rollout(weights, states, 6, temperature, 3, identity_bias=0.1))
    np.testing.assert_array_equal(got[:, 0], states)
    one = simulate.step(weights, states, temperature, 3, identity_bias=0.1)
    np.testing.assert_array_equal(one, got[:, 1])
    np.testing.assert_array_equal(one, reference.step(weights, states, temperature, 3, identity_bias=0.1))


def test_nothing_depends_on_threads_or_blocks():
    law = LAWS["released"]
    whole = simulate.score(law, 3, 0, 100)
    assert np.array_equal(whole, simulate.score(law, 3, 0, 100, threads=3))
    assert np.array_equal(whole[37:61], simulate.score(law, 3, 37, 24, threads=2))
    every = simulate.documents(law, 3, np.arange(50), np.zeros(50))
    assert np.array_equal(every, simulate.documents(law, 3, np.arange(50), np.zeros(50), threads=3))
    assert np.array_equal(every[[9, 4]], simulate.documents(law, 3, np.array([9, 4]), np.zeros(2)))


def test_seeds_candidates_and_repeats_differ():
    law = LAWS["released"]
    documents = np.concatenate(
        [
            simulate.documents(law, 3, [0, 1, 0], [0, 0, 1]),
            simulate.documents(law, 4, [0], [0]),
            simulate.documents(law, 3 + 2**32, [0], [0]),
        ]
    )
    assert len(np.unique(documents[:, 1:37], axis=0)) == 5


def test_wrong_weights_and_states_are_named():
    weights = simulate.draw(LAWS["two states"], 1, np.arange(2))
    states = np.zeros((2, 4, 4), dtype=int)
    cases = [
        ("conv1", {**weights, "conv1": weights["conv1"][:, :, :8]}, states),
        ("'conv2_bias' is missing", {name: a for name, a in weights.items() if name != "conv2_bias"}, states),
        ("input channels", {**weights, "conv0": np.zeros((2, 3, 3, 7, 4))}, states),
        ("states", weights, states + 2),
        ("states", weights, states[:1]),
    ]
    for message, bad_weights, bad_states in cases:
        for module in (simulate, reference):
            with pytest.raises(ConfigError, match=message):
                module.rollout(bad_weights, bad_states, 1, 1e-4, 0)
    with pytest.raises(ConfigError, match=r"temperature = 0\.0"):
        simulate.rollout(weights, states, 1, 0.0, 0)
    with pytest.raises(ConfigError, match="seed = -1"):
        simulate.rollout(weights, states, 1, 1e-4, -1)
    with pytest.raises(ValueError, match="not available"):
        simulate.rollout(weights, states, 1, 1e-4, 0, kernel="abacus")


def test_generation_does_not_import_torch():
    code = (
        "import sys; import megatron_nca.sources.nca, megatron_nca.nca.reference, megatron_nca.cli.generate; "
        "sys.exit(int('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("num_states", [2, 3, 10, 16])
def test_kernels_agree_on_weights_of_any_size(num_states):
    """A kernel that looks in integers first has scales and bounds by rule: far out, lopsided, zero, and close calls."""
    rng = np.random.default_rng(num_states)
    law = NcaLaw(num_states=num_states, height=6, width=8, sequence_length=60)
    count = 96
    weights = simulate.draw(law, 2, np.arange(count))
    weights = {
        name: array * 10.0 ** rng.choice([-20, -3, 0, 0, 0, 3, 9], (count,) + (1,) * (array.ndim - 1))
        for name, array in weights.items()
    }
    weights["conv1"][::7, 1] *= 1000  # one feature counts for all
    weights["conv1"][::11, :, 3] = 0  # a hidden value that is always its bias
    weights["conv2"][::5, :, 1] = weights["conv2"][::5, :, 0] * (1 + 1e-6)  # two states nearly as likely everywhere
    for name in ("conv0_bias", "conv1_bias", "conv2_bias"):
        weights[name] = rng.normal(0, 0.2, weights[name].shape) * rng.choice([0, 1, 1e6], (count, 1))
    weights = {name: np.float32(array) for name, array in weights.items()}
    states = rng.integers(0, num_states, (count, 12, 13))
    for temperature in (1e-4, 1e-2, 3.0):
        plain = simulate.rollout(weights, states, 12, temperature, 3, kernel="portable")
        for kernel in ops.kernel_names():
            got = simulate.rollout(weights, states, 12, temperature, 3, kernel=kernel)
            np.testing.assert_array_equal(got, plain, err_msg=f"{kernel}, {temperature}")
