"""What a bank refuses, with one message, and that bank and datasets are as they were."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_nca.__main__ import main
from megatron_nca.config.law import LAW_VERSION, SCORING_SETTINGS, NcaLaw, replace
from megatron_nca.errors import DataError
from megatron_nca.nca import simulate

pytest.importorskip("zarr", reason="the extra `zarr` is not installed (it needs Python 3.11)")
from megatron_nca.nca.bank import Bank


@pytest.fixture
def bank(tmp_path_factory, whole) -> Path:
    """A copy that a test may damage."""
    folder = tmp_path_factory.mktemp("copy") / "bank"
    shutil.copytree(whole, folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("module") / "bank"
    assert main(["bank", "fill", str(folder), "--seed", "7", "--candidates", "512", "--block", "128"]) == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    """The one message of a command that ends with 2."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("Cure:" in said or "Did you mean" in said), said
    return said


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[17] ^= 4
    path.write_bytes(damaged)


def swap(path: Path) -> None:
    path.write_bytes(path.with_name("3").read_bytes())


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, "257 bytes in place of 260"),
        (lambda path: path.write_bytes(b""), "0 bytes in place of 260"),
        (flip, "checksum is wrong"),
        (swap, "when scored again"),
    ],
    ids=["short", "empty", "a bit", "another block's"],
)
def test_a_torn_block(bank, whole, tmp_path, capsys, damage, why):
    damage(bank / "c" / "1")
    before = content(bank)
    options = ["generate", "--seed", 7, "--sequences", 200, "--output", tmp_path / "nca"]
    for more in ([], ["--extend-bank"]):
        said = refused(capsys, *options, "--bank", bank, *more)
        assert "c/1: is torn" in said and why in said
    assert not list(tmp_path.iterdir()) and content(bank) == before
    assert "c/1: is torn" in refused(capsys, "bank", "inspect", bank)
    assert main(["bank", "fill", str(bank), "--seed", "7", "--candidates", "512"]) == 0
    assert "made again" in capsys.readouterr().err
    assert content(bank) == content(whole)


def test_foreign_settings(bank, tmp_path, capsys):
    before = content(bank)
    said = refused(capsys, "bank", "fill", bank, "--candidates", 999, "--temperature", 0.5)
    assert "seed = 7 (asked: 0)" in said and "law.temperature = 0.0001 (asked: 0.5)" in said
    said = refused(capsys, "bank", "fill", bank, "--seed", 7, "--candidates", 999, "--block", 256)
    assert "block = 256" in said and "128" in said
    options = ["generate", "--seed", 7, "--sequences", 9, "--bank", bank, "--output", tmp_path / "nca"]
    assert "law.score_frames = 10 (asked: 27)" in refused(capsys, *options, "--score-frames", 27, "--band", 0.4, 0.5)
    assert "of other settings" in refused(capsys, *options, "--initial-state", "uniform", "--extend-bank")
    assert "of other settings" in refused(capsys, *options, "--initial-state", "uniform", "--dry-run")
    assert not list(tmp_path.iterdir()) and content(bank) == before


def test_a_bank_of_another_version_of_the_law(bank, capsys):
    record = json.loads((bank / "zarr.json").read_text())
    record["attributes"]["law_version"] += 1
    (bank / "zarr.json").write_text(json.dumps(record))
    said = refused(capsys, "bank", "fill", bank, "--seed", 7, "--candidates", 9)
    assert f"law_version = {LAW_VERSION + 1} (asked: {LAW_VERSION})" in said


@pytest.mark.parametrize("record", ["{", "{}", "[]", "foreign", "newer", "law"])
def test_a_record_that_is_none(bank, capsys, record):
    values = json.loads((bank / "zarr.json").read_text())
    if record == "foreign":
        values["attributes"] = {}
    elif record == "newer":
        values["attributes"]["version"] = 2
    elif record == "law":
        del values["attributes"]["law"]["patch"]
    text = record if record[0] in "{[" else json.dumps(values)
    (bank / "zarr.json").write_text(text)
    assert "is not the record of a bank" in refused(capsys, "bank", "inspect", bank)
    assert "is not the record of a bank" in refused(capsys, "bank", "fill", bank, "--candidates", 9)
    assert (bank / "zarr.json").read_text() == text


def test_a_place_that_holds_something_else(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    for name in ("file", "folder"):
        assert "is no bank" in refused(capsys, "bank", "fill", tmp_path / name, "--candidates", 9)
    assert content(tmp_path) == {"file": b"mine", "folder/file": b"mine"}
    assert "there is no bank" in refused(capsys, "bank", "inspect", tmp_path / "folder")
    options = ["generate", "--sequences", 9, "--output", tmp_path / "nca", "--bank", tmp_path / "none"]
    assert "there is no bank" in refused(capsys, *options, "--extend-bank")


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))


