"""The report, on synthetic runs with known answers."""

import csv
import json
import math
import os
import re
import struct
from pathlib import Path

import pytest
import yaml

from megatron_nca.__main__ import main
from megatron_nca.config.recipe import recipe_from_dict
from megatron_nca.errors import DataError
from megatron_nca.plan import link_shared_phases
from megatron_nca.report import compare, curves, text
from megatron_nca.report.compare import Spread, loss_at, tokens_to_reach
from megatron_nca.report.runs import Validation, load_run, read_metrics
from megatron_nca.run_dir import RunFolder

TOKENS = 128
"""Tokens of an iteration of the tiny recipe: 2 sequences of 64."""

# Validation losses of the figure on the authors' project page (OpenWebText, 524,288 tokens an iteration).
PAGE_ITERATIONS = [500, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10000, 11000, 12000, 13000, 14000, 15000]
PAGE_ITERATIONS += [16000, 17000, 17200]
PAGE_SCRATCH = [4.615, 3.822, 3.388, 3.172, 3.054, 2.981, 2.926, 2.882, 2.844, 2.811, 2.782, 2.756, 2.734, 2.716, 2.702]
PAGE_SCRATCH += [2.692, 2.687, 2.685, 2.685]
PAGE_NCA = [4.514, 3.700, 3.311, 3.114, 2.995, 2.923, 2.867, 2.823, 2.785, 2.752, 2.723, 2.697, 2.675, 2.656, 2.642]
PAGE_NCA += [2.633, 2.627, 2.626, 2.626]


def curve(*points: tuple[int, float]) -> list[Validation]:
    return [Validation(iteration, tokens, loss) for iteration, (tokens, loss) in enumerate(points)]


def write_phase(run: RunFolder, arm: str, phase: str, losses: dict[int, float], seed: int = 0, **settings) -> None:
    """metrics.jsonl of a phase with these validation losses by iteration; done unless `done=False`."""
    folder = run.phase(arm, seed, phase)
    folder.path.mkdir(parents=True, exist_ok=True)
    lines = []
    for iteration, loss in losses.items():
        common = {"iteration": iteration, "consumed tokens": iteration * TOKENS}
        train = settings.get("train_loss", loss)
        lines.append({"type": "train", **common, "lm loss": train, "skipped": False})
        positions = settings.get("by_position", [None, loss])
        lines.append({"type": "validation", **common, "lm loss validation": loss, "loss by position": positions})
        lines[-1]["bucket tokens"] = settings.get("bucket_tokens", 18)
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if settings.get("done", True):
        folder.done.write_text(json.dumps({"iterations": max(losses)}))


@pytest.fixture
def make_run(tmp_path, recipe_values):
    """Write a run folder whose arms scratch and nca are whole, and return it."""

    def make(name: str = "run", seeds: tuple[int, ...] = (0,), nca_final: tuple[float, ...] = (2.9,)) -> RunFolder:
        run = RunFolder(tmp_path / name)
        recipe_values["seeds"] = list(seeds)
        recipe_values["arms"].pop("attention", None)
        run.path.mkdir()
        run.recipe.write_text(yaml.safe_dump(recipe_values, sort_keys=False))
        for seed, final in zip(seeds, nca_final, strict=True):
            write_phase(run, "scratch", "text", {0: 5.0, 3: 4.0, 6: 3.0}, seed)
            write_phase(run, "nca", "nca", {0: 2.8, 4: 1.2}, seed)
            write_phase(run, "nca", "text", {0: 5.0, 3: 3.5, 6: final}, seed)
        return run

    return make


def row_of(run: RunFolder, arm: str, seed: int = 0) -> compare.Row:
    return next(row for row in compare.rows(load_run(run.path)) if (row.arm, row.seed) == (arm, seed))


