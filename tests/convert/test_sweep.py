"""Several transfers in one pass: the bytes of each alone, each source tensor read once, gone on where it stopped."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from sample_checkpoints import CONFIG, random_checkpoint

from megatron_nca import file_list
from megatron_nca.__main__ import main
from megatron_nca.config.start import Start
from megatron_nca.convert.sweep import Plan, Shared, build, write_sweep
from megatron_nca.convert.transfer import Transfer

PLAN = {
    "seed": 4,
    "vocab_size": 300,
    "transfers": {
        "attention": {"carry": ["attention"]},
        "parts": {"carry": ["q@0", "gate", "norms"], "laws": {"embedding": "mean", "k": "permuted"}, "seed": 5},
        "shuffled": {"carry": ["final_norm"], "laws": {"layers": "shuffled_layers"}},
        "deeper": {"carry": ["all"], "layer_map": "2,2,new,0,1,0"},
        "shared": {"carry": ["all", "embedding"], "shared_rows": True, "tied_embeddings": True},
        "scratch": {"carry": ["none"], "vocab_size": 200},
    },
}
ALONE = {
    "attention": ["--carry", "attention", "--vocab-size", 300, "--seed", 4],
    "parts": ["--carry", "q@0", "gate", "norms", "--law", "embedding=mean", "k=permuted", "--vocab-size", 300,
              "--seed", 5],
    "shuffled": ["--carry", "final_norm", "--law", "layers=shuffled_layers", "--vocab-size", 300, "--seed", 4],
    "deeper": ["--carry", "all", "--layer-map", "2,2,new,0,1,0", "--vocab-size", 300, "--seed", 4],
    "shared": ["--carry", "all", "embedding", "--shared-rows", "--tied-embeddings", "--vocab-size", 300, "--seed", 4],
    "scratch": ["--carry", "none", "--seed", 4],
}  # fmt: skip


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(PLAN))
    return path


def sweep(*words: object) -> int:
    return main(["convert", "sweep", *map(str, words)])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_has_the_bytes_it_would_have_alone(
    tmp_path: Path, trained: Path, plan: Path, transfer: Callable, capsys: pytest.CaptureFixture
):
    assert sweep("--from", trained, "--plan", plan, "--to", tmp_path / "all") == 0
    said = capsys.readouterr().out
    for name, words in ALONE.items():
        assert transfer("--from", trained, "--to", tmp_path / name, *words)[0] == 0
        assert content(tmp_path / "all" / name) == content(tmp_path / name), name
        assert file_list.flaws(tmp_path / "all" / name, (0, 1)) == []
    assert "Wrote 6 of 6 transfers" in said
    assert "20 tensors of the source were read, 20 times in all." in said, "all but the head"


def test_each_source_tensor_is_read_once(tmp_path: Path):
    shared = Shared(random_checkpoint())
    starts = {"a": Start(carry=("all",)), "b": Start(laws={"layers": "shuffled_layers"}), "c": Start(carry=("o@1",))}
    folders = {tmp_path / name: Transfer(shared.checkpoint, CONFIG, start, 1) for name, start in starts.items()}
    write_sweep(folders, {folder: transfer.run_config() for folder, transfer in folders.items()})
    assert set(shared.reads.values()) == {1} and len(shared.reads) == 19


def test_what_is_whole_is_left_alone_and_the_rest_is_made(
    tmp_path: Path, trained: Path, plan: Path, capsys: pytest.CaptureFixture
):
    target = tmp_path / "all"
    assert sweep("--from", trained, "--plan", plan, "--to", target) == 0
    before = content(target / "parts")
    for path in (target / "shuffled").iterdir():
        path.unlink()
    (target / "shuffled").rmdir()
    stamp = (target / "parts" / "account.json").stat().st_mtime_ns
    capsys.readouterr()
    assert sweep("--from", trained, "--plan", plan, "--to", target) == 0
    said = capsys.readouterr().out
    assert "Wrote 1 of 6 transfers" in said and said.count("is already there with this account") == 5
    assert content(target / "parts") == before
    assert (target / "parts" / "account.json").stat().st_mtime_ns == stamp
    listed = (target / "parts" / "files.json").read_bytes()
    for name, text, message in (("files.json", None, "is not whole: files.json is missing. Cure: remove it"),
                                    ("account.json", "[]", "was not made by convert transfer"),
                                    ("account.json", '{"tensors": 5}', "was not made by convert transfer")):
        path = target / "parts" / name
        path.write_text(text) if text else path.unlink()
        assert sweep("--from", trained, "--plan", plan, "--to", target) == 2
        assert message in capsys.readouterr().err
        (target / "parts" / "files.json").write_bytes(listed)
    (target / "parts" / "account.json").write_bytes(before["account.json"])
    plan.write_text(yaml.safe_dump({**PLAN, "seed": 9}))
    assert sweep("--from", trained, "--plan", plan, "--to", target) == 2
    assert "exists and was made otherwise: seed, tensors differ" in capsys.readouterr().err


def test_a_sweep_that_fails_halfway_leaves_nothing_and_is_made_again(
    tmp_path: Path, trained: Path, plan: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    words, calls, make = ("--from", trained, "--plan", plan, "--to", tmp_path / "all"), [], Transfer._make

    def fail(transfer: Transfer, spec: object) -> object:
        calls.append(spec)
        if len(calls) == 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(transfer, spec)

    monkeypatch.setattr(Transfer, "_make", fail)
    assert sweep(*words) == 2
    assert "free some space" in capsys.readouterr().err
    assert list((tmp_path / "all").iterdir()) == []
    assert sweep(*words) == 0
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(PLAN["transfers"])


def test_dry_run_prints_all_accounts(tmp_path: Path, trained: Path, plan: Path, capsys: pytest.CaptureFixture):
    assert sweep("--from", trained, "--plan", plan, "--to", tmp_path / "all", "--dry-run") == 0
    said = capsys.readouterr().out
    assert all(f"{name}:\ncomponent" in said for name in PLAN["transfers"])
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transfers": {}}, "names no transfer"),
        ({"transfers": {"../x": {"carry": ["all"]}}}, "is no name of a folder"),
        ({"transfers": {"x": {"cary": ["all"]}}}, "transfers.x.cary: unknown setting. Did you mean 'carry'?"),
        ({"seed": None}, "seed = None: expected int"),
        ({"transfers": {"x": {"carry": ["mlp@5"]}}}, "transfers.x: carry mlp@5 = '5': is no range within 0:3"),
        ({"transfers": {"x": {"carry": ["all"], "num_layers": 7}}}, "transfers.x: "),
    ],
)
def test_refusals(tmp_path: Path, trained: Path, plan: Path, capsys: pytest.CaptureFixture, change: dict, message: str):
    plan.write_text(yaml.safe_dump({**PLAN, **change}))
    assert sweep("--from", trained, "--plan", plan, "--to", tmp_path / "all") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "all").exists()


def test_the_source_and_what_is_no_folder_are_left_alone(
    tmp_path: Path, trained: Path, plan: Path, capsys: pytest.CaptureFixture
):
    series = trained.rename(tmp_path / "series").rename(tmp_path / "iter_0000040").parent
    for place, message in ((series / "iter_0000041", "lies in the source"), (plan, "sweep.yaml/attention: cannot be")):
        source = series if place != plan else series / "iter_0000040"
        assert sweep("--from", source, "--plan", plan, "--to", place) == 2
        assert message in capsys.readouterr().err
    assert {path.name for path in series.iterdir()} == {"iter_0000040", "sweep.yaml"}


def test_too_little_space_for_all_is_seen_before(
    tmp_path: Path, trained: Path, plan: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 500_000})())
    assert sweep("--from", trained, "--plan", plan, "--to", tmp_path / "all") == 2
    assert "all': needs 1.7 MB, and in" in capsys.readouterr().err
    assert not (tmp_path / "all").exists()


def test_a_transfers_own_settings_come_before_the_sweeps():
    plan = build(Plan, {**PLAN, "num_layers": 4})
    models = {name: plan.target(entry, CONFIG) for name, entry in plan.transfers.items()}
    assert {name: model.num_layers for name, model in models.items()} == {
        **dict.fromkeys(PLAN["transfers"], 4), "deeper": 6}
    assert (models["scratch"].vocab_size, models["shared"].tied_embeddings) == (200, True)
