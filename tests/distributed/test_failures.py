"""A rank that fails ends all ranks, soon and with one message that names it."""

import json
import re
import subprocess
from pathlib import Path

from launching import command, execute

FAULTY = Path(__file__).parent / "faulty.py"
PHASE = "tp2"
AT_ONCE = ("--shutdown-timeout", "5")
"""Seconds until the launcher kills what does not end by itself."""


def faulty(
    run_folder: Path, folder: Path, fault: str, rank: int, *flags: object
) -> tuple[subprocess.CompletedProcess, dict]:
    """A training of two ranks of which one comes to harm, and the record it leaves."""
    run = folder / fault
    run.mkdir()
    for name in ("recipe.yaml", "data"):
        (run / name).symlink_to(run_folder / name)
    phase = run / f"arms/{PHASE}/seed0/{PHASE}"
    phase.mkdir(parents=True)
    (phase / "initial").symlink_to(run_folder / "arms/tp1pp1/seed0/tp1pp1/initial")
    training = ["train", run / "recipe.yaml", "--phase", PHASE, "--arm", PHASE, "--run-dir", run, *flags]
    launch = command("torchrun", "--standalone", *AT_ONCE, "--nproc-per-node", 2, FAULTY, fault, rank, *training)
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
    assert re.search(r"is gone: .* Last seen in .*(iteration [0-7]|model|checkpoint|data)", record["message"])


def test_a_rank_that_is_stopped(run_folder: Path, tmp_path: Path) -> None:
    """It stays stopped until the launcher kills it."""
    result, record = faulty(run_folder, tmp_path, "stopped", 1, "--watchdog", "6s")
    assert result.returncode == 1
    assert record["rank"] == 0 and "rank 1 (process " in record["message"]
    words = r"is silent for 6 s: .* Last seen in iteration 7, training, micro-batch 2, at \S*/faulty.py:\d+ in stopped"
    assert re.search(words, record["message"])


def test_a_rank_that_hangs(run_folder: Path, tmp_path: Path) -> None:
    """It lives and gives signs of it, but makes no progress; the other waits for it."""
    result, record = faulty(run_folder, tmp_path, "hangs", 1)
    assert result.returncode == 1
    where = "in iteration 7, training, micro-batch 2,"
    words = rf"no progress for 4 s: rank 1 {where} at \S*/faulty.py:\d+ in hangs; rank 0 {where} waiting for others at"
    assert re.search(words, record["message"])
