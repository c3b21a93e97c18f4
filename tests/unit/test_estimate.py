"""`megatron-nca estimate`: figures in words and as JSON, and what it refuses."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from megatron_nca.__main__ import main
from megatron_nca.cli import estimate
from megatron_nca.mcore import parallel

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path, recipe_values) -> str:
    recipe_values["phases"]["text"]["global_batch_size"] = recipe_values["phases"]["text"]["validation_sequences"] = 16
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values, sort_keys=False))
    return str(path)


def figures(capsys, *words: str) -> dict:
    assert main(["estimate", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_figures_of_all_phases_and_of_the_run(recipe, capsys):
    found = figures(capsys, recipe, "--mfu", "0.5", "--peak-tflops", "2", "--memory-gib", "3")
    assert list(found["phases"]) == ["nca", "text"]
    assert found["device"] == {"name": "NVIDIA H100 SXM", "memory_bytes": 3 * 2**30}
    text = found["phases"]["text"]
    assert text["tokens"] == 6 * 16 * 64
    assert (text["vocab_size"], text["padded_vocab_size"]) == (300, 384)
    assert text["parameters"]["total"] == text["parameters"]["without_vocabulary"] + 2 * 384 * 32
    assert text["flops"] == text["tokens"] * text["flops_per_token"]
    assert text["device_hours"] == pytest.approx(text["flops"] / 1e12 / 3600)
    assert text["checkpoint_bytes"] == 14 * text["parameters"]["total"]
    # Three arms train on text; two of them share one phase of automata.
    assert found["run"]["trainings"] == 4
    assert found["run"]["flops"] == 3 * text["flops"] + found["phases"]["nca"]["flops"]


def test_a_world_size_changes_the_copies_and_the_memory_and_not_the_work(recipe, capsys):
    one, eight = (figures(capsys, recipe, "--phase", "text", "--world-size", n)["phases"]["text"] for n in ("1", "8"))
    assert (eight["layout"]["data"], eight["layout"]["micro_batches"]) == (8, 1)
    assert (one["layout"]["data"], one["layout"]["micro_batches"]) == (1, 8)
    assert eight["flops"] == one["flops"] and eight["device_hours"] == one["device_hours"]
    assert eight["memory_bytes"][0]["moments"] < one["memory_bytes"][0]["moments"]
    assert "run" not in figures(capsys, recipe, "--phase", "text")


def test_words_say_what_fits_and_what_is_not_known(recipe, capsys):
    assert main(["estimate", recipe, "--phase", "text", "phases.text.parallel.tensor=2", "--world-size", "4"]) == 0
    said = capsys.readouterr().out
    assert "tensor 2 x pipeline 1 x context 1 x data 2 = 4 devices" in said
    assert "of 989.4 TFLOP/s (NVIDIA H100 SXM, bf16)" in said and "FIT" not in said
    assert main(["estimate", recipe, "--phase", "text", "--device", "cpu", "--memory-gib", "0.0001"]) == 0
    said = capsys.readouterr().out
    assert "DOES NOT FIT even with recompute full" in said
    assert "not known: a CPU has no rated peak; give --peak-tflops" in said
    assert main(["estimate", recipe, "--device", "cpu"]) == 0
    assert "FLOPs, device-hours not known without a rated peak; give --peak-tflops\n" in capsys.readouterr().out


def test_memory_of_another_engine_is_not_guessed(recipe, capsys):
    words = [recipe, "--phase", "text", "phases.text.parallel.engine=deepspeed"]
    text, megatron = (figures(capsys, *these)["phases"]["text"] for these in (words, words[:3]))
    assert (text["memory_bytes"], text["flops"]) == (None, megatron["flops"])
    assert main(["estimate", *words]) == 0
    assert "  memory        not counted for the engine deepspeed\n" in capsys.readouterr().out
    assert main(["estimate", *words, "--build"]) == 2
    assert "phases.text: --build = True: parallel.engine is 'deepspeed'" in capsys.readouterr().err


def test_recomputation_is_counted_as_it_is_set(recipe, capsys):
    words = [recipe, "--phase", "text", "--device", "cpu"]
    plain = figures(capsys, *words)["phases"]["text"]
    full = figures(capsys, *words, "phases.text.parallel.recompute={granularity: full}")["phases"]["text"]
    assert (plain["layout"]["recompute"], full["layout"]["recompute"]["granularity"]) == (None, "full")
    [before], [after] = plain["memory_bytes"], full["memory_bytes"]
    assert before["total_recomputed_in_full"] == after["total_recomputed_in_full"] == after["total"] < before["total"]
    assert (before["recomputed"], after["activations"] < before["activations"]) == (0, True)
    assert main(["estimate", *words]) == 0
    assert "with recompute full" in capsys.readouterr().out


def test_a_growing_batch_is_counted_as_it_grows(recipe, capsys):
    words = [recipe, "--phase", "text", "phases.text.rampup_batch_size=[4, 4, 24]"]
    text = figures(capsys, *words)["phases"]["text"]
    assert text["tokens"] < 6 * 16 * 64 and text["flops"] == text["tokens"] * text["flops_per_token"]
    assert main(["estimate", *words]) == 0
    assert "6 iterations of up to 16 sequences" in capsys.readouterr().out


def test_a_built_rank_is_compared_with_the_formulas(recipe, capsys, monkeypatch):
    parallel.shut_down()  # an engine of an earlier test leaves its group
    words = [recipe, "--phase", "text", "phases.text.parallel.pipeline=2", "--build", "--rank", "3"]
    words += ["--world-size", "4"]
    built = figures(capsys, *words)["phases"]["text"]["built"]
    assert (built["rank"], built["stage"], built["equal"]) == (3, 1, True)
    monkeypatch.setattr("megatron_nca.account.parameters.layer_shapes", lambda model, tensor=1: ((1, 1),))
    assert main(["estimate", *words]) == 0
    assert "NOT as the formulas say" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world-size", "3"], "phases.nca: --world-size = 3: is not a multiple of"),
        (["--phase", "text", "--world-size", "32"], "phases.text: global_batch_size = 16: is not a multiple"),
        (["--phase", "txt"], "--phase = 'txt': not a phase of this recipe. Did you mean 'text'?"),
        (["--mfu", "40"], "--mfu = 40.0: is not above 0 and at most 1."),
        (["--peak-tflops", "0"], "--peak-tflops = 0.0: must be positive and finite."),
        (["--memory-gib", "inf"], "--memory-gib = inf: must be positive and finite."),
        (["--rank", "1"], "--rank = 1: belongs to --build."),
        (["--phase", "text", "--build", "--rank", "1"], "phases.text: --rank = 1: the world has 1 ranks."),
    ],
)
def test_users_errors_end_with_2_and_one_message(recipe, capsys, words, message):
    assert main(["estimate", recipe, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.splitlines()) == 1


def test_the_examples_of_the_help_work(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    parallel.shut_down()
    lines = [line for line in estimate.EXAMPLES.replace("\\\n", " ").splitlines() if "megatron-nca" in line]
    assert len(lines) == 4
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
    said = capsys.readouterr().out
    assert "1,610,713,088 without embedding and head" in said
    assert "rank 511" in said and "NOT as" not in said
