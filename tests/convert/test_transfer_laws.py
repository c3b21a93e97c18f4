"""How what is not carried starts, which layers go where, and that the account says so and is checked."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_checkpoints import CONFIG, random_checkpoint, values, write_random
from scipy import stats

from megatron_nca import file_list
from megatron_nca.account.parameters import parameters
from megatron_nca.config.components import LAYER_PARTS, parts_in
from megatron_nca.config.model import ModelConfig
from megatron_nca.config.start import Start
from megatron_nca.convert import laws, megatron
from megatron_nca.convert.account import check_account, same_account
from megatron_nca.convert.canonical import CanonicalCheckpoint
from megatron_nca.convert.parts import part_of, part_shape
from megatron_nca.convert.transfer import Transfer
from megatron_nca.errors import CheckpointError, ConfigError
from megatron_nca.initialise import initial_tensor, tensor_table

SOURCE = random_checkpoint()
TIED = replace(CONFIG, tied_embeddings=True)


def made(target: ModelConfig = CONFIG, source: CanonicalCheckpoint = SOURCE, seed: int = 4, **start: object
         ) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors and the account of a transfer, which must add up."""
    transfer = Transfer(source, target, Start(**start), seed)
    account = transfer.account()
    into = [row for row in account["tensors"] if row["action"] != "dropped"]
    assert sum(int(np.prod(row["shape"])) for row in into) == parameters(target).total
    return {tensor.name: tensor.read() for tensor in transfer.result().tensors}, account


def part(tensors: dict, name: str, which: str, model: ModelConfig = CONFIG) -> torch.Tensor:
    return part_of(tensors[name], which, model)


def source(name: str) -> torch.Tensor:
    return SOURCE.tensor(name).read()


def own(name: str, model: ModelConfig = CONFIG, seed: int = 4) -> torch.Tensor:
    return torch.from_numpy(initial_tensor(next(spec for spec in tensor_table(model) if spec.name == name), seed))


def rows_of(account: dict, name: str) -> list[dict]:
    return [row for row in account["tensors"] if row["name"] == name]


def test_parts_of_qkv_are_the_rows_of_a_models_projections():
    """2 groups of 2 queries, a key and a value of 8 rows each."""
    qkv = torch.arange(64)[:, None].expand(64, 32).contiguous()
    rows = {which: part_of(qkv, which, CONFIG)[..., 0].reshape(-1).tolist() for which in "qkv"}
    assert rows["q"] == [*range(16), *range(32, 48)]
    assert rows["k"] == [*range(16, 24), *range(48, 56)]
    assert rows["v"] == [*range(24, 32), *range(56, 64)]
    for which in (*"qkv", "gate", "up"):
        spec = next(s for s in tensor_table(CONFIG) if s.name == f"layers.0.{LAYER_PARTS[which]}")
        assert part_of(torch.zeros(spec.shape), which, CONFIG).numel() == np.prod(part_shape(spec.shape, which, CONFIG))


@pytest.mark.parametrize("words", [("q",), ("k@0:2", "v"), ("gate@1",), ("o", "down@0,2"), ("up", "attention_norm")])
def test_parts_are_carried_apart(words: tuple):
    result, account = made(carry=words)
    chosen = Start(carry=words).resolve(3, 3, False).carried
    for spec in tensor_table(CONFIG):
        kind = spec.name.split(".", 2)[2] if spec.layer is not None else spec.name
        for which in parts_in(kind):
            expected = source(spec.name) if (which, spec.layer) in chosen else own(spec.name)
            assert torch.equal(part(result, spec.name, which), part_of(expected, which, CONFIG)), (spec.name, which)
            carried = [row for row in rows_of(account, spec.name) if row["action"] == "carried"
                       and row["part"] in (which, None)]
            assert bool(carried) == ((which, spec.layer) in chosen)
    assert sum(v["parameters"] for v in account["totals"]["carried"].values()) + sum(
        v["parameters"] for v in account["totals"]["dropped"].values()) == parameters(CONFIG).total


def test_the_hash_of_a_part_is_of_its_bytes():
    result, account = made(carry=("k",))
    (row,) = [row for row in rows_of(account, "layers.1.attention.qkv.weight") if row["action"] == "carried"]
    assert (row["part"], row["shape"], row["source"]) == ("k", [16, 32], "layers.1.attention.qkv.weight")
    found = part(result, row["name"], "k").contiguous().numpy().tobytes()
    assert row["sha256"] == hashlib.sha256(found).hexdigest()


