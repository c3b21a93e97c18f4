"""The device "cuda" against the CPU: the same scores, decisions, documents and datasets, to the byte."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from megatron_nca.__main__ import main
from megatron_nca.config.law import NcaLaw, preset, replace
from megatron_nca.errors import DataError
from megatron_nca.nca import reference, simulate
from megatron_nca.sources.nca import NcaSource

LAWS = {
    "released": NcaLaw(),
    "paper": replace(preset("paper"), sequence_length=200),
    "two states": NcaLaw(num_states=2, height=8, width=8, sequence_length=100),
    "three states, patches of three": NcaLaw(num_states=3, height=9, width=12, patch=3, sequence_length=100),
    "seven states, patches of one": NcaLaw(num_states=7, height=5, width=11, patch=1, sequence_length=200),
    "fifteen states": NcaLaw(num_states=15, sequence_length=200),
    "sixteen states, all drawn": NcaLaw(num_states=16, height=10, width=6, sequence_length=60, temperature=1.0),
    "tokens beyond uint16": NcaLaw(num_states=2, height=8, width=8, patch=4, sequence_length=20),
    "bytes of tokens": NcaLaw(num_states=3, height=8, width=8, sequence_length=40, score_dtype="uint8"),
    "the greatest grid": NcaLaw(num_states=12, height=64, width=64, sequence_length=2100, score_frames=2),
    "the least grid": NcaLaw(num_states=4, height=2, width=2, patch=1, sequence_length=30),
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
}
CANDIDATES = np.array([0, 5, 77, 2**32 - 1, 6])
REPEATS = np.array([0, 1, 2, 2**32 - 1, 0])
SEED = 12345678901234567890
COUNT = 37
"""Odd, so that the last warp is not full."""


@pytest.mark.parametrize("name", LAWS)
def test_same_documents_scores_and_decisions(backend, name):
    law = LAWS[name]
    np.testing.assert_array_equal(
        simulate.documents(law, SEED, CANDIDATES, REPEATS, device="cuda"),
        simulate.documents(law, SEED, CANDIDATES, REPEATS),
    )
    expected = simulate.score(law, SEED, 7, COUNT)
    np.testing.assert_array_equal(simulate.score(law, SEED, 7, COUNT, device="cuda"), expected)
    low, high = np.quantile(expected, [0.3, 0.8])
    for band in ((0.0, 1e9), (low, 1e9), (low, high), (0.0, high)):
        got = simulate.accept(law, SEED, 7, COUNT, band=band, device="cuda")
        np.testing.assert_array_equal(got, (band[0] < expected) & (expected < band[1]), err_msg=str(band))


def test_sums_keep_their_order(emulated):
    """To the bit: rollouts show another order only where two logits tie, about one cell in ten million."""
    library = ctypes.CDLL(emulated.__file__)
    rng = np.random.default_rng(0)
    for _ in range(50):
        table, hidden, logit = (rng.normal(size=shape).astype(np.float32) for shape in ((9, 10, 4), (16, 4), (16, 10)))
        nine = rng.integers(0, 10, 9).astype(np.uint8)
        features, logits = np.zeros(4, np.float32), np.zeros(10, np.float32)
        arrays = (table, hidden, logit, nine, features, logits)
        library.emulated_logits(*(ctypes.c_void_p(array.ctypes.data) for array in arrays))
        left, centre, right = (table[np.arange(side, 9, 3), nine[side::3]] for side in range(3))
        rows = (left + centre) + right
        np.testing.assert_array_equal(features, (rows[0] + rows[1]) + rows[2])
        of_hidden, expected = np.zeros(16, np.float32), np.zeros(10, np.float32)
        for k in range(4):
            of_hidden = reference.fma32(features[k], hidden[:, k], of_hidden)
        for j in range(16):
            expected = reference.fma32(np.maximum(of_hidden[j], np.float32(0)), logit[j], expected)
        np.testing.assert_array_equal(logits, expected)


def test_candidates_at_the_end_and_none_at_all(backend):
    law = LAWS["two states"]
    last = simulate.score(law, 1, 2**32 - 3, 3)
    np.testing.assert_array_equal(simulate.score(law, 1, 2**32 - 3, 3, device="cuda"), last)
    assert simulate.score(law, 1, 0, 0, device="cuda").shape == (0,)
    assert simulate.accept(law, 1, 0, 0, device="cuda").shape == (0,)
    none = np.zeros(0, dtype=np.uint32)
    assert simulate.documents(law, 1, none, none, device="cuda").shape == (0, law.document_tokens)


DATASETS = {
    "released": ["--preset", "released", "--sequences", 60, "--seed", 7, "--num-rules", 40],
    "two states": ["--num-states", 2, "--grid", 8, 8, "--sequence-length", 64, "--band", 0.1, 0.3, "--sequences", 500],
    "outside the fast filter": [
        *["--num-states", 3, "--grid", 9, 9, "--patch", 3, "--score-dtype", "uint16", "--sequence-length", 64],
        *["--band", 0.3, 1.0, "--sequences", 30, "--identity-bias", 0.05],
    ],
}


@pytest.mark.parametrize("name", DATASETS)
def test_whole_datasets_have_the_same_bytes(backend, name, tmp_path, capsys):
    for device in ("cpu", "cuda"):
        words = ["generate", *DATASETS[name], "--threads", 2, "--device", device, "--output", tmp_path / device / "nca"]
        assert main(list(map(str, words))) == 0
    for ending in ("bin", "idx", "json"):
        got, expected = ((tmp_path / device / f"nca.{ending}").read_bytes() for device in ("cuda", "cpu"))
        assert got == expected, ending
    said = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines() if "candidates passed" in line]
    assert len(said) == 2 and said[0] == said[1]


def test_documents_that_are_held_are_not_written_over(backend):
    """Batches lie in pinned memory that is used again, but not while an array refers to it."""
    law = LAWS["two states"]
    found = simulate.search(law, 3, (0.0, 1e9), 5)
    held = [next(found)[1:] for _ in range(7)]
    for numbers, tokens in held:
        np.testing.assert_array_equal(tokens, simulate.documents(law, 3, numbers, 0 * numbers))


def test_a_band_that_nothing_meets_ends(backend):
    law = replace(LAWS["two states"], band=(0.308, 0.3105))
    with pytest.raises(DataError, match=r"0 of the first 2\d,\d{3} candidates lie in it"):
        list(NcaSource(law, 1_000, 1, device="cuda").blocks())


def test_controls_have_no_device(tmp_path, capsys):
    words = ["generate", "--source", "dyck", "--sequences", "2", "--device", "cuda", "--output", str(tmp_path / "dyck")]
    assert main(words) == 2
    assert "--device: is of automata, and the source is dyck. Cure: " in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())
