"""The rule bank: the same scores and datasets as without it, from any number of processes, whatever was killed."""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_nca.__main__ import main
from megatron_nca.config.law import NcaLaw, preset, replace
from megatron_nca.nca import simulate

zarr = pytest.importorskip("zarr", reason="the extra `zarr` is not installed (it needs Python 3.11)")
from megatron_nca.nca import bank as bank_module  # noqa: E402 - imports zarr
from megatron_nca.nca.bank import Bank  # noqa: E402

SEED = 7
BLOCK = 1024
CANDIDATES = 20 * BLOCK
PAPER_SHARES = {"below 0.2": 19.9, "0.2 to 0.3": 6.2, "0.3 to 0.4": 9.2, "0.4 to 0.5": 17.8, "from 0.5": 46.7}


def verb(*words: object) -> int:
    return main([str(word) for word in words])


def fill(folder: Path, candidates: int, *more: object) -> int:
    return verb("bank", "fill", folder, "--seed", SEED, "--candidates", candidates, "--threads", 2, *more)


def generate(prefix: Path, sequences: int, *more: object) -> int:
    return verb("generate", "--seed", SEED, "--sequences", sequences, "--output", prefix, "--threads", 2, *more)


def start_fill(folder: Path, candidates: int, *more: object) -> subprocess.Popen:
    words = ["bank", "fill", folder, "--seed", SEED, "--candidates", candidates, "--threads", 1, *more]
    return subprocess.Popen([sys.executable, "-m", "megatron_nca", *map(str, words)], stdout=subprocess.DEVNULL)


def parts(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}.{ending}").read_bytes() for ending in ("bin", "idx", "json")]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    """20 blocks of the released law."""
    folder = tmp_path_factory.mktemp("module") / "bank"
    assert fill(folder, CANDIDATES - 5, "--block", BLOCK) == 0
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[tuple[float, float], list[bytes]]:
    """Datasets of 200 sequences made without a bank, by their bands."""
    folder = tmp_path_factory.mktemp("plain")
    for band in ((0.5, 1.0), (0.3, 0.4)):
        assert generate(folder / str(band[0]), 200, "--band", *band) == 0
    return {(0.5, 1.0): parts(folder / "0.5"), (0.3, 0.4): parts(folder / "0.3")}


def test_layout_on_disk(bank):
    assert names(bank) == sorted(["zarr.json", *(f"c/{number}" for number in range(20))])
    assert {path.stat().st_size for path in (bank / "c").iterdir()} == {2 * BLOCK + 4}
    opened = Bank(bank)
    assert (opened.end, opened.seed, opened.block_size) == (CANDIDATES, SEED, BLOCK)
    assert opened.provenance.law["temperature"] == 1e-4 and opened.provenance.score_bytes == 1440


def test_any_reader_of_zarr_reads_it(bank):
    array = zarr.open_array(bank, mode="r")
    assert array.attrs["format"] == "megatron_nca bank" and array.attrs["seed"] == SEED
    ratios = array[: 2 * BLOCK] / array.attrs["score_bytes"]
    np.testing.assert_allclose(ratios, Bank(bank).ratios(0, 2 * BLOCK))
    assert not array[CANDIDATES : CANDIDATES + 9].any()


def test_scores_are_those_of_a_rollout(bank):
    opened = Bank(bank)
    expected = simulate.score(preset("released"), SEED, 3000, 1200, threads=2)
    assert opened.ratios(3000, 1200).dtype == np.float64
    np.testing.assert_array_equal(opened.ratios(3000, 1200), expected)


@pytest.mark.parametrize("band", [(0.5, 1.0), (0.3, 0.4)])
def test_any_band_is_the_same_dataset_from_the_bank(bank, plain, tmp_path, band):
    assert generate(tmp_path / "nca", 200, "--band", *band, "--bank", bank) == 0
    assert parts(tmp_path / "nca") == plain[band]


def test_settings_that_scores_do_not_depend_on_share_a_bank(bank, tmp_path):
    options = ["--num-rules", 40, "--sequence-length", 200, "--scored-positions", "all", "--band", 0.45, 0.55]
    for name, more in (("without", []), ("with", ["--bank", bank])):
        assert generate(tmp_path / name, 100, *options, *more) == 0
    assert parts(tmp_path / "with") == parts(tmp_path / "without")


def test_a_recipe_takes_a_bank(tmp_path, recipe_values):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    law = ["--num-states", 2, "--grid", 8, 8, "--score-frames", 4]
    assert verb("bank", "fill", tmp_path / "bank", "--candidates", 64, "--block", 64, *law) == 0
    for run, more in (("without", []), ("with", ["--bank", tmp_path / "bank"])):
        options = ["--recipe", recipe, "--dataset", "automata", "--part", "train", "--run-dir", tmp_path / run]
        assert verb("generate", *options, *more) == 0
    folder = "data/automata/train"
    assert parts(tmp_path / "with" / folder) == parts(tmp_path / "without" / folder)


def test_processes_side_by_side_fill_the_same_bank(bank, plain, tmp_path):
    """Three of a shard each, and one that takes all blocks and so meets each of the others."""
    folder = tmp_path / "bank"
    shards = ["0/3", "1/3", "2/3", "0/1"]
    processes = [start_fill(folder, 4 * BLOCK, "--block", 256, "--shard", shard) for shard in shards]
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
    assert names(folder) == sorted(["zarr.json", *(f"c/{number}" for number in range(16))])
    np.testing.assert_array_equal(Bank(folder).ratios(0, 4 * BLOCK), Bank(bank).ratios(0, 4 * BLOCK))
    assert generate(tmp_path / "nca", 200, "--band", 0.5, 1.0, "--bank", folder) == 0
    assert parts(tmp_path / "nca") == plain[(0.5, 1.0)]


KILLED_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from megatron_nca.config.law import NcaLaw
from megatron_nca.nca.bank import Bank

def die_at(point):
    steps = iter(range(point + 1))
    def step():
        if next(steps) == point:
            os.kill(os.getpid(), signal.SIGKILL)
    def wrapped(function):
        def call(*words, **more):
            step()
            result = function(*words, **more)
            step()
            return result
        return call
    write = Path.write_bytes
    def in_halves(path, content):
        for part in (b"", content[: len(content) // 2], content):
            write(path, part)
            step()
    Path.write_bytes = in_halves
    for name in ("mkdir", "fsync", "rename", "replace"):
        setattr(os, name, wrapped(getattr(os, name)))

for point in range(200):
    child = os.fork()
    if not child:
        die_at(point)
        list(Bank.create(Path(sys.argv[1]) / str(point), NcaLaw(), 7, 64).fill(range(2)))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        sys.exit()
"""


