"""What a transfer refuses, and what is left behind by one that fails."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_checkpoints import write_random

from megatron_nca.__main__ import main
from megatron_nca.errors import DataError
from megatron_nca.files import publish


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--carry", "all", "--seed", 5], "seed"),
        (["--carry", "mlp", "--seed", 4], "start"),
        (["--carry", "all", "--seed", 4, "--vocab-size", 9], "model"),
    ],
)
def test_another_checkpoint_in_its_place_is_kept(
    tmp_path: Path, trained: Path, transfer: Callable, change: list, named: str
):
    transfer("--from", trained, "--to", tmp_path / "new", "--carry", "all", "--seed", 4)
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    code, _, err = transfer("--from", trained, "--to", tmp_path / "new", *change)
    assert code == 2
    assert "made otherwise" in err
    assert named in err
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == before


def test_other_weights_in_the_source_are_noticed(tmp_path: Path, trained: Path, transfer: Callable):
    other = write_random(tmp_path / "other", seed=1)
    transfer("--from", trained, "--to", tmp_path / "new", "--carry", "all", "--seed", 4)
    code, _, err = transfer("--from", other, "--to", tmp_path / "new", "--carry", "all", "--seed", 4)
    assert code == 2
    assert "tensors differ" in err


def test_a_foreign_folder_is_kept(tmp_path: Path, trained: Path, transfer: Callable):
    (tmp_path / "new").mkdir()
    assert transfer("--from", trained, "--to", tmp_path / "new", "--carry", "all", "--seed", 4)[0] == 0
    for place in (trained, tmp_path):
        code, _, err = transfer("--from", trained, "--to", place, "--carry", "all", "--seed", 4)
        assert code == 2
        assert "exists and was not made by convert transfer" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--carry", "attentoin"], "Did you mean 'attention'?"),
        (["--carry", "none", "mlp"], "'none' excludes the others"),
        (["--carry", "attention", "--layers", "0:4"], "is no range within 0:3"),
        (["--carry", "attention", "--layers", "2:2"], "is no range within 0:3"),
        (["--carry", "embedding", "--layers", "0:1"], "carries nothing that lies in layers"),
        (
            ["--carry", "embedding", "--vocab-size", 300],
            "vocab_size is 200 there and 300 in the target (it binds embedding",
        ),
        (["--carry", "head", "embedding", "--vocab-size", 100], "it binds embedding and head; leave them out"),
        (["--carry", "all", "--vocab-size", 1], "must lie in 2..2^20"),
        (["--carry", "all", "--phase", "text"], "belongs to no recipe"),
        (["--carry", "all", "--seed", -1], "--seed = -1"),
    ],
)
def test_refusals(tmp_path: Path, trained: Path, transfer: Callable, words: list, message: str):
    code, _, err = transfer("--from", trained, "--to", tmp_path / "new", "--seed", 4, *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_another_shape_names_every_setting(tmp_path: Path, trained: Path, recipe: Path, transfer: Callable):
    words = ["--carry", "all", "--recipe", recipe, "--phase", "text", "--seed", 4]
    code, _, err = transfer("--from", trained, "--to", tmp_path / "new", *words)
    assert code == 2
    for text in ("num_layers is 3 there and 2", "query_groups is 2 there and 4", "ffn_hidden_size is 48 there and 64"):
        assert f"model.{text} in the target" in err
    assert "hidden_size is 32" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--carry", "all", "--vocab-size", 300], "neither --from nor --recipe"),
        (["--carry", "all", "--recipe", "RECIPE", "--phase", "text"], "there is nothing to carry from"),
        (["--carry", "none", "--recipe", "RECIPE", "--phase", "txt"], "Did you mean 'text'?"),
        (["--carry", "none", "--recipe", "RECIPE"], "--phase: is needed"),
        (
            ["--carry", "none", "--recipe", "RECIPE", "--phase", "text", "--vocab-size", 9],
            "phase text of the recipe has 300",
        ),
        (["--carry", "all", "--from", "MISSING"], "MISSING: is not there"),
    ],
)
def test_refusals_without_a_source(tmp_path: Path, recipe: Path, transfer: Callable, words: list, message: str):
    words = [recipe if word == "RECIPE" else word for word in words]
    code, _, err = transfer("--to", tmp_path / "new", "--seed", 4, *words)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("damage", [".metadata", "__0_0.distcp", "run_config.yaml"])
def test_an_incomplete_source_is_refused(tmp_path: Path, trained: Path, transfer: Callable, damage: str):
    (trained / damage).unlink()
    code, _, err = transfer("--from", trained, "--to", tmp_path / "new", "--carry", "all", "--seed", 4)
    assert code == 2
    assert damage in err
    assert not (tmp_path / "new").exists()


def test_damage_found_halfway_leaves_nothing(tmp_path: Path, trained: Path, transfer: Callable):
    path = trained / "__0_0.distcp"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    code, _, err = transfer("--from", trained, "--to", tmp_path / "new", "--carry", "all", "--seed", 4)
    assert code == 2
    assert "damaged" in err
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_nothing_is_written_into_the_source(tmp_path: Path, trained: Path, transfer: Callable):
    """Nor into a series, from which a training might go on with it."""
    for source, place in ((trained, trained / "new"), (tmp_path, tmp_path / "iter_0000050")):
        code, _, err = transfer("--from", source, "--to", place, "--carry", "all", "--seed", 4)
        assert (code, "lies in the source" in err, place.exists()) == (2, True, False)


def test_of_two_that_make_one_folder_the_first_has_it(tmp_path: Path, trained: Path):
    folder = tmp_path / "new"
    with pytest.raises(DataError, match="was made by another process meanwhile"), publish(folder, new=True) as one:
        with publish(folder, new=True) as other:
            other.mkdir()
            (other / "first").touch()
        one.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "trained"]
    assert (folder / "first").exists()


def test_too_little_space_is_seen_before_writing(
    tmp_path: Path, trained: Path, transfer: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    code, _, err = transfer("--from", trained, "--to", tmp_path / "new", "--carry", "all", "--seed", 4)
    assert code == 2
    assert "new': needs 244.6 kB, and in" in err and "1.0 kB are free" in err
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, trained: Path):
    """A limit on the size of files stands for a disk that fills up while the checkpoint is written."""
    words = ["--from", str(trained), "--to", str(tmp_path / "new"), "--carry", "all", "--seed", "4"]
    code = f"""