def test_no_space_left_in_the_middle(bank, tmp_path):
    prefix = tmp_path / "nca"
    options = ["generate", "--seed", "7", "--sequences", "150", "--bank", str(bank)]
    assert main([*options, "--output", str(prefix)]) == 0
    before = content(bank), content(tmp_path)
    words = ["bank", "fill", str(bank), "--seed", "7", "--candidates", "2000"]
    command = [sys.executable, "-m", "megatron_nca", *words]
    result = subprocess.run(command, preexec_fn=limit_files, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "c/4: cannot be written" in result.stderr and "Cure:" in result.stderr
    assert (content(bank), content(tmp_path)) == before
    assert main([*options, "--output", str(tmp_path / "again")]) == 0


def test_a_disk_too_small_is_seen_before(bank, capsys, monkeypatch):
    before = content(bank)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(500, 0, 500))
    said = refused(capsys, "bank", "fill", bank, "--seed", 7, "--candidates", 1024)
    assert "kB, and in" in said and "free some space" in said
    assert content(bank) == before


def test_a_new_bank_on_a_disk_too_small_is_not_begun(tmp_path, capsys, monkeypatch):
    words = ["bank", "fill", tmp_path / "deep" / "bank", "--candidates"]
    with monkeypatch.context() as context:
        context.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(500, 0, 500))
        assert "are free. Cure: free some space" in refused(capsys, *words, 1024)
    assert not list(tmp_path.iterdir())
    assert main([*map(str, words), "128", "--block", "128", "--seed", "3"]) == 0


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, "bank", "fill", tmp_path / "file" / "bank", "--candidates", 9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--candidates", 0], "candidates = 0"),
        (["--candidates", 2**32 + 1], "candidates = 4294967297"),
        (["--candidates", 9, "--shard", "8/8"], "shard = '8/8'"),
        (["--candidates", 9, "--shard", "one"], "shard = 'one'"),
        (["--candidates", 9, "--block", 1000], "block = 1000"),
        (["--candidates", 9, "--threads", 0], "threads = 0"),
        (["--candidates", 9, "--seed", -1], "seed = -1"),
        (["--candidates", 9, "--grid", 12, 13], "law.width = 13"),
        (["--candidates", 9, "--score-dtype", "uint8"], "cannot hold 10002 tokens"),
        (["--candidates", 9, "--preset", "relased"], "Did you mean 'released'"),
    ],
)
def test_options_of_fill(tmp_path, capsys, words, message):
    assert message in refused(capsys, "bank", "fill", tmp_path / "bank", *words)
    assert not list(tmp_path.iterdir()), "the same command with other values would find a bank of other settings"


def test_each_refused_number_of_candidates_has_its_cure(tmp_path, capsys):
    assert "Cure: give at least 1." in refused(capsys, "bank", "fill", tmp_path / "bank", "--candidates", 0)
    said = refused(capsys, "bank", "fill", tmp_path / "bank", "--candidates", 2**32 + 1)
    assert "Cure: take another seed for more." in said


def test_options_that_belong_together(bank, tmp_path, capsys):
    options = ["generate", "--sequences", 9, "--output", tmp_path / "nca", "--extend-bank"]
    assert "--extend-bank: belongs to --bank" in refused(capsys, *options)
    assert "is not an interval" in refused(capsys, "bank", "inspect", bank, "--band", 0.5, 0.4)


@pytest.mark.parametrize("words", [["bank", "inspect"], ["generate", "--sequences", "9", "--output", "x", "--bank"]])
def test_without_zarr_there_is_one_message(bank, tmp_path, words):
    code = (
        "import sys; sys.modules['zarr'] = None; from megatron_nca.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *words, str(bank)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert result.returncode == 2 and not list(tmp_path.iterdir())
    assert result.stderr.count("\n") == 1 and "pip install 'zarr>=3'" in result.stderr


def test_reading_an_absent_block(bank):
    with pytest.raises(DataError, match="c/4: is missing, so candidates from 512 on"):
        Bank(bank).ratios(510, 10)


OTHER = {
    "num_states": 9,
    "height": 14,
    "width": 10,
    "patch": 1,
    "sequence_length": 300,
    "burn_in_steps": 3,
    "steps_per_frame": 2,
    "temperature": 0.5,
    "identity_bias": 3.0,
    "initial_state": "uniform",
    "channel_padding": "none",
    "allocated_vocab_size": 64_000,
    "scored_positions": "all",
    "emitted_rollout": "scored",
    "score_frames": 9,
    "score_dtype": "uint16",
    "score_delimiters": True,
    "band": (0.2, 0.3),
    "band_scale": "calibrated",
    "num_rules": 5,
}


@pytest.mark.parametrize("name", OTHER)
def test_scores_depend_on_just_the_settings_that_a_bank_records(name):
    assert set(OTHER) == set(NcaLaw.__dataclass_fields__)
    ratios = [simulate.score(law, 7, 0, 40) for law in (NcaLaw(), replace(NcaLaw(), **{name: OTHER[name]}))]
    assert np.array_equal(*ratios) == (name not in SCORING_SETTINGS)