def test_killed_at_every_step_of_writing(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path)], check=True)
    points = len([path for path in tmp_path.iterdir() if path.name.isdigit()])
    complete = max((path for path in tmp_path.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    assert int(complete.name) > 20 and points > 15
    for point in range(int(complete.name)):
        folder = tmp_path / str(point)
        if folder.exists():
            survey = Bank(folder).survey()
            assert not survey.torn and survey.whole in ([], [0], [0, 1])
        assert fill(folder, 128, "--block", 64) == 0
        for name in names(complete):
            assert (folder / name).read_bytes() == (complete / name).read_bytes()


def kill_at_random(folder: Path, bank: Path, kills: int) -> None:
    """Fills are killed at once, while they begin, or just after a block; all that is there must be whole each time."""
    chance = random.Random(kills)
    blocks = 2000  # more than will be made
    for _ in range(kills):
        process = start_fill(folder, blocks * 64, "--block", 64)
        before = len(names(folder)) if folder.exists() else 0
        early = chance.random() < 0.25
        while not early and process.poll() is None and (not folder.exists() or len(names(folder)) <= before):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.7 if early else 0.1))
        process.kill()
        assert process.wait() == -9
        if (folder / "zarr.json").exists():
            opened = Bank(folder)
            survey = opened.survey()
            assert not survey.torn and not survey.absent
            count = min(opened.end, CANDIDATES)
            if count:
                np.testing.assert_array_equal(opened.ratios(0, count), Bank(bank).ratios(0, count))
        else:
            assert not folder.exists()
    assert Bank(folder).end > 0


def test_killed_at_random_moments(bank, plain, tmp_path):
    kill_at_random(tmp_path / "bank", bank, 6)
    assert generate(tmp_path / "nca", 200, "--band", 0.5, 1.0, "--bank", tmp_path / "bank", "--extend-bank") == 0
    assert parts(tmp_path / "nca") == plain[(0.5, 1.0)]


@pytest.mark.long
def test_killed_fifty_times(bank, plain, tmp_path):
    kill_at_random(tmp_path / "bank", bank, 50)
    assert fill(tmp_path / "bank", 100 * 64) == 0
    assert generate(tmp_path / "nca", 200, "--band", 0.5, 1.0, "--bank", tmp_path / "bank", "--extend-bank") == 0
    assert parts(tmp_path / "nca") == plain[(0.5, 1.0)]


