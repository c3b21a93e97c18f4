"""The gzip ratio against Python's gzip, and bands out of reach."""

import gzip
import io

import numpy as np
import pytest

from megatron_nca.config.law import NcaLaw, preset, replace
from megatron_nca.errors import ConfigError, DataError
from megatron_nca.nca import complexity, patches, simulate


def python_gzip_ratio(tokens: np.ndarray, dtype: str) -> np.ndarray:
    """As the released code does it."""
    ratios = []
    for row in tokens:
        data = row.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9) as file:
            file.write(data)
        ratios.append(len(buffer.getvalue()) / len(data))
    return np.array(ratios)


def test_sequences_of_rules():
    law = NcaLaw()
    documents = simulate.documents(law, 2, np.arange(1000), np.zeros(1000), threads=2)
    tokens = documents.reshape(1000, 27, 38)[:, :, 1:-1]
    for frames, dtype in ((10, "int32"), (10, "uint16"), (27, "int32")):
        got = complexity.gzip_ratio(tokens[:, :frames], dtype=dtype, threads=2)
        np.testing.assert_array_equal(got, python_gzip_ratio(tokens[:, :frames], dtype))


@pytest.mark.parametrize("length", [1, 4, 1000, 20_000, 200_000])
@pytest.mark.parametrize("kind", ["constant", "two values", "random", "periodic"])
def test_any_buffer(length, kind):
    """Long ones pass zlib's window and its block of 16,384 symbols."""
    rng = np.random.default_rng(length)
    values = {
        "constant": np.zeros(length, dtype=int),
        "two values": rng.integers(0, 2, length),
        "random": rng.integers(0, 2**31, length),
        "periodic": np.arange(length) % 40_000 * 7919,
    }[kind]
    tokens = values.reshape(1, 1, -1)
    np.testing.assert_array_equal(complexity.gzip_ratio(tokens), python_gzip_ratio(tokens, "int32"))


def test_scores_are_ratios_of_the_scored_frames():
    """A rollout from the first frame on, scored by hand, equals what the generator reports of the same law."""
    law = NcaLaw(burn_in_steps=3, score_frames=5, score_delimiters=True)
    ratios = simulate.score(law, 1, 0, 64)
    assert np.all((ratios > 0.02) & (ratios < 0.8))
    plain = simulate.score(replace(law, score_delimiters=False), 1, 0, 64)
    assert not np.array_equal(ratios, plain)
    bytes_of_law = 5 * 38 * 4
    np.testing.assert_array_equal(np.rint(ratios * bytes_of_law) / bytes_of_law, ratios)


def test_tokens_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="do not fit uint16"):
        complexity.gzip_ratio(np.full((1, 1, 4), 65_536), dtype="uint16")
    with pytest.raises(ConfigError, match="score_dtype = 'uint8'"):
        simulate.score(NcaLaw(score_dtype="uint8"), 0, 0, 1)


def test_extremes_enclose_all_rules():
    for law in (NcaLaw(), NcaLaw(num_states=2), NcaLaw(num_states=2, patch=4), NcaLaw(patch=1)):
        floor, ceiling = complexity.extremes(law)
        ratios = simulate.score(law, 1, 0, 1000, threads=2)
        assert floor <= ratios.min() and ratios.max() < ceiling


def test_a_band_out_of_reach_is_refused_with_the_cure():
    with pytest.raises(ConfigError, match=r"law\.band = \[0\.5, 1\.0\].*num_states = 2.*at most 0\.2.*Cure: lower LOW"):
        complexity.check_band(replace(preset("released"), num_states=2))
    with pytest.raises(ConfigError, match=r"tokens that are all equal have a gzip ratio of 0\.022"):
        complexity.check_band(NcaLaw(band=(0.0, 0.02)))
    complexity.check_band(preset("released"))
    complexity.check_band(NcaLaw(num_states=2, band=(0.2, 0.24)))


def test_another_zlib_is_refused(monkeypatch):
    complexity.check_zlib()
    complexity.check_zlib.cache_clear()
    monkeypatch.setattr(complexity, "ZLIB_PROBE_BYTES", 1217)
    with pytest.raises(DataError, match=r"zlib = 1218.*1217 bytes"):
        complexity.check_zlib()
    complexity.check_zlib.cache_clear()


def test_ratio_of_a_frame_that_never_changes():
    frames = np.broadcast_to(np.zeros((1, 1, 12, 12), dtype=int), (1, 10, 12, 12))
    assert complexity.gzip_ratio(patches.encode(frames, 10, 2)) == 32 / 1440
