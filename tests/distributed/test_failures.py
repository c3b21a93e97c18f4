"""A rank that fails ends all ranks, soon and with one message that names it."""

import json
import re
import subprocess
import time
from pathlib import Path

import yaml
from launching import command, execute

from megatron_nca.mcore.torch_dist import TorchDistReader

FAULTY = Path(__file__).parent / "faulty.py"
PHASE = "tp2"


def trained(
    run_folder: Path, folder: Path, name: str, fault: str, rank: int, *flags: object
) -> tuple[subprocess.CompletedProcess, Path]:
    """A training of two ranks of which one has a fault, and the phase's folder."""
    run = folder / fault
    run.mkdir()
    for part in ("recipe.yaml", "data"):
        (run / part).symlink_to(run_folder / part)
    phase = run / f"arms/{name}/seed0/{name}"
    phase.mkdir(parents=True)
    (phase / "initial").symlink_to(run_folder / "arms/tp1pp1/seed0/tp1pp1/initial")
    training = ["train", run / "recipe.yaml", "--phase", name, "--arm", name, "--run-dir", run, *flags]
    launch = command("torchrun", "--standalone", "--nproc-per-node", 2, FAULTY, fault, rank, *training)
    temporary = run / "tmp"
    temporary.mkdir()
    result = execute(["env", f"TMPDIR={temporary}", *launch], check=False)
    left = [path.name for path in temporary.iterdir() if "torchelastic" in path.name or "wandb" in path.name]
    assert not left, "folders in the system's temporary one, which nobody would remove"
    return result, phase


def faulty(
    run_folder: Path, folder: Path, fault: str, rank: int, *flags: object
) -> tuple[subprocess.CompletedProcess, dict]:
    """A training of two ranks of which one comes to harm, and the record it leaves."""
    result, phase = trained(run_folder, folder, PHASE, fault, rank, *flags)
    assert (phase / "failed.json").exists(), result.stderr
    said, ended = (phase / "failed.json").stat().st_mtime, time.time()
    after = said - (phase / "metrics.jsonl").stat().st_mtime
    print(f"{fault}: said {after:.1f} s after the last whole iteration, all ended {ended - said:.1f} s later")
    assert ended - said < 25, "torchrun alone kills what does not end by itself after 30 seconds"
    assert not (phase / "done.json").exists() and not (phase / "stopped.json").exists()
    record = json.loads((phase / "failed.json").read_text())
    assert result.stderr.count("All ranks end.") == 1, result.stderr
    assert record["message"] in result.stderr
    return result, record


def test_a_bad_loss_is_skipped_by_all_stages(run_folder: Path, tmp_path: Path) -> None:
    """The last of two stages has a loss that is no number; neither makes the update, and training goes on."""
    settings = {"on_bad_loss.action": "skip", "iterations": 4, "save_interval": 1, "keep_checkpoints": 4}
    flags = [f"phases.pp2.{name}={value}" for name, value in settings.items()]
    result, phase = trained(run_folder, tmp_path, "pp2", "spoilt", 1, *flags)
    differs = result.stderr.split("other settings than in ")[1].split("\nphase ")[0]
    assert ": 20 before, 4 now" in differs and "on_bad_loss" not in differs, "what the report cannot know is said"
    assert result.returncode == 0, result.stderr
    assert json.loads((phase / "done.json").read_text())["skipped updates"] == 1
    lines = [line for line in map(json.loads, (phase / "metrics.jsonl").read_text().splitlines()) if "skipped" in line]
    assert [line["iteration"] for line in lines if line["skipped"]] == [3] == [
        line["iteration"] for line in lines if line["lm loss"] is None
    ]  # fmt: skip
    two, three, four = (TorchDistReader(phase / f"checkpoints/iter_000000{number}") for number in (2, 3, 4))
    assert len(two.table) == 4 * 9, "weights, fp32 weights and two moments"
    assert all((two.read(key) == three.read(key)).all() for key in two.table)
    assert not any((three.read(key) == four.read(key)).all() for key in two.table)
    kept = yaml.safe_load((phase / "checkpoints/iter_0000003/run_config.yaml").read_text())["losses"]
    assert kept["bad_in_a_row"] == kept["skipped"] == 1


def test_an_exception(run_folder: Path, tmp_path: Path) -> None:
    result, record = faulty(run_folder, tmp_path, "raises", 1)
    assert result.returncode == 1
    assert record["message"].startswith("rank 1 (process ")
    words = "failed in iteration 3, training, micro-batch 2: ValueError: a number that no one expected"
    assert words in record["message"]
    assert result.stderr.rstrip().endswith("All ranks end."), "the message is the last thing said"
    assert result.stderr.count("Traceback") == 1 and "in raises" in result.stderr


def test_a_rank_that_is_killed(run_folder: Path, tmp_path: Path) -> None:
    result, record = faulty(run_folder, tmp_path, "killed", 0)
    assert result.returncode == 1
    assert "rank 0 (process " in record["message"] and "Traceback" not in result.stderr
    assert re.search(r"is gone: .* Last seen in .*(iteration [0-3]|model|checkpoint|data)", record["message"])


def test_a_rank_that_is_stopped(run_folder: Path, tmp_path: Path) -> None:
    result, record = faulty(run_folder, tmp_path, "stopped", 1, "--watchdog", "6s")
    assert result.returncode == 1
    assert record["rank"] == 0 and "rank 1 (process " in record["message"]
    words = r"is silent for 6 s: .* Last seen in iteration 3, training, micro-batch 2, at \S*/faulty.py:\d+ in stopped"
    assert re.search(words, record["message"])


def test_a_rank_that_hangs(run_folder: Path, tmp_path: Path) -> None:
    """It lives and gives signs of it, but makes no progress; the other waits for it."""
    result, record = faulty(run_folder, tmp_path, "hangs", 1)
    assert result.returncode == 1
    where = "in iteration 3, training, micro-batch 2,"
    words = rf"no progress for 4 s: rank 1 {where} at \S*/faulty.py:\d+ in hangs; rank 0 {where} waiting for others at"
    assert re.search(words, record["message"])
