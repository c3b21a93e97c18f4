"""The plan: which commands, in which order, and when one is done."""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import pytest

from megatron_nca import plan
from megatron_nca.cli.run import totals
from megatron_nca.config.recipe import load_recipe, recipe_from_dict
from megatron_nca.errors import ConfigError, DataError
from megatron_nca.files import size_text
from megatron_nca.plan import Step
from megatron_nca.run_dir import RunFolder

RUN = RunFolder(Path("runs/x"))


def words(step: Step) -> str:
    return " ".join(step.command)


def test_order_of_the_steps(recipe_values):
    steps = plan.steps(recipe_from_dict(recipe_values), RUN)
    assert [step.name for step in steps] == [
        "data automata train: generate",
        "data automata validation: generate",
        "data text: collect",
        "data text: tokenizer",
        "data text train: preprocess",
        "data text validation: preprocess",
        "text scratch seed0: convert transfer",
        "text scratch seed0: train",
        "nca nca seed0: convert transfer",
        "nca nca seed0: train",
        "text nca seed0: convert transfer",
        "text nca seed0: train",
        "text attention seed0: convert transfer",
        "text attention seed0: train",
        "report",
    ]


def test_every_input_is_made_before_it_is_read(recipe_values):
    recipe_values["seeds"] = [0, 1]
    made: list[str] = []
    for step in plan.steps(recipe_from_dict(recipe_values), RUN):
        if "--from" in step.command:
            source = Path(step.command[step.command.index("--from") + 1])
            assert str(source.parent / "done.json") in made
        made.append(str(step.done))
    assert len(set(made)) == len(made)


def test_commands(recipe_values):
    steps = {step.name: step for step in plan.steps(recipe_from_dict(recipe_values), RUN)}
    generate = steps["data automata train: generate"]
    assert generate.command[:4] == (sys.executable, "-m", "megatron_nca", "generate")
    assert words(generate).endswith("--recipe runs/x/recipe.yaml --dataset automata --part train --run-dir runs/x")
    assert generate.done == Path("runs/x/data/automata/train.json")
    transfer = steps["text attention seed0: convert transfer"]
    assert words(transfer).endswith(
        "convert transfer --from runs/x/arms/nca/seed0/nca/checkpoints --carry attention "
        "--to runs/x/arms/attention/seed0/text/initial --recipe runs/x/recipe.yaml --phase text --seed 0"
    )
    assert transfer.done == Path("runs/x/arms/attention/seed0/text/initial/account.json")
    scratch = words(steps["text scratch seed0: convert transfer"])
    assert "--from" not in scratch and "transfer --carry none --to" in scratch
    preprocess = steps["data text validation: preprocess"]
    assert Path(preprocess.command[1]).is_file()
    assert preprocess.done == Path("runs/x/data/text/validation_text_document.json")


def test_ranks_are_started_by_torchrun_and_a_single_process_is_not(recipe_values):
    steps = {step.name: step for step in plan.steps(recipe_from_dict(recipe_values), RUN)}
    two, one = steps["nca nca seed0: train"], steps["text nca seed0: train"]
    torchrun = f"{sys.executable} -m megatron_nca torchrun --standalone --nproc-per-node 2 "
    assert words(two).startswith(f"{torchrun}-m megatron_nca train")
    assert two.world_size == 2
    assert one.command[:4] == (sys.executable, "-m", "megatron_nca", "train")
    assert words(one).endswith("train runs/x/recipe.yaml --phase text --arm nca --seed 0 --run-dir runs/x")
    assert one.log == Path("runs/x/arms/nca/seed0/text/train.log")