def test_tokens_to_reach_interpolates_linearly():
    points = curve((0, 5.0), (100, 4.0), (200, 2.0))
    assert tokens_to_reach(points, 3.0) == 150
    assert tokens_to_reach(points, 4.0) == 100
    assert tokens_to_reach(points, 1.9) is None
    assert tokens_to_reach(points, 6.0) == 0
    assert tokens_to_reach(curve((0, math.nan), (100, 4.0)), 4.5) == 100
    assert tokens_to_reach([], 1.0) is None


def test_loss_at_interpolates_and_does_not_extrapolate():
    points = curve((0, 5.0), (100, 4.0))
    assert loss_at(points, 25) == 4.75
    assert loss_at(points, 100) == 4.0
    assert loss_at(points, 101) is None
    assert loss_at(points[:1], 0) == 5.0


def test_the_published_curves_give_the_published_gain_and_speed_up(make_run, recipe_values):
    recipe_values["phases"]["text"]["iterations"] = 17200
    run = make_run()
    write_phase(run, "scratch", "text", dict(zip(PAGE_ITERATIONS, PAGE_SCRATCH, strict=True)))
    write_phase(run, "nca", "text", dict(zip(PAGE_ITERATIONS, PAGE_NCA, strict=True)))
    row = row_of(run, "nca")
    assert row.ratio == pytest.approx(0.9427, abs=1e-4)  # 5.73 % lower perplexity
    assert row.speed_up == pytest.approx(1.49, abs=0.005)


def test_ratio_tokens_and_speed_up_of_a_pair(make_run):
    row = row_of(make_run(), "nca")
    assert row.loss == 2.9 and row.perplexity == pytest.approx(math.exp(2.9))
    assert row.ratio == pytest.approx(math.exp(-0.1))
    # From 3.5 at iteration 3 to 2.9 at 6, the control's 3.0 is passed at iteration 5.5.
    assert row.tokens_to_control == pytest.approx(5.5 * TOKENS)
    assert row.speed_up == pytest.approx(6 / 5.5)
    assert row.total_tokens == (4 + 6) * TOKENS
    assert row.total_speed_up == pytest.approx(6 / 9.5)


@pytest.mark.parametrize("arm", ["scratch", "nca"])
def test_a_loss_whose_exponential_no_float_holds_is_reported(make_run, arm):
    run = make_run(seeds=(0, 1, 2), nca_final=(2.9, 2.9, 2.9))
    for seed in range(3):
        write_phase(run, arm, "text", {0: 5.0, 3: 4.0, 6: 800.0 + seed}, seed)
    assert main(["report", str(run.path), "--no-curves"]) == 0
    row = row_of(run, arm)
    assert row.state == "finished" and row.perplexity == math.exp(700)
    report = (run.report / "report.md").read_text()
    assert "800.0" in report and "e+304" in report and not re.search(r"\d{20}", report)


def test_a_worse_arm_never_reaches_the_control(make_run, capsys):
    run = make_run(nca_final=(3.2,))
    row = row_of(run, "nca")
    assert row.ratio == pytest.approx(math.exp(0.2)) and row.reached is False and row.speed_up is None
    assert main(["report", str(run.path), "--no-curves"]) == 0
    output = capsys.readouterr().out
    assert "never" in output
    assert output.rstrip().splitlines()[-1] == "nca / scratch perplexity ratio: 1.221 (1 seed)"


def test_other_lengths_are_compared_at_equal_tokens_and_noted(make_run):
    run = make_run()
    write_phase(run, "nca", "text", {0: 5.0, 3: 3.5})
    row = row_of(run, "nca")
    assert row.compared_tokens == 3 * TOKENS
    assert row.difference == pytest.approx(3.5 - 4.0)
    assert "interpolation" in row.note


