"""Checkpoints of many ranks: they load at any layout, a resume goes on with the same floats, a broken one is passed."""

import itertools
import json
from pathlib import Path

import pytest
import yaml
from launching import TIMES, command, execute, initialise, read_metrics, recipe_values, torchrun

from megatron_nca import file_list
from megatron_nca.mcore.torch_dist import TorchDistReader

WORKER = Path(__file__).parent / "worker.py"
RELAYOUT = Path(__file__).parent / "relayout.py"
LAYOUTS = ["tp2pp2", "tp4", "pp4", "dp2tp2"]
EXACT = "exact"
"""Phase of bf16 at TP2 x DP2 with all that a resume could get wrong."""


def make_run(folder: Path) -> Path:
    """A run of 60 iterations with data and initial checkpoint."""
    values = recipe_values(iterations=60)
    values["model"]["num_layers"] = 2
    parallel = {"tensor": 2, "data": 2, "sequence_parallel": True, "recompute": {"granularity": "full"}}
    phase = {
        **values["phases"]["tp1pp1"], "parallel": parallel, "precision": "bf16", "attention_dropout": 0.1,
        "async_save": True, "save_interval": 15, "keep_every": 30, "keep_checkpoints": 1, "validation_interval": 30,
    }  # fmt: skip
    values["phases"] = {"tp1pp1": values["phases"]["tp1pp1"], EXACT: phase}
    values["arms"] = {name: {"steps": [{"phase": name}]} for name in values["phases"]}
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    for part in ("train", "validation"):
        words = ["--recipe", folder / "recipe.yaml", "--dataset", "nca", "--part", part, "--run-dir", folder]
        execute(command("generate", *words))
    initialise(folder, "tp1pp1", [EXACT])
    return folder


def series(run: Path) -> Path:
    return run / f"arms/{EXACT}/seed0/{EXACT}/checkpoints"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run unbroken, and one that goes on from its iteration 30, the newer ones of which are broken; one launch."""
    folder = tmp_path_factory.mktemp("exact")
    unbroken = make_run(folder / "unbroken")
    broken = folder / "resumed"
    broken.mkdir()
    for name in ("recipe.yaml", "data"):
        (broken / name).symlink_to(unbroken / name)
    series(broken).mkdir(parents=True)
    half = series(unbroken) / "iter_0000030"
    newer = series(broken) / "iter_0000045"
    newer.mkdir()
    (newer / "__0_0.distcp").write_bytes(b"torn")
    copy = f"{half}=>{series(broken) / half.name}"
    execute(torchrun(4, WORKER, f"{unbroken}::{EXACT}", copy, f"{broken}::{EXACT}"))
    return unbroken, broken


def test_a_resume_halfway_goes_on_with_the_same_floats(resumed: tuple[Path, Path]) -> None:
    for kind in ("train", "validation"):
        lines = [
            [{key: value for key, value in line.items() if key not in TIMES}
             for line in read_metrics(run, EXACT, EXACT, kind) if line["iteration"] > 30]
            for run in resumed
        ]  # fmt: skip
        assert lines[0] == lines[1]
        assert lines[0][-1]["iteration"] == 60


def test_milestones_stay_and_all_that_stays_is_whole(resumed: tuple[Path, Path]) -> None:
    for run in resumed:
        found = sorted(path.name for path in series(run).iterdir())
        assert found == ["iter_0000030", "iter_0000060", "latest_checkpointed_iteration.txt"]
        assert all(file_list.flaws(series(run) / name, (0, 1)) == [] for name in found[:2])
    weights = [TorchDistReader(series(run) / "iter_0000060") for run in resumed]
    for key in weights[0].table:
        assert (weights[0].read(key) == weights[1].read(key)).all(), key


def test_every_rank_wrote_a_share(resumed: tuple[Path, Path]) -> None:
    files = sorted((series(resumed[0]) / "iter_0000060").glob("*.distcp"))
    assert [path.name for path in files] == [f"__{rank}_0.distcp" for rank in range(4)]
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) < 1.5 * min(sizes)


def test_a_checkpoint_explains_itself(resumed: tuple[Path, Path]) -> None:
    folder = series(resumed[0]) / "iter_0000030"
    assert yaml.safe_load((folder / "run_config.yaml").read_text())["iteration"] == 30
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["phases"][EXACT]["keep_every"] == 30
    values = json.loads((folder / "provenance.json").read_text())
    assert set(values["software"]) == {"megatron_nca", "commit", "python", "torch", "megatron-core"}
    assert values["parallel"]["tensor"] == 2 and values["data"]["dataset"] == "nca"
    for part in ("train", "validation"):
        manifest = json.loads((resumed[0] / f"data/nca/{part}.json").read_text())
        assert values["data"][part]["sha256"] == manifest["files"]["bin"]["sha256"]


RING = list(zip(LAYOUTS, LAYOUTS[1:] + LAYOUTS[:1], strict=True))
"""Each layout is saved once and loaded once; a table of chunks knows no layout: other pairs hardly differ in kind."""
OTHERS = [pair for pair in itertools.permutations(LAYOUTS, 2) if pair not in RING]


@pytest.fixture(scope="module")
def relaid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Trained and saved at every layout, loaded at another for each test to come, saved again and stepped; one launch
    of four ranks."""
    folder = tmp_path_factory.mktemp("relayout")
    tests = (item for item in request.session.items if "relaid" in getattr(item, "fixturenames", ()))
    pairs = ["-".join(item.callspec.params["pair"]) for item in tests]
    said = execute(torchrun(4, RELAYOUT, folder, *pairs)).stdout
    losses = {}
    for line in said.splitlines():
        if line.startswith('{"saved"'):
            values = json.loads(line)
            losses[values["saved"], values["loaded"]] = values["loss"]
    return folder, losses


@pytest.mark.parametrize("pair", [*RING, *(pytest.param(pair, marks=pytest.mark.long) for pair in OTHERS)],
                         ids="-".join)  # fmt: skip
def test_a_checkpoint_loads_at_another_layout(relaid: tuple[Path, dict], pair: tuple[str, str]) -> None:
    folder, losses = relaid
    saved, loaded = pair
    before, after = TorchDistReader(folder / saved), TorchDistReader(folder / f"{saved}-{loaded}")
    assert set(before.table) == set(after.table) and len(before.table) == 4 * 9
    for key in before.table:
        assert (before.read(key) == after.read(key)).all(), key
    assert 3 < losses[pair] < 30
    assert losses[pair] == pytest.approx(losses[saved, saved], rel=1e-5)