def test_data_made_on_nodes_are_no_step(recipe_values):
    beforehand = recipe_from_dict(recipe_values)
    recipe_values["datasets"]["automata"]["on_node"] = {"folder": "/dev/shm/nca"}
    recipe = recipe_from_dict(recipe_values)
    steps = [step.name for step in plan.steps(beforehand, RUN)]
    assert [step.name for step in plan.steps(recipe, RUN)] == [name for name in steps if "automata" not in name]
    size = plan.dataset_bytes(recipe, "automata")
    assert size == 12 * 2 * recipe.datasets["automata"].law.document_tokens
    assert plan.estimate_bytes(beforehand)[0] - plan.estimate_bytes(recipe)[0] == size
    assert f"on each node: {size_text(size)} of dataset automata in /dev/shm/nca" in "\n".join(totals(recipe))


def test_the_generator_of_a_node(recipe_values):
    for when, nice in (("background", 10), ("start", 0)):
        recipe_values["datasets"]["automata"]["on_node"] = {"folder": "/dev/shm/nca", "when": when}
        dataset = recipe_from_dict(recipe_values).datasets["automata"]
        command = " ".join(plan.stage_command(Path("r.yaml"), ["a.b=1"], "automata", dataset, 7))
        assert command.endswith(f"stage r.yaml a.b=1 --dataset automata --seed 7 --nice {nice} --for-training")


def test_layers_are_passed_on(recipe_values):
    recipe_values["arms"]["nca"]["steps"][1]["start"]["layers"] = [0, 1]
    steps = {step.name: step for step in plan.steps(recipe_from_dict(recipe_values), RUN)}
    assert "--carry all --layers 0:1 " in words(steps["text nca seed0: convert transfer"])


def test_a_dataset_whose_files_have_other_sizes_is_not_whole(tmp_path):
    done = tmp_path / "train.json"
    step = Step("x", ("true",), done, dataset=True)
    assert not step.whole
    for ending, size in (("bin", 8), ("idx", 5)):
        done.with_suffix(f".{ending}").write_bytes(b"x" * size)
    done.write_text(json.dumps({"files": {"bin": {"bytes": 8}, "idx": {"bytes": 5}}}))
    assert step.whole
    done.with_suffix(".bin").write_bytes(b"x" * 7)
    assert not step.whole
    done.with_suffix(".bin").unlink()
    assert not step.whole


def test_the_report_is_made_again_when_a_run_has_gone_on_or_is_to(tmp_path):
    report, done = tmp_path / "report.md", tmp_path / "done.json"
    report.write_text("")
    step = Step("report", ("true",), report, after=(done,))
    assert not step.whole
    done.write_text("")
    report.write_text("")
    assert step.whole
    later = time.time_ns() + 10**9
    os.utime(done, ns=(later, later))
    assert not step.whole


def test_shared_phases_are_linked_relatively(recipe_values, tmp_path):
    recipe = recipe_from_dict(recipe_values)
    run = RunFolder(tmp_path / "run")
    plan.link_shared_phases(recipe, run)
    plan.link_shared_phases(recipe, run)
    link = run.phase("attention", 0, "nca").path
    assert os.readlink(link) == "../../nca/seed0/nca"
    home = run.phase("nca", 0, "nca")
    home.path.mkdir(parents=True)
    home.done.write_text("{}")
    assert run.phase("attention", 0, "nca").done.is_file()
    assert not run.phase("attention", 0, "text").path.exists()


def test_a_folder_in_the_place_of_a_link_is_refused(recipe_values, tmp_path):
    run = RunFolder(tmp_path)
    run.phase("attention", 0, "nca").path.mkdir(parents=True)
    with pytest.raises(DataError, match="should be a link"):
        plan.link_shared_phases(recipe_from_dict(recipe_values), run)


def test_a_frozen_recipe_reads_back_equal_and_differences_are_named(recipe_values, tmp_path):
    recipe = plan.resolve_paths(recipe_from_dict(recipe_values))
    run = RunFolder(tmp_path)
    plan.freeze(recipe, run)
    assert plan.freeze(recipe, run) == [] and run.former_recipes() == []
    recipe_values["phases"]["text"]["iterations"] = 7
    with pytest.raises(ConfigError, match=r"phases\.text\.iterations: 6 before, 7 now") as error:
        plan.freeze(recipe_from_dict(recipe_values), run)
    assert "Cure" in str(error.value)