def test_unfinished_runs_are_listed_and_not_compared(make_run, capsys):
    run = make_run()
    write_phase(run, "nca", "text", {0: 5.0, 3: 3.5}, done=False)
    run.phase("nca", 0, "text").done.unlink()
    row = row_of(run, "nca")
    assert row.state == "text unfinished: iteration 3 of 6" and row.loss is None and row.ratio is None
    assert main(["report", str(run.path), "--no-curves"]) == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert last == "nca / scratch perplexity ratio: not available, see the states above"
    assert "unfinished: iteration 3 of 6" in (run.report / "report.md").read_text()
    assert "unfinished" in (run.report / "runs.csv").read_text()


def test_an_unfinished_control_leaves_the_others_without_ratio(make_run):
    run = make_run()
    run.phase("scratch", 0, "text").metrics.unlink()
    row = row_of(run, "nca")
    assert row.loss == 2.9 and row.ratio is None and "control is not finished" in row.note


def test_losses_that_are_no_numbers_are_named(make_run):
    run = make_run()
    write_phase(run, "nca", "text", {0: 5.0, 3: math.nan, 6: math.nan})
    assert row_of(run, "nca").state.startswith("text diverged")
    loaded = load_run(run.path)
    report = text.markdown([loaded], compare.rows(loaded), [], curves=False)
    assert "not a number in 2 iterations (3, 6)" in report


def test_null_is_a_loss_that_is_no_number(make_run):
    run = make_run()
    write_phase(run, "nca", "text", {0: 5.0, 6: None})
    assert row_of(run, "nca").state.startswith("text diverged")


def test_spread_over_seeds():
    three = Spread((-0.044, -0.092, -0.116))
    assert three.mean == pytest.approx(-0.084)
    assert three.sd == pytest.approx(0.03666, abs=1e-4)
    assert three.interval == pytest.approx((-0.1751, 0.0071), abs=1e-3)
    assert Spread((1.0, 2.0)).interval is None and Spread((1.0,)).sd is None


def test_the_quantiles_are_students_t():
    stats = pytest.importorskip("scipy.stats")
    expected = [stats.t.ppf(0.975, freedom) for freedom in range(1, 31)]
    assert expected == pytest.approx(compare.T_QUANTILES, abs=6e-4)


def test_seeds_are_paired_and_their_number_is_stated(make_run):
    run = make_run(seeds=(0, 1, 2), nca_final=(2.9, 2.8, 3.1))
    loaded = load_run(run.path)
    rows = compare.rows(loaded)
    assert text.last_lines([loaded], rows) == [
        "nca / scratch perplexity ratio: 0.936 (3 seeds, sd 0.153 nats, 95 % 0.640..1.367)"
    ]
    assert "one seed: no spread" not in text.markdown([loaded], rows, [], curves=False)


def test_one_seed_unequal_compute_and_changed_settings_are_said(make_run, recipe_values):
    run = make_run()
    run.former_recipe(1).write_text(run.recipe.read_text())
    recipe_values["phases"]["text"]["log_interval"] = 3
    run.recipe.write_text(yaml.safe_dump(recipe_values, sort_keys=False))
    loaded = load_run(run.path)
    report = text.markdown([loaded], compare.rows(loaded), compare.learned(loaded), curves=False)
    assert "one seed: no spread" in report
    assert "changed in the recipe after the run had begun: phases.text.log_interval: 10 before, 3 now.\n" in report
    assert f"nca was trained on {4 * TOKENS:,} tokens more than scratch (67%)" in report
    assert report.rstrip().splitlines()[-1] == "- nca / scratch perplexity ratio: 0.905 (1 seed)"


@pytest.mark.parametrize("arm", ["scratch", "nca"])
def test_unequal_compute_is_said_where_the_first_seed_is_not_finished(make_run, arm):
    run = make_run(seeds=(0, 1), nca_final=(2.9, 2.9))
    run.phase(arm, 0, "text").done.unlink()
    loaded = load_run(run.path)
    report = text.markdown([loaded], compare.rows(loaded), [], curves=False)
    assert f"nca was trained on {4 * TOKENS:,} tokens more than scratch (67%)" in report


FRAMES = [None, 2.0, 1.0, 0.1]
"""Bucket 3 would end at position 72 of 64: it is no whole frame and does not count."""


