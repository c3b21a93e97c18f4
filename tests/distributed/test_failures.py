"""A rank that fails ends all ranks, soon and with one message that names it."""

import json
import re
import subprocess
from pathlib import Path

from launching import command, execute

FAULTY = Path(__file__).parent / "faulty.py"
PHASE = "tp2"


def faulty(run_folder: Path, folder: Path, fault: str, rank: int) -> tuple[subprocess.CompletedProcess, dict]:
    """A training of two ranks of which one comes to harm, and the record it leaves."""
    run = folder / fault
    run.mkdir()
    for name in ("recipe.yaml", "data"):
        (run / name).symlink_to(run_folder / name)
    phase = run / f"arms/{PHASE}/seed0/{PHASE}"
    phase.mkdir(parents=True)
    (phase / "initial").symlink_to(run_folder / "arms/tp1pp1/seed0/tp1pp1/initial")
    training = ["train", run / "recipe.yaml", "--phase", PHASE, "--arm", PHASE, "--run-dir", run]
    launch = command("torchrun", "--standalone", "--nproc-per-node", 2, FAULTY, fault, rank, *training)
    result = execute(launch, check=False)
    seconds = (phase / "failed.json").stat().st_mtime - (phase / "metrics.jsonl").stat().st_mtime
    print(f"{fault}: said {seconds:.1f} s after the last whole iteration")
    assert not (phase / "done.json").exists() and not (phase / "stopped.json").exists()
    record = json.loads((phase / "failed.json").read_text())
    assert result.stderr.count("All ranks end.") == 1, result.stderr
    assert record["message"] in result.stderr
    return result, record


def test_an_exception(run_folder: Path, tmp_path: Path) -> None:
    result, record = faulty(run_folder, tmp_path, "raises", 1)
    assert result.returncode == 1
    assert record["message"].startswith("rank 1 (process ")
    words = "failed in iteration 7, training, micro-batch 2: ValueError: a number that no one expected"
    assert words in record["message"]
    assert result.stderr.rstrip().endswith("All ranks end."), "the message is the last thing said"
    assert result.stderr.count("Traceback") == 1 and "in raises" in result.stderr


def test_a_rank_that_is_killed(run_folder: Path, tmp_path: Path) -> None:
    result, record = faulty(run_folder, tmp_path, "killed", 0)
    assert result.returncode == 1
    assert "rank 0 (process " in record["message"] and "Traceback" not in result.stderr
    assert re.search(r"is gone, last seen in .*(iteration [0-7]|model|checkpoint|data)", record["message"])