import resource, sys
from megatron_nca.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
sys.exit(main(["convert", "transfer", *{words}]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "cannot be written (File too large)" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_a_killed_transfer_leaves_nothing_under_the_name(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture
):
    """Killed once the tensors are being written; the same call then makes the checkpoint and names what was left."""
    target = tmp_path / "new"
    words = [
        "convert",
        "transfer",
        "--to",
        target,
        "--carry",
        "none",
        "--recipe",
        recipe,
        "--phase",
        "text",
        "--seed",
        "1",
    ]
    code = (
        "import sys, time\nfrom megatron_nca import initialise\nfrom megatron_nca.__main__ import main\n"
        "from megatron_nca.convert import transfer\nslow = initialise.initial_tensor\n"
        "transfer.initial_tensor = lambda *args: time.sleep(0.5) or slow(*args)\nmain(sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".new.*.tmp/__0_0.distcp")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not target.exists()
    assert main(list(map(str, words))) == 0
    assert (target / "account.json").is_file()
    [left] = tmp_path.glob(".new.*.tmp")
    assert f"{left}: is left of a conversion that was killed" in capsys.readouterr().err


@pytest.mark.long
def test_memory_is_bounded_by_a_few_tensors(tmp_path: Path):
    """The transfer of 130 MB in tensors of at most 8 MB adds less than 40 MB to that of a tiny checkpoint."""
    calls = []
    for name, layers, hidden in (("small", 1, 32), ("large", 8, 512)):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(json.dumps(_recipe(layers, hidden)))
        words = ["convert", "transfer", "--recipe", str(recipe), "--phase", "text", "--seed", "1"]
        calls.append([*words, "--to", str(tmp_path / name), "--carry", "none"])
        calls.append([*words, "--to", str(tmp_path / f"{name}2"), "--from", str(tmp_path / name), "--carry", "all"])
    code = (
        f"import resource\nfrom megatron_nca.__main__ import main\nfor words in {calls}:\n    assert main(words) == 0\n"
        "    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peaks = [int(line.split()[1]) / 1024 for line in result.stdout.splitlines() if line.startswith("peak")]
    size = sum(path.stat().st_size for path in (tmp_path / "large2").iterdir()) / 2**20
    print(f"checkpoint of {size:.0f} MB; peak {peaks[3]:.0f} MB, of a tiny one {peaks[1]:.0f} MB")
    assert size > 120
    assert peaks[3] < peaks[1] + 40


def _recipe(layers: int, hidden: int) -> dict:
    phase = {
        "dataset": "text",
        "iterations": 2,
        "global_batch_size": 1,
        "micro_batch_size": 1,
        "validation_sequences": 1,
        "optimizer": {"lr": 1e-3},
    }
    return {
        "name": "memory",
        "control": "a",
        "arms": {"a": {"steps": [{"phase": "text"}]}},
        "phases": {"text": phase},
        "model": {"num_layers": layers, "hidden_size": hidden, "num_heads": 4, "ffn_hidden_size": 4 * hidden},
        "datasets": {"text": {"source": "corpus", "input": "python-stdlib", "vocab_size": 1000}},
    }
