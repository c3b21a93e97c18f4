"""The two corpora that machines have train at once: the text phase of the demo on each. Long: three minutes each."""

import pytest
from launching import REPOSITORY, command, execute, read_metrics

pytestmark = pytest.mark.long


@pytest.mark.parametrize("corpus", ["python-stdlib", "debian-docs"])
def test_the_demos_text_phase_trains_on_it(tmp_path, corpus):
    recipe = REPOSITORY / "launch/recipes/demo.yaml"
    changed = [f"datasets.text.input={corpus}", "arms={scratch: {steps: [{phase: text}]}}"]
    execute(command("run", recipe, "--run-dir", tmp_path / "run", *changed), timeout=1500)
    assert len(read_metrics(tmp_path / "run", "scratch", "text", "train")) == 352
    losses = [line["lm loss validation"] for line in read_metrics(tmp_path / "run", "scratch", "text", "validation")]
    assert len(losses) >= 11 and losses[-1] < losses[0] - 0.5, losses