def test_what_is_measured_stays_and_the_rest_may_change_each_change_kept(recipe_values, tmp_path):
    run, before = RunFolder(tmp_path), recipe_from_dict(recipe_values)
    plan.freeze(before, run)
    recipe_values["seeds"] = [*recipe_values["seeds"], 8]
    recipe_values["phases"]["text"] |= {"parallel": {"pipeline": 2}, "micro_batch_size": 1}
    recipe_values["phases"]["more"] = recipe_values["phases"]["text"]
    recipe_values["arms"]["longer"] = {"steps": [{"phase": "more"}]}
    after = recipe_from_dict(recipe_values)
    changed = plan.freeze(after, run)
    assert load_recipe(run.recipe) == after and [load_recipe(path) for path in run.former_recipes()] == [before]
    expected = {"phases.more: added", "arms.longer: added", "phases.text.parallel.pipeline: 1 before, 2 now"}
    assert expected <= set(changed) and any(line.startswith("seeds: ") for line in changed)
    assert plan.freeze(after, run) == [] and len(run.former_recipes()) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda values: values["phases"]["text"].update(global_batch_size=16), "phases.text.global_batch_size"),
        (lambda values: values.update(seeds=[5]), "seeds"),
        (lambda values: values["arms"].pop("attention"), "arms.attention.steps"),
        (lambda values: values.update(arms={"new": values["arms"]["scratch"], **values["arms"]}), "arms.new.steps"),
        (lambda values: values["model"].update(num_layers=4), "model.num_layers"),
    ],
)
def test_what_is_measured_may_not_change(recipe_values, tmp_path, change, named):
    run = RunFolder(tmp_path)
    plan.freeze(recipe_from_dict(recipe_values), run)
    text = run.recipe.read_text()
    change(recipe_values)
    with pytest.raises(ConfigError, match=rf"begun with other settings[\s\S]*\n  {named}: "):
        plan.freeze(recipe_from_dict(recipe_values), run)
    assert run.recipe.read_text() == text and run.former_recipes() == []


def test_paths_are_made_absolute(recipe_values, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recipe_values["datasets"]["text"]["input"] = "mine.jsonl"
    assert plan.resolve_paths(recipe_from_dict(recipe_values)).datasets["text"].input == str(tmp_path / "mine.jsonl")


def test_absent_inputs_are_refused_and_too_many_ranks_warned_of(recipe_values, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "cores", lambda: 1)
    recipe = recipe_from_dict(recipe_values)
    assert [warning.split()[0] for warning in plan.check(recipe)] == ["phases.nca"]
    prefix = str(tmp_path / "none")
    recipe_values["datasets"]["text"] = {
        "source": "indexed",
        "vocab_size": 300,
        "train_prefix": prefix,
        "validation_prefix": prefix,
    }
    with pytest.raises(DataError, match=r"datasets\.text\.train_prefix"):
        plan.check(recipe_from_dict(recipe_values))


def test_missing_programs_name_the_cure(recipe_values, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "DATA_TOOLS", tmp_path)
    with pytest.raises(ConfigError, match="editable"):
        plan.steps(recipe_from_dict(recipe_values), RUN)


def test_tokens_and_disk(recipe_values):
    recipe = recipe_from_dict(recipe_values)
    assert plan.phase_tokens(recipe, "text") == 6 * 2 * 64
    data, checkpoints = plan.estimate_bytes(recipe)
    law = recipe.datasets["automata"].law
    assert data == 12 * law.document_tokens * 2
    twice = dataclasses.replace(recipe, seeds=(0, 1))
    assert plan.estimate_bytes(twice) == (data, 2 * checkpoints)