def test_a_bank_grows(plain, tmp_path, capsys):
    folder, prefix = tmp_path / "bank", tmp_path / "nca"
    assert fill(folder, 200, "--block", 128) == 0
    before = {name: (folder / name).stat().st_mtime_ns for name in names(folder)}
    found = int((simulate.score(preset("released"), SEED, 0, 256) > 0.5).sum())
    assert generate(prefix, 200, "--bank", folder) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{found} of its 256 candidates" in said and "Cure:" in said
    assert f"can give {found} sequences, not 200" in said
    assert generate(tmp_path / "few", found, "--bank", folder) == 0
    assert fill(folder, 600) == 0
    assert "5 blocks of 128 candidates: 3 scored, 2 were there" in capsys.readouterr().out
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert generate(prefix, 200, "--bank", folder) == 0
    assert parts(prefix) == plain[(0.5, 1.0)]


def test_generating_extends_a_bank_only_when_told(plain, tmp_path):
    folder = tmp_path / "bank"
    assert fill(folder, 128, "--block", 128) == 0
    (folder / "c" / "2").write_bytes(b"")
    assert generate(tmp_path / "nca", 200, "--bank", folder, "--extend-bank") == 2
    assert not (tmp_path / "nca.bin").exists() and (folder / "c" / "2").read_bytes() == b""
    (folder / "c" / "2").unlink()
    assert generate(tmp_path / "nca", 200, "--bank", folder, "--extend-bank") == 0
    assert parts(tmp_path / "nca") == plain[(0.5, 1.0)]
    survey = Bank(folder).survey()
    assert survey.whole == list(range(len(survey.whole))) and len(survey.whole) >= 3


def test_shards_are_every_nth_block(tmp_path, capsys):
    assert fill(tmp_path / "bank", 7 * 64, "--block", 64, "--shard", "1/3") == 0
    assert names(tmp_path / "bank") == ["c/1", "c/4", "zarr.json"]
    assert "candidates below 0 can be used" in capsys.readouterr().out
    assert verb("bank", "inspect", tmp_path / "bank") == 0
    assert "2 whole, 3 missing (0, 2, 3), 0 torn" in capsys.readouterr().out


def test_inspect_shows_the_shares_of_the_paper(bank, capsys):
    assert verb("bank", "inspect", bank, "--band", 0.5, 1.0) == 0
    said = capsys.readouterr().out
    assert "20 whole, 0 missing, 0 torn" in said and "seed 7" in said and "temperature 0.0001" in said
    for name, expected in PAPER_SHARES.items():
        line = next(line for line in said.splitlines() if line.strip().startswith(name))
        assert abs(float(line.split()[-2]) - expected) < 1.5, line
    ratios = simulate.score(preset("released"), SEED, 0, CANDIDATES, threads=2)
    assert f"{int((ratios > 0.5).sum()):,} of 20,480 candidates passed" in said
    assert sum(float(line.split()[1]) for line in said.splitlines() if line.startswith("  0.") and " % " in line)


def test_a_dry_run_tells_what_the_bank_has(bank, tmp_path, capsys):
    assert generate(tmp_path / "nca", 10**6, "--bank", bank, "--dry-run") == 0
    assert "scores of 20,480 candidates in order, of which 9," in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed_when_it_is_old(tmp_path):
    folder = tmp_path / "bank"
    assert fill(folder, 64, "--block", 64) == 0
    old, new = folder / "c" / ".1.99-ab.tmp", folder / "c" / ".2.99-ab.tmp"
    beside = tmp_path / ".bank.99-ab.tmp"
    beside.mkdir()
    for path in (old, new):
        path.write_bytes(b"half")
    for path in (old, beside):
        bank_module.os.utime(path, (1, 1))
    assert fill(folder, 64) == 0
    assert not old.exists() and not beside.exists() and new.exists()
    assert Bank(folder).present() == [0]


def test_sizes_that_exceed_16_bits(tmp_path):
    """64 x 64 cells, each a token of four bytes."""
    law = ["--grid", 64, 64, "--patch", 1, "--num-states", 4, "--burn-in-steps", 1]
    assert fill(tmp_path / "bank", 4, "--block", 4, *law) == 0
    opened = Bank(tmp_path / "bank")
    law = NcaLaw(height=64, width=64, patch=1, num_states=4, burn_in_steps=1, sequence_length=9000)
    assert opened.block_bytes == 4 * 4 + 4
    np.testing.assert_array_equal(opened.ratios(0, 4), simulate.score(law, SEED, 0, 4))


def test_a_bank_of_the_last_candidates(tmp_path):
    opened = Bank.create(tmp_path / "bank", replace(NcaLaw(), burn_in_steps=0), 2**64 - 1, 32)
    number = 2**32 // 32 - 1
    assert [done for _, done in opened.fill([number])] == ["scored"]
    np.testing.assert_array_equal(
        opened.ratios(2**32 - 32, 32), simulate.score(NcaLaw(burn_in_steps=0), 2**64 - 1, 2**32 - 32, 32)
    )
    assert Bank(tmp_path / "bank").seed == 2**64 - 1
    assert Bank(tmp_path / "bank").survey().absent == [range(number)]
