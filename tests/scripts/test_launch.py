"""launch/local.sh: the torchrun command that it makes of a recipe."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "local.sh"
DEMO = "launch/recipes/demo.yaml"
RUN = ("--run-dir", "x")
SCRATCH = ("--arm", "scratch", *RUN)
RELEASED = "launch/recipes/released_openwebtext.yaml"


def launch(*words: str, **environment: str) -> subprocess.CompletedProcess:
    settings = {**os.environ, "PYTHON": sys.executable, "DRY_RUN": "1", **environment}
    command = ["bash", str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=settings, timeout=60)


def test_one_machine():
    result = launch(DEMO, "--phase", "nca", "--run-dir", "runs/x")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[1:] == [
        *("-m", "megatron_nca", "torchrun", "--standalone", "--nproc-per-node", "2"),
        *("-m", "megatron_nca", "train", DEMO, "--phase", "nca", "--run-dir", "runs/x"),
    ]


def test_any_word_makes_it_a_dry_run():
    assert launch(DEMO, "--phase", "nca", *RUN, DRY_RUN="yes").stdout.startswith(sys.executable)


def test_overrides_count_when_the_ranks_are_counted():
    output = launch(DEMO, "--phase", "nca", "--run-dir", "x", "phases.nca.parallel.pipeline=2").stdout
    assert "--nproc-per-node 4" in output


@pytest.mark.parametrize("words", [
    (DEMO, "--phase=nca", "--run-dir=x"),
    ("--phase", "nca", DEMO, "--run-dir", "x"),
    ("--run-dir", "runs/a=b", "--phase", "nca", DEMO),
    ("--seed", "0", DEMO, "phases.nca.parallel.tensor=2", "--phase", "nca", "--run-dir", "x"),
])
def test_words_in_any_order_and_form(words):
    result = launch(*words)
    assert result.returncode == 0 and "--nproc-per-node 2" in result.stdout, result.stderr
    assert shlex.split(result.stdout)[-len(words):] == list(words)


def test_two_machines_share_the_ranks():
    words = (RELEASED, "--phase", "text", *SCRATCH)
    output = launch(*words, NNODES="2", NODE_RANK="1", MASTER_ADDR="first").stdout
    assert "--nnodes 2 --node-rank 1 --master-addr first --master-port 29400 --nproc-per-node 4" in output


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        ((DEMO, "--run-dir", "x"), {}, "required: --phase"),
        ((DEMO, "--phase", "text"), {}, "required: --run-dir"),
        ((DEMO, "--phase", "txt", *RUN), {}, "--phase = 'txt': not a phase of this recipe. Did you mean 'text'?"),
        ((DEMO, "--phase", "text", "--arm", "none", *RUN), {}, "--arm = 'none': no arm"),
        ((DEMO, "--phase", "text", *SCRATCH), {"NNODES": "3", "NODE_RANK": "0", "MASTER_ADDR": "a"}, "does not divide"),
        ((DEMO, "--phase", "text", *SCRATCH), {"NNODES": "0"}, "NNODES = '0': is no number"),
        ((RELEASED, "--phase", "text", *SCRATCH), {"NNODES": "2"}, "set NODE_RANK"),
        ((RELEASED, "--phase", "text", *SCRATCH), {"NNODES": "2", "NODE_RANK": "0"}, "set MASTER_ADDR"),
        ((RELEASED, "--phase", "text", *SCRATCH), {"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"}, "from 0 to 1"),
        ((DEMO, "--phase", "nca", *RUN), {"NPROC_PER_NODE": "two"}, "NPROC_PER_NODE = 'two': is no number"),
        (("none.yaml", "--phase", "text", *RUN), {}, "cannot be read"),
    ],
)
def test_what_cannot_be_launched_is_said(words, environment, message):
    result = launch(*words, **environment)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not result.stdout


def test_a_python_that_has_no_torch(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S "$@"\n')
    python.chmod(0o755)
    result = launch(DEMO, "--phase", "nca", *RUN, PYTHON=str(python))
    assert (result.returncode, result.stdout) == (2, "")
    said = f"launch/local.sh: PYTHON = '{python}': is no Python that has megatron_nca and torch. Cure: "
    assert result.stderr.startswith(said) and result.stderr.count("\n") == 1


def test_help_is_its_own_head():
    result = launch("--help")
    assert result.returncode == 0 and result.stdout.startswith("Train one phase of a recipe")
    assert launch(DEMO, "--help").stdout == result.stdout
    assert launch().returncode == 2
