"""The demo recipe as one chain over two nodes. Long: its four trainings take ten minutes there and ten here."""

import re

import plans
import pytest
import yaml

LAYOUT = {"tensor": 2, "pipeline": 2}
TRAININGS = [("scratch", "text"), ("nca", "nca"), ("nca", "text"), ("attention", "text")]


@pytest.mark.long
def test_the_demo_recipe_ends_with_the_losses_of_a_run_here(slurm, tmp_path):
    values = yaml.safe_load((plans.ROOT / "launch/recipes/demo.yaml").read_text(encoding="utf-8"))
    for phase in values["phases"].values():
        phase["parallel"] = LAYOUT
    cluster = yaml.safe_load((plans.ROOT / "slurm/clusters/local.yaml").read_text(encoding="utf-8"))
    run = slurm.submit(tmp_path, values, cluster)
    log = slurm.finish(run, 3600)
    assert (run / "report" / "report.md").is_file(), log
    begun = [line for line in log.splitlines() if re.search(r"-(scratch|nca|attention)\.\w+: attempt 1 begins", line)]
    assert len(begun) == len(TRAININGS) and all("on n[" in line for line in begun), "two nodes of two ranks each"
    plans.call("run", run / "recipe.yaml", "--run-dir", tmp_path / "here", timeout=3600)
    for arm, phase in TRAININGS:
        lines = plans.metrics(run, phase, arm)
        assert len(lines) > 300 and lines == plans.metrics(tmp_path / "here", phase, arm), (arm, phase)
