"""Bands: the calibrated scale, their bytes, and the presets of domains."""

import json

import numpy as np
import pytest

from megatron_nca.__main__ import main
from megatron_nca.config.law import NcaLaw, domain_band, preset, replace
from megatron_nca.data.manifest import Manifest
from megatron_nca.errors import ConfigError
from megatron_nca.nca import complexity, simulate
from megatron_nca.sources.nca import NcaSource, generate

SMALL = NcaLaw(num_states=2, height=8, width=8, sequence_length=64, score_frames=15)
FROZEN = {10: 61_686, 2: 16_235}
"""Bytes of the 64 streams together, by number of states."""


def test_the_unit_is_a_constant_of_the_law():
    """The paper's facts: uniform tokens score 0.669 with 10 states and 0.246 with 2."""
    assert complexity.uniform_ratio(NcaLaw()) == pytest.approx(0.669, abs=0.002)
    assert complexity.uniform_ratio(NcaLaw(num_states=2)) == pytest.approx(0.246, abs=0.002)
    assert round(complexity.uniform_ratio(NcaLaw()) * 64 * 1440, 6) == FROZEN[10]
    with_delimiters = complexity.uniform_ratio(replace(SMALL, score_delimiters=True))
    assert with_delimiters != complexity.uniform_ratio(SMALL)


def test_a_calibrated_band_is_the_official_one_times_the_unit():
    law = replace(SMALL, band=(0.2, 0.9), band_scale="calibrated")
    unit = complexity.uniform_ratio(law)
    assert complexity.official_band(law) == (0.2 * unit, 0.9 * unit)
    assert complexity.official_band(replace(law, band_scale="official")) == (0.2, 0.9)
    same = replace(SMALL, band=(0.2 * unit, 0.9 * unit))
    np.testing.assert_array_equal(NcaSource(law, 9, 1).acceptance(0, 500), NcaSource(same, 9, 1).acceptance(0, 500))


def test_bytes_of_a_band_are_just_those_that_pass():
    for law in (NcaLaw(), SMALL, replace(SMALL, band=(0.3, 0.8), band_scale="calibrated"), NcaLaw(band=(0.05, 0.25))):
        fewest, most = complexity.band_bytes(law)
        total = law.score_frames * law.patches_per_frame * 4
        low, high = complexity.official_band(law)
        inside = [size for size in range(2 * total) if low < size / total < high]
        assert [fewest, most] == [inside[0], inside[-1]]


def test_the_manifest_records_the_band_as_it_was_applied(tmp_path):
    law = replace(SMALL, band=(0.2, 0.9), band_scale="calibrated")
    manifest = generate(NcaSource(law, 30, 1), tmp_path / "nca")
    assert manifest.origin["band_bytes"] == list(complexity.band_bytes(law))
    assert manifest.origin["uniform_ratio"] == complexity.uniform_ratio(law)
    assert manifest.origin["law"]["band_scale"] == "calibrated"
    examined = manifest.origin["candidates_examined"]
    sizes = simulate.score(law, 1, 0, examined) * law.score_frames * law.patches_per_frame * 4
    fewest, most = complexity.band_bytes(law)
    assert int(((fewest <= sizes) & (sizes <= most)).sum()) == 30


def test_a_dataset_from_before_the_scale_is_still_the_same(tmp_path, capsys):
    words = ["generate", "--sequences", "5", "--output", str(tmp_path / "nca")]
    assert main(words) == 0
    path = tmp_path / "nca.json"
    values = json.loads(path.read_text())
    del values["origin"]["law"]["band_scale"], values["origin"]["band_bytes"], values["origin"]["uniform_ratio"]
    path.write_text(json.dumps(values))
    assert main(words) == 0
    assert "is there already" in capsys.readouterr().out
    assert main([*words, "--band-scale", "calibrated"]) == 2
    assert "law.band_scale = 'official' (asked: 'calibrated')" in capsys.readouterr().err


def test_a_calibrated_band_out_of_reach():
    with pytest.raises(ConfigError, match=r"law.band = \[1.2, 2.0\]: no rule can pass \(band_scale = calibrated"):
        complexity.check_band(replace(SMALL, band=(1.2, 2.0), band_scale="calibrated"))
    with pytest.raises(ConfigError, match="set band_scale to calibrated"):
        complexity.check_band(SMALL)
    complexity.check_band(replace(SMALL, band_scale="calibrated"))


def test_domains(tmp_path, capsys):
    assert domain_band("web") == domain_band("math") == (0.5, 1.0) and domain_band("code") == (0.3, 0.4)
    words = ["generate", "--sequences", "5", "--output", str(tmp_path / "nca")]
    assert main([*words, "--domain", "code"]) == 0
    assert Manifest.load(tmp_path / "nca").origin["law"]["band"] == [0.3, 0.4]
    capsys.readouterr()
    assert main([*words, "--domain", "cod"]) == 2
    assert "Did you mean 'code'" in capsys.readouterr().err
    assert main([*words, "--domain", "code", "--band", "0.1", "0.2"]) == 2
    assert "--domain = 'code': names a band" in capsys.readouterr().err


def test_the_unit_needs_no_generator_of_numpys(monkeypatch):
    """numpy.random.Generator may change between versions; the raw words of its bit generators do not."""
    monkeypatch.setattr(np.random, "Generator", None)
    assert round(complexity.uniform_ratio(SMALL) * 64 * 960, 6) == FROZEN[2]
    assert preset("released").band_scale == "official"