def test_what_reinit_names_is_taken_out():
    result, _ = made(carry=("all",), reinit=("attention@0", "q@2"))
    qkv = "layers.{}.attention.qkv.weight"
    assert torch.equal(result[qkv.format(0)], own(qkv.format(0)))
    assert torch.equal(result[qkv.format(1)], source(qkv.format(1)))
    assert torch.equal(part(result, qkv.format(2), "q"), part_of(own(qkv.format(2)), "q", CONFIG))
    assert torch.equal(part(result, qkv.format(2), "v"), part_of(source(qkv.format(2)), "v", CONFIG))
    assert torch.equal(result["layers.0.attention.proj.weight"], own("layers.0.attention.proj.weight"))


BIG = ModelConfig(num_layers=2, hidden_size=128, num_heads=4, ffn_hidden_size=256, vocab_size=700,
                  embedding_init_std=0.02, head_init="normal", init_std=0.05)


def test_laws_have_their_distributions():
    """Kolmogorov-Smirnov against the law stated, on all numbers of a tensor that are not padding."""
    normal = {"own": {"embedding": 0.02, "head": 0.05, "attention": 0.05}, "released": {"embedding": 1.0,
              "attention": 0.02}, "normal:0.3": {"embedding": 0.3, "head": 0.3, "attention": 0.3}}  # fmt: skip
    for law, stds in normal.items():
        result, account = made(BIG, None, laws={"embedding": law, "head": law, "layers": law})
        names = {"embedding": "embedding.weight", "head": "head.weight", "attention": "layers.1.attention.qkv.weight"}
        for component, std in stds.items():
            numbers = result[names[component]][:700].numpy().reshape(-1)
            assert stats.kstest(numbers, "norm", args=(0, std)).pvalue > 1e-3, (law, component)
            assert f"N(0, {std:g})" in {row["law"] for row in rows_of(account, names[component])}
        assert not result["embedding.weight"][700:].any() and not result["head.weight"][700:].any()
        assert (result["layers.0.mlp_norm.weight"] == 1).all() or law == "normal:0.3"
    head = made(BIG, None, laws={"head": "released"})[0]["head.weight"][:700].numpy().reshape(-1)
    assert stats.kstest(head, "uniform", args=(-(128**-0.5), 2 * 128**-0.5)).pvalue > 1e-3


def test_permuted_parts_have_the_same_numbers_at_other_places():
    result, account = made(laws={"layers": "permuted", "embedding": "permuted"})
    for name, which in (("layers.1.attention.qkv.weight", "k"), ("layers.0.mlp.fc2.weight", "down"),
                        ("layers.2.mlp_norm.weight", "mlp_norm"), ("embedding.weight", "embedding")):
        before = part_of(source(name), which, CONFIG)[:200].reshape(-1)
        after = part(result, name, which)[:200].reshape(-1)
        assert torch.equal(before.sort().values, after.sort().values)
        assert (before == after).float().mean() < 0.2
        assert {row["law"] for row in rows_of(account, name) if row["action"] == "re-initialised"} == {"permuted"}
    assert torch.equal(result["embedding.weight"][200:], source("embedding.weight")[200:]), "padding stays"
    fc1 = part(result, "layers.0.mlp.fc1.weight", "gate"), part(result, "layers.0.mlp.fc1.weight", "up")
    gate = source("layers.0.mlp.fc1.weight")[:48]
    assert torch.equal(fc1[0].reshape(-1).sort().values, gate.reshape(-1).sort().values)
    other, _ = made(laws={"layers": "permuted"}, seed=5)
    assert not torch.equal(other["layers.0.mlp.fc2.weight"], result["layers.0.mlp.fc2.weight"])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000, 65537])
def test_a_permutation_takes_every_place_once_at_random(count: int):
    found = torch.empty(count, dtype=torch.int64)
    laws.permute(torch.arange(count), found, 3, "x")
    places = found.numpy()
    assert sorted(places) == list(range(count))
    if count > 60:
        keys, step = laws.random_bits(3, "permutation of x").random_raw(4), count // 7
        blocks = np.concatenate([laws._places(np.arange(first, min(first + step, count)), count, keys)
                                 for first in range(0, count, step)])
        assert (blocks == places).all(), "in any blocks"
        assert abs(stats.spearmanr(np.arange(count), places).statistic) < 4 / count**0.5
        assert abs(np.diff(places) == 1).mean() < 0.1


