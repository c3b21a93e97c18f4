"""An attempt that another has overtaken publishes nothing, and ends."""

import subprocess
import sys

import plans
import pytest

from megatron_nca import files
from megatron_nca.errors import LaunchError
from megatron_nca.run_dir import RunFolder
from megatron_nca.train.fence import Fence


def test_the_highest_number_alone_may_publish(tmp_path):
    first = Fence(tmp_path, files.take_number(tmp_path, ""))
    first.check()
    second = Fence(tmp_path, files.take_number(tmp_path, ""))
    with pytest.raises(LaunchError, match="attempt 2 at this phase has begun, and attempt 1 ends"):
        first.check()
    second.check()


def test_a_process_that_was_overtaken_ends_and_lets_go_of_its_lock(tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from megatron_nca import files\n"
        "from megatron_nca.train.fence import Fence\n"
        "folder = Path(sys.argv[1])\n"
        "lock = files.try_lock(folder / '.lock')\n"
        "Fence(folder / 'attempts', files.take_number(folder / 'attempts', '')).watch()\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=plans.ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    assert files.try_lock(tmp_path / ".lock") is None
    files.take_number(tmp_path / "attempts", "")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and "attempt 2 at this phase has begun" in errors
    assert files.try_lock(tmp_path / ".lock") is not None


@pytest.mark.long
def test_two_trainings_of_one_phase_at_once(tmp_path):
    """The second has a higher number, as after a node was given up whose ranks live on; it goes on from the first."""
    values = plans.one_phase(400, 20, parallel={})
    recipe = plans.write(tmp_path / "recipe.yaml", values)
    plans.call("run", recipe, "--run-dir", tmp_path / "alone")
    run = RunFolder(tmp_path / "run")
    words = ["--recipe", recipe, "--dataset", "automata", "--run-dir", run.path, "--part"]
    for part in ("train", "validation"):
        plans.call("generate", *words, part)
    phase = run.phase("nca", 0, "nca")
    plans.call("convert", "transfer", "--carry", "none", "--to", phase.initial, "--recipe", recipe, "--phase", "nca",
               "--seed", 0)
    train = [sys.executable, "-m", "megatron_nca", "train", str(recipe), "--phase", "nca", "--run-dir", str(run.path)]
    old = subprocess.Popen(train, cwd=plans.ROOT, stderr=subprocess.PIPE, text=True)
    plans.wait(lambda: plans.iteration(run.path) >= 50, 300, "training")
    number = files.take_number(phase.attempts, "")
    plans.call("train", recipe, "--phase", "nca", "--run-dir", run.path, MEGATRON_NCA_ATTEMPT=str(number))
    _, errors = old.communicate(timeout=30)
    assert old.returncode == 1 and f"attempt {number} at this phase has begun" in errors
    assert not phase.failed.exists()
    assert plans.metrics(run.path) == plans.metrics(tmp_path / "alone")
