"""The phase transition: what is carried, how the rest starts, the account."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_checkpoints import CONFIG, random_checkpoint, values, write_random

from megatron_nca import file_list, files
from megatron_nca.__main__ import main
from megatron_nca.config.components import SETS
from megatron_nca.config.run_config import RunConfig, load_run_config
from megatron_nca.convert import megatron
from megatron_nca.initialise import initial_tensor, tensor_table

SOURCE = values(random_checkpoint())
CARRIED_BY_ALL = ("attention", "mlp", "norms", "final_norm")


def check_result(
    folder: Path, carried: tuple[str, ...], layers: range = range(3), vocab_size: int = 200, seed: int = 4
) -> None:
    """Every tensor is either the source's, bit by bit, or exactly its law's start."""
    model = CONFIG.with_vocabulary(vocab_size)
    checkpoint = megatron.read(folder)
    assert checkpoint.model == model
    assert checkpoint.ignored == ()
    result = values(checkpoint)
    assert len(result) == len(tensor_table(model))
    for spec in tensor_table(model):
        is_carried = spec.component in carried and (spec.layer is None or spec.layer in layers)
        expected = SOURCE[spec.name] if is_carried else initial_tensor(spec, seed)
        assert result[spec.name].tobytes() == expected.tobytes(), spec.name


@pytest.mark.parametrize(
    ("words", "carried"),
    [
        (["attention"], ("attention",)),
        (["attention", "norms"], ("attention", "norms")),
        (["mlp"], ("mlp",)),
        (["final_norm"], ("final_norm",)),
        (["all"], CARRIED_BY_ALL),
        (["all", "embedding"], (*CARRIED_BY_ALL, "embedding")),
        (["embedding", "head"], ("embedding", "head")),
        (["none"], ()),
    ],
)
def test_what_is_named_is_carried_and_nothing_else(
    tmp_path: Path, trained: Path, transfer: Callable, words: list, carried: tuple
):
    code, _, err = transfer("--from", trained, "--to", tmp_path / "new", "--carry", *words, "--seed", 4)
    assert (code, err) == (0, "")
    check_result(tmp_path / "new", carried)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 2), (1, 3), (0, 3)])
def test_a_range_of_layers(tmp_path: Path, trained: Path, transfer: Callable, first: int, last: int):
    words = ["--carry", "attention", "mlp", "final_norm", "--layers", f"{first}:{last}", "--seed", 4]
    assert transfer("--from", trained, "--to", tmp_path / "new", *words)[0] == 0
    check_result(tmp_path / "new", ("attention", "mlp", "final_norm"), range(first, last))


def test_a_new_vocabulary(tmp_path: Path, trained: Path, transfer: Callable):
    words = ["--carry", "all", "--vocab-size", 1000, "--seed", 4]
    assert transfer("--from", trained, "--to", tmp_path / "new", *words)[0] == 0
    check_result(tmp_path / "new", CARRIED_BY_ALL, vocab_size=1000)
    embedding = megatron.read(tmp_path / "new").tensor("embedding.weight").read()
    assert embedding.shape == (1024, 32)
    assert (embedding[1000:] == 0).all()
    assert embedding[:1000].std() == pytest.approx(1, rel=0.02)


def test_the_new_checkpoint_starts_anew(tmp_path: Path, trained: Path, transfer: Callable):
    transfer("--from", trained, "--to", tmp_path / "new", "--carry", "all", "--vocab-size", 500, "--seed", 4)
    assert load_run_config(trained).iteration == 40
    assert load_run_config(tmp_path / "new") == RunConfig(model=CONFIG.with_vocabulary(500), seed=4)


def test_recipe_and_phase_give_the_model(tmp_path: Path, recipe: Path, transfer: Callable):
    nca, text = tmp_path / "nca", tmp_path / "text"
    assert transfer("--to", nca, "--carry", "none", "--recipe", recipe, "--phase", "nca", "--seed", 1)[0] == 0
    words = ["--carry", "all", "--recipe", recipe, "--phase", "text", "--seed", 2]
    assert transfer("--from", nca, "--to", text, *words)[0] == 0
    run_config = load_run_config(text)
    assert (run_config.recipe, run_config.phase, run_config.seed, run_config.model.vocab_size) == (
        "tiny",
        "text",
        2,
        300,
    )
    assert load_run_config(nca).model.vocab_size != 300
    assert run_config.iteration == 0
    assert not run_config.optimizer


def test_a_series_is_accepted_and_named(tmp_path: Path, transfer: Callable):
    write_random(tmp_path / "checkpoints" / "iter_0000100")
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("100")
    code, out, _ = transfer("--from", tmp_path / "checkpoints", "--to", tmp_path / "new", "--carry", "all", "--seed", 4)
    assert code == 0
    assert "takes iteration 100, the newest whole one." in out
    check_result(tmp_path / "new", CARRIED_BY_ALL)


def test_the_account_explains_every_tensor(tmp_path: Path, trained: Path, transfer: Callable):
    words = ["--carry", "attention", "--layers", "0:2", "--vocab-size", 300, "--seed", 4]
    transfer("--from", trained, "--to", tmp_path / "new", *words)
    account = json.loads((tmp_path / "new" / "account.json").read_text())
    rows = {
        action: [row for row in account["tensors"] if row["action"] == action]
        for action in ("carried", "re-initialised", "dropped")
    }
    assert sum(map(len, rows.values())) == len(account["tensors"])
    into = {row["name"]: tuple(row["shape"]) for row in rows["carried"] + rows["re-initialised"]}
    assert into == {spec.name: spec.shape for spec in tensor_table(CONFIG.with_vocabulary(300))}
    out_of = {row["name"]: tuple(row["shape"]) for row in rows["carried"] + rows["dropped"]}
    assert out_of == {spec.name: spec.shape for spec in tensor_table(CONFIG)}
    for row in rows["carried"]:
        assert row["sha256"] == hashlib.sha256(SOURCE[row["name"]].tobytes()).hexdigest()
    assert all(row["seed"] == 4 and row["law"] for row in rows["re-initialised"])
    totals = account["totals"]
    counted = {action: sum(part["parameters"] for part in totals[action].values()) for action in totals}
    assert counted["carried"] + counted["re-initialised"] == sum(
        s.size for s in tensor_table(CONFIG.with_vocabulary(300))
    )
    assert counted["carried"] + counted["dropped"] == sum(s.size for s in tensor_table(CONFIG))
    assert (account["start"]["carry"], account["start"]["layers"], account["seed"]) == (["attention"], [0, 2], 4)
    assert account["source"]["iteration"] == 40


def test_the_printed_table(tmp_path: Path, trained: Path, transfer: Callable):
    _, out, _ = transfer(
        "--from", trained, "--to", tmp_path / "new", "--carry", "all", "--vocab-size", 300, "--seed", 4
    )
    lines = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    assert lines[0] == ["component", "carried", "re-initialised", "dropped", "starts as"]
    assert ["attention", "6 (9,216)"] in lines
    assert ["embedding", "1 (12,288)", "1 (8,192)", "N(0, 1)"] in lines
    assert "embedding: rows 300 to 383 are padding and zero" in out


def test_dry_run_prints_and_writes_nothing(tmp_path: Path, trained: Path, transfer: Callable):
    before = sorted(tmp_path.iterdir())
    words = ["--from", trained, "--to", tmp_path / "new", "--carry", "all", "--vocab-size", 300, "--seed", 4]
    code, dry, _ = transfer(*words, "--dry-run")
    assert code == 0
    assert sorted(tmp_path.iterdir()) == before
    _, real, _ = transfer(*words)
    assert dry.splitlines()[:-1] == real.splitlines()[:-1]


def test_the_same_call_again_has_nothing_to_do(tmp_path: Path, trained: Path, transfer: Callable):
    words = ["--from", trained, "--to", tmp_path / "new", "--carry", "all"]
    transfer(*words, "--seed", 4)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "new").iterdir()}
    code, out, _ = transfer(*words, "--seed", 4)
    assert code == 0
    assert "already there with this account" in out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "new").iterdir()} == times


def test_the_help_names_every_component(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        main(["convert", "transfer", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in SETS)


def test_the_help_imports_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom megatron_nca.__main__ import main\ntry:\n    main(['convert', 'transfer', '--help'])\n"
        "except SystemExit:\n    print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False False"


def test_a_transfer_imports_no_megatron(tmp_path: Path, trained: Path):
    words = [
        "convert",
        "transfer",
        "--from",
        str(trained),
        "--to",
        str(tmp_path / "new"),
        "--carry",
        "all",
        "--seed",
        "4",
    ]
    code = (
        f"import sys\nfrom megatron_nca.__main__ import main\nassert main({words}) == 0\n"
        "print(any(name.split('.')[0] == 'megatron' for name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_a_published_name_is_never_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path, transfer: Callable
):
    """At the moment of the rename the folder aside is complete."""
    seen = []
    original = files.os.replace
    monkeypatch.setattr(
        files.os, "replace", lambda a, b: (seen.append(sorted(p.name for p in Path(a).iterdir())), original(a, b))
    )
    transfer("--from", trained, "--to", tmp_path / "new", "--carry", "all", "--seed", 4)
    (names,) = seen
    assert names == [
        ".metadata", "__0_0.distcp", "account.json", "common.pt", "files.json", "metadata.json", "run_config.yaml"
    ]  # fmt: skip
    assert file_list.flaws(tmp_path / "new", (0, 1)) == []


def test_carried_tensors_keep_every_bit(tmp_path: Path, transfer: Callable):
    """Also of values that arithmetic would change: infinities, NaN with a payload, minus zero, denormals."""
    odd = np.array([np.inf, -np.inf, -0.0, 1e-45, 3.4e38], np.float32)
    bits = np.concatenate([odd.view(np.uint32), np.array([0x7FC12345], np.uint32)])
    checkpoint = random_checkpoint()
    norm = np.tile(bits, 6)[:32].view(np.float32)
    tensors = tuple(
        t if t.name != "final_norm.weight" else type(t)(t.name, t.shape, t.dtype, lambda: torch.from_numpy(norm))
        for t in checkpoint.tensors
    )
    megatron.write(tmp_path / "odd", type(checkpoint)("odd", CONFIG, tensors), RunConfig(model=CONFIG))
    transfer("--from", tmp_path / "odd", "--to", tmp_path / "new", "--carry", "final_norm", "--seed", 4)
    assert (
        megatron.read(tmp_path / "new").tensor("final_norm.weight").read().numpy().view(np.uint32)
        == norm.view(np.uint32)
    ).all()