def test_layers_are_shuffled_together():
    deep = replace(CONFIG, num_layers=6)
    checkpoint = random_checkpoint(deep)
    result, account = made(deep, checkpoint, carry=("final_norm",), laws={"layers": "shuffled_layers"})
    taken = []
    for layer in range(6):
        sources = {row["source"].split(".")[1] for row in account["tensors"]
                   if row["layer"] == layer and row["action"] != "dropped"}
        (number,) = sources
        taken.append(int(number))
        for kind in set(LAYER_PARTS.values()):
            assert torch.equal(result[f"layers.{layer}.{kind}"], checkpoint.tensor(f"layers.{number}.{kind}").read())
    assert sorted(taken) == list(range(6)) and all(taken[n] != n for n in range(6))
    assert not [row for row in account["tensors"] if row["action"] == "dropped" and row["layer"] is not None]
    some, _ = made(deep, checkpoint, carry=("attention",), laws={"mlp@1:3": "shuffled_layers"})
    for layer, other in ((1, 2), (2, 1)):
        assert torch.equal(some[f"layers.{layer}.mlp.fc2.weight"],
                           checkpoint.tensor(f"layers.{other}.mlp.fc2.weight").read())


def test_the_mean_of_the_old_vocabulary_starts_the_new():
    wider = CONFIG.with_vocabulary(300)
    result, account = made(wider, laws={"embedding": "mean"})
    mean = source("embedding.weight")[:200].double().mean(0).float()
    assert (result["embedding.weight"][:300] == mean).all() and not result["embedding.weight"][300:].any()
    (row, dropped) = rows_of(account, "embedding.weight")
    assert (row["law"], row["action"], dropped["action"]) == ("mean", "re-initialised", "dropped")


@pytest.mark.parametrize("size", [120, 200, 300])
def test_rows_that_both_vocabularies_have_are_carried_by_id(size: int):
    target, shared = CONFIG.with_vocabulary(size), min(size, 200)
    result, account = made(target, carry=("embedding", "head"), shared_rows=True)
    for name in ("embedding.weight", "head.weight"):
        assert torch.equal(result[name][:shared], source(name)[:shared])
        assert torch.equal(result[name][shared:size], own(name, target)[shared:size])
        assert size == 200 or not result[name][size:].any()
        assert len([row for row in rows_of(account, name) if row["action"] == "carried"]) == 1


@pytest.mark.parametrize(
    ("start", "layers", "expected"),
    [
        ({"layer_map": "0,0,1,1,2,2"}, 6, [0, 0, 1, 1, 2, 2]),
        ({"layer_map": "spread"}, 6, [0, 0, 1, 1, 2, 2]),
        ({"layer_map": "repeat"}, 5, [0, 1, 2, 0, 1]),
        ({"layer_map": "first"}, 4, [0, 1, 2, None]),
        ({"layer_map": "2,new"}, 2, [2, None]),
        ({"layer_map": "spread"}, 2, [0, 1]),
    ],
)
def test_depth_changes_by_a_map(start: dict, layers: int, expected: list):
    target = replace(CONFIG, num_layers=layers)
    result, account = made(target, carry=("all",), **start)
    assert account["layer_map"] == expected
    for layer, taken in enumerate(expected):
        for kind in set(LAYER_PARTS.values()):
            name = f"layers.{layer}.{kind}"
            wanted = own(name, target) if taken is None else source(f"layers.{taken}.{kind}")
            assert torch.equal(result[name], wanted), name
    dropped = {row["layer"] for row in account["tensors"] if row["action"] == "dropped" and row["layer"] is not None}
    assert dropped == set(range(3)) - set(expected)


def test_tied_and_untied():
    tied = random_checkpoint(TIED)
    embedding = tied.tensor("embedding.weight").read()
    result, account = made(CONFIG, tied, carry=("all", "embedding"))
    assert torch.equal(result["embedding.weight"], embedding)
    assert torch.equal(result["head.weight"], own("head.weight"))
    result, account = made(CONFIG, tied, carry=("head",))
    assert torch.equal(result["head.weight"], embedding)
    assert rows_of(account, "head.weight")[0]["note"] == "the source's embedding, to which its head is tied"
    result, account = made(TIED, carry=("all", "embedding"))
    assert "head.weight" not in result
    assert rows_of(account, "head.weight")[0]["action"] == "dropped"
    for start in ({"carry": ("head",)}, {"laws": {"head": "own"}}):
        with pytest.raises(ConfigError, match="the new model's head is its embedding"):
            Transfer(SOURCE, TIED, Start(**start), 4)