@pytest.mark.parametrize(
    ("loss", "frames", "verdict"),
    [
        (1.2, FRAMES, "learned"),
        (1.2, [None, 1.2, 1.19, 0.1], "hardly learned"),
        (2.2, FRAMES, "hardly learned"),
        (2.75, FRAMES, "nothing learned"),
        (2.9, FRAMES, "nothing learned"),
    ],
)
def test_verdict_on_the_automata_phase(make_run, loss, frames, verdict):
    run = make_run()
    write_phase(run, "nca", "nca", {0: 2.8, 4: loss}, by_position=frames)
    manifest = run.dataset("automata").path / "validation.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"unigram_entropy_nats": 2.77}))
    (check,) = compare.learned(load_run(run.path))
    assert check.verdict == verdict
    assert check.share == pytest.approx(1 - loss / 2.77)
    assert (check.early, check.late) == (frames[1], frames[2])


@pytest.mark.parametrize(
    ("dataset", "loss", "verdict"),
    [
        ({"source": "shuffled", "base": "automata"}, 2.2, "hardly learned"),
        ({"source": "iid", "base": "automata"}, 2.77, "nothing learned"),
        ({"source": "dyck", "sequences": 8, "validation_sequences": 4}, 1.5, "learned"),
        ({"source": "dyck", "sequences": 8, "validation_sequences": 4}, 2.2, "hardly learned"),
    ],
)
def test_verdict_on_a_control(make_run, recipe_values, tmp_path, dataset, loss, verdict):
    """Brackets have no frames and are judged by the entropy alone; what is made of automata has theirs."""
    recipe_values["datasets"]["control"] = dataset
    recipe_values["phases"]["nca"]["dataset"] = "control"
    run = make_run()
    write_phase(run, "nca", "nca", {0: 2.8, 4: loss}, by_position=FRAMES)
    manifest = run.dataset("control").path / "validation.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"unigram_entropy_nats": 2.77}))
    (check,) = compare.learned(load_run(run.path))
    assert check.verdict == verdict
    assert check.early == (2.0 if "base" in dataset else None)
    curves.draw([load_run(run.path)], [check], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_without_a_manifest_the_verdict_is_not_known(make_run):
    (check,) = compare.learned(load_run(make_run().path))
    assert check.verdict.startswith("not known")


def test_a_bucket_of_one_scored_delimiter_is_no_frame(recipe_values):
    law = recipe_from_dict(recipe_values).datasets["automata"].law
    point = Validation(1, 1, 1.0, by_position=(0.001, 2.0, 1.0, 0.5), bucket_tokens=law.frame_tokens)
    assert compare.whole_frames(point, law) == [(1, 2.0), (2, 1.0)]


def test_shared_phases_are_checked_once(make_run, recipe_values, tmp_path):
    recipe_values["arms"]["nca"]["steps"][1]["start"]["carry"] = ["all"]
    run = make_run()
    values = yaml.safe_load(run.recipe.read_text())
    values["arms"]["attention"] = {"steps": [{"phase": "nca"}, {"phase": "text", "start": {"carry": ["attention"]}}]}
    run.recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    link_shared_phases(recipe_from_dict(values), run)
    write_phase(run, "attention", "text", {0: 5.0, 6: 3.0})
    loaded = load_run(run.path)
    assert len(compare.learned(loaded)) == 1
    row = next(row for row in compare.rows(loaded) if row.arm == "attention")
    assert row.ratio == 1.0 and row.total_tokens == 10 * TOKENS


def test_a_torn_last_line_is_left_out_and_other_damage_is_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = json.dumps({"type": "train", "iteration": 1, "consumed tokens": 1, "lm loss": 1.0})
    path.write_text(f'{good}\n{{"type": "tra')
    assert len(read_metrics(path)) == 1
    for bad in ('{"type": "tra', '{"type": "train", "iteration": 1, "consumed tokens": 1}',
                '{"type": "train", "iteration": "1", "consumed tokens": "1", "lm loss": 1}',
                '{"type": "validation", "iteration": 1, "consumed tokens": 1, "lm loss validation": "low"}'):
        path.write_text(f"{bad}\n{good}\n")
        with pytest.raises(DataError, match="line 1"):
            read_metrics(path)


def test_csv_holds_each_arm_and_seed(make_run):
    run = make_run(seeds=(0, 1), nca_final=(2.9, 3.2))
    assert main(["report", str(run.path), "--no-curves"]) == 0
    with open(run.report / "runs.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["arm"], line["seed"]) for line in lines] == [
        ("scratch", "0"),
        ("scratch", "1"),
        ("nca", "0"),
        ("nca", "1"),
    ]
    assert float(lines[2]["ratio"]) == pytest.approx(math.exp(-0.1))
    assert lines[0]["ratio"] == "" and lines[3]["speed_up"] == ""


def test_curves_are_a_png_of_some_size(make_run):
    pytest.importorskip("matplotlib")
    run = make_run(seeds=(0, 1), nca_final=(2.9, 3.2))
    assert main(["report", str(run.path)]) == 0
    content = (run.report / "curves.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1500 and height > 400
    assert "curves.png" in (run.report / "report.md").read_text()


def test_mean_curve_stands_where_all_seeds_were_validated():
    first, second = curve((0, 4.0), (10, 3.0), (20, 2.0)), curve((0, 6.0), (20, 4.0))
    assert curves.mean_curve([first, second]) == ([0, 20], [5.0, 3.0])


def test_without_matplotlib_the_message_names_the_extra(make_run, monkeypatch, capsys):
    run = make_run()
    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda name: None)
    assert main(["report", str(run.path)]) == 2
    assert "megatron_nca[log]" in capsys.readouterr().err
    assert not run.report.exists()


def test_several_runs_go_into_one_report(make_run, tmp_path, capsys):
    runs = [make_run("a"), make_run("b", nca_final=(3.2,))]
    folders = [str(run.path) for run in runs]
    assert main(["report", *folders, "--no-curves"]) == 2
    assert "--output" in capsys.readouterr().err
    assert main(["report", *folders, "--no-curves", "--output", str(tmp_path / "both")]) == 0
    assert capsys.readouterr().out.rstrip().splitlines()[-2:] == [
        "a: nca / scratch perplexity ratio: 0.905 (1 seed)",
        "b: nca / scratch perplexity ratio: 1.221 (1 seed)",
    ]
    assert "a / nca" in (tmp_path / "both" / "report.md").read_text()


def test_what_is_no_run_folder_and_what_is_no_report_are_left_alone(make_run, tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    precious = tmp_path / "precious"
    precious.mkdir()
    run = str(make_run().path)
    for name in ("thesis.tex", "report.md", "runs.csv"):
        (precious / name).write_text("x")
        assert main(["report", run, "--no-curves", "--output", str(precious)]) == 2
    assert sorted(os.listdir(precious)) == ["report.md", "runs.csv", "thesis.tex"]
    assert "thesis.tex" in capsys.readouterr().err


def test_an_old_report_is_replaced(make_run):
    run = make_run()
    assert main(["report", str(run.path), "--no-curves"]) == 0
    Path(run.report / "stale").write_text("x")
    assert main(["report", str(run.path), "--no-curves"]) == 0
    assert sorted(os.listdir(run.report)) == ["report.md", "runs.csv"]


def test_a_report_of_which_a_file_was_removed_is_made_again(make_run):
    run = make_run()
    for name in ("report.md", "runs.csv"):
        assert main(["report", str(run.path), "--no-curves"]) == 0
        Path(run.report / name).unlink()
    assert main(["report", str(run.path), "--no-curves"]) == 0
    assert sorted(os.listdir(run.report)) == ["report.md", "runs.csv"]