def test_bytes_depend_on_seed_and_source_alone(tmp_path: Path):
    """Also where the source's numbers are stored in other chunks."""
    start = {"carry": ("attention",), "laws": {"mlp": "permuted", "embedding": "mean"}}
    write_random(tmp_path / "stored")
    stored = megatron.read(tmp_path / "stored")
    (one, first), (other, second) = made(**start), made(source=stored, **start)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert same_account(first, second) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--carry", "none", "--law", "embedding=permuted", "--vocab-size", 300], "it binds embedding"),
        (["--carry", "all", "--num-layers", 6], "(--layer-map says which goes where)"),
        (["--carry", "head", "--tied-embeddings"], "the new model's head is its embedding"),
        (["--carry", "all", "--law", "mlp"], "is not WORD=LAW"),
        (["--carry", "attention@4:2"], "is no range within 0:3"),
        (["--carry", "attention@x"], "are no ranges of layers"),
        (["--carry", "embedding@0"], "nothing of it lies in layers"),
        (["--carry", "all", "--reinit", "final_nrom"], "Did you mean 'final_norm'?"),
        (["--carry", "none", "--law", "q@1=shuffled_layers"], "of q there is one layer"),
        (["--carry", "none", "--law", "embedding=normal:0"], "is no law"),
    ],
)
def test_refusals(tmp_path: Path, trained: Path, transfer: Callable, words: list, message: str):
    code, _, err = transfer("--from", trained, "--to", tmp_path / "new", "--seed", 4, *words)
    assert code == 2
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_words_of_the_command_line(tmp_path: Path, trained: Path, transfer: Callable):
    words = ["--carry", "attention@0:1,2:3", "--carry", "norms", "--law", "mlp@0=permuted", "embedding=mean",
             "--layer-map", "0,0,1,1,2,2", "--vocab-size", 300]
    code, out, _ = transfer("--from", trained, "--to", tmp_path / "new", "--seed", 4, *words)
    assert code == 0
    assert "layers: from 0, 0, 1, 1, 2, 2" in out
    found = megatron.read(tmp_path / "new")
    start = Start(carry=("attention@0:1,2:3", "norms"), laws={"mlp@0": "permuted", "embedding": "mean"},
                  layer_map="0,0,1,1,2,2")
    expected = Transfer(SOURCE, found.model, start, 4).result()
    assert found.model == replace(CONFIG, num_layers=6, vocab_size=300)
    assert all((a == b.numpy()).all() for a, b in zip(values(found).values(), (
        expected.tensor(name).read() for name in values(found)), strict=True))


def test_the_account_is_checked_against_the_tensors(tmp_path: Path, trained: Path, transfer: Callable):
    folder = tmp_path / "new"
    transfer("--from", trained, "--to", folder, "--carry", "k", "mlp", "--seed", 4)
    assert check_account(folder) == check_account(folder, (1, 3)) == check_account(trained) == []
    path = folder / "account.json"
    good = json.loads(path.read_text())
    for change, message in (
        ({"tensors": good["tensors"][1:]}, "explains"),
        ({"tensors": [{**row, "sha256": row["sha256"] and "0" * 64} for row in good["tensors"]]},
         "layers.0.attention.qkv.weight is not the tensor of account.json"),
        ({"model": {**good["model"], "vocab_size": 201}}, "is of another model"),
        ({"tensors": [{**row, "shap": 1} for row in good["tensors"]]}, "cannot be read"),
    ):
        path.write_text(json.dumps({**good, **change}))
        assert message in "; ".join(check_account(folder))
    wrong = [{**row, "sha256": row["sha256"] and "0"} for row in good["tensors"]]
    path.write_text(json.dumps({**good, "tensors": wrong}))
    shares = [set(check_account(folder, (index, 2))) for index in range(2)]
    assert all(shares) and not shares[0] & shares[1] and shares[0] | shares[1] == set(check_account(folder))


def test_a_phase_does_not_start_from_other_tensors_than_the_accounts(tmp_path: Path, trained: Path, transfer: Callable):
    from megatron_nca.mcore.engine import read_ranks
    from megatron_nca.run_dir import RunFolder
    from megatron_nca.train import checkpoints

    folder = RunFolder(tmp_path).phase("a", 0, "text")
    transfer("--from", trained, "--to", folder.initial, "--carry", "attention", "--seed", 4)
    assert checkpoints.starting_point(folder, read_ranks(), hashes=True) == folder.initial
    other = Transfer(random_checkpoint(seed=1), CONFIG, Start(carry=("attention",)), 4)
    account = (folder.initial / "account.json").read_text()
    megatron.write(tmp_path / "other", other.result(), other.run_config())
    (folder.initial / "__0_0.distcp").write_bytes((tmp_path / "other" / "__0_0.distcp").read_bytes())
    assert (folder.initial / "account.json").read_text() == account
    (folder.initial / file_list.NAME).unlink()
    file_list.write(folder.initial)
    with pytest.raises(CheckpointError, match=r"is not what its account says: layers\.0\.attention\.proj\.weight"):
        checkpoints.starting_point(folder, read_ranks(), hashes=True)
