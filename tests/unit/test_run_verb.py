"""`megatron-nca run`: what it skips, how it fails, and how it stops. The steps are small shell commands."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from megatron_nca import plan
from megatron_nca.__main__ import main
from megatron_nca.cli import run as verb
from megatron_nca.cli.arguments import duration
from megatron_nca.errors import NOT_FINISHED, ConfigError, LaunchError
from megatron_nca.plan import Step
from megatron_nca.run_dir import RunFolder


def shell(name: str, script: str, done: Path, **settings) -> Step:
    return Step(name, ("sh", "-c", script), done, **settings)


def test_walk_skips_what_is_whole_and_runs_the_rest(tmp_path, capfd):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("")
    steps = (shell("one", "exit 9", first), shell("two", f"echo hello; touch {second}", second))
    with verb.locked(RunFolder(tmp_path)) as lock:
        assert verb.walk(steps, lock) == 0
    output = capfd.readouterr().out
    assert "[1/2] one (already done)" in output
    assert "[2/2] two: done in" in output
    assert "hello" in output


def test_a_failing_step_is_named_with_exit_code_and_log(tmp_path):
    step = shell("text scratch seed0: train", "exit 7", tmp_path / "done", log=tmp_path / "train.log")
    with verb.locked(RunFolder(tmp_path)) as lock, pytest.raises(LaunchError) as error:
        verb.walk((step,), lock)
    message = str(error.value)
    assert "text scratch seed0: train" in message and "exit code 7" in message and "train.log" in message


@pytest.mark.parametrize(("script", "code", "cure"), [("exit 2", 2, "mend"), ("exit 1", 1, "go on"),
                                                      ("kill -9 $$", 1, "go on")])
def test_only_a_users_error_ends_as_one(tmp_path, script, code, cure):
    with verb.locked(RunFolder(tmp_path)) as lock, pytest.raises(LaunchError, match=cure) as error:
        verb.walk((shell("x", script, tmp_path / "done"),), lock)
    assert error.value.exit_code == code


def test_success_without_the_done_record_is_a_failure(tmp_path):
    with verb.locked(RunFolder(tmp_path)) as lock, pytest.raises(LaunchError, match="left no whole"):
        verb.walk((shell("x", "true", tmp_path / "done"),), lock)


def test_a_program_that_is_not_there(tmp_path):
    step = Step("x", ("no-such-program-anywhere",), tmp_path / "done")
    with verb.locked(RunFolder(tmp_path)) as lock, pytest.raises(LaunchError, match="could not be started"):
        verb.walk((step,), lock)


@pytest.mark.parametrize(("given", "world_size", "expected"), [(None, 2, "4"), (None, 16, "1"), ("3", 2, "3")])
def test_threads_are_shared_among_the_processes(tmp_path, monkeypatch, given, world_size, expected):
    monkeypatch.setattr(plan, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    done = tmp_path / "done"
    step = shell("x", f'printf %s "$OMP_NUM_THREADS" > {done}', done, world_size=world_size)
    with verb.locked(RunFolder(tmp_path)) as lock:
        verb.walk((step,), lock)
    assert done.read_text() == expected


def test_two_walkers_do_not_meet(tmp_path):
    with (
        verb.locked(RunFolder(tmp_path)),
        pytest.raises(ConfigError, match="at work there"),
        verb.locked(RunFolder(tmp_path)),
    ):
        pass


WALKER = """
import sys
from pathlib import Path
from megatron_nca.cli import run as verb
from megatron_nca.cli.arguments import duration
from megatron_nca.plan import Step
from megatron_nca.run_dir import RunFolder
folder = Path(sys.argv[1])
with verb.locked(RunFolder(folder)) as lock:
    sys.exit(verb.walk((Step("x", ("sh", "-c", sys.argv[2]), folder / "done"),), lock))
"""


def begin(folder: Path, script: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WALKER, str(folder), script]
    # A shell that runs the tests in its background has them ignore SIGINT, and children would inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    walker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed)
    wait_for(folder / "started")
    return walker


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_is_forwarded_and_the_child_is_waited_for(tmp_path, number):
    heed = f"trap 'touch {tmp_path}/told; exit 0' TERM INT USR2"
    script = f"{heed}; touch {tmp_path}/started; while :; do sleep 0.05; done"
    walker = begin(tmp_path, script)
    walker.send_signal(number)
    output, _ = walker.communicate(timeout=20)
    assert walker.returncode == 128 + number
    assert (tmp_path / "told").exists()
    assert "stopped by" in output


def test_a_child_that_stopped_in_good_order(tmp_path, capfd):
    with verb.locked(RunFolder(tmp_path)) as lock:
        assert verb.walk((shell("x", "exit 75", tmp_path / "done"),), lock) == NOT_FINISHED == 75
    assert "the same command goes on" in capfd.readouterr().out


def test_time_is_up(tmp_path, capfd):
    """While a step is at work that cannot stop in good order, and before one is begun."""
    steps = (shell("x", "sleep 60", tmp_path / "done"),)
    with verb.locked(RunFolder(tmp_path)) as lock:
        assert verb.walk(steps, lock, time.time() + 0.5) == NOT_FINISHED
        assert verb.walk(steps, lock, time.time()) == NOT_FINISHED
    said = capfd.readouterr().out
    assert "ended by the time limit" in said and "not begun" in said


def test_trainings_are_given_flags_that_are_no_part_of_a_recipe(tmp_path, capfd):
    step = shell("x", 'echo "$@"; exit 75', tmp_path / "done", trains=True)
    step = replace(step, command=(*step.command, "sh"))
    with verb.locked(RunFolder(tmp_path)) as lock:
        assert verb.walk((step,), lock, time.time() + 100) == NOT_FINISHED
    given = capfd.readouterr().out
    assert "\n--time-limit 100\n" in given or "\n--time-limit 99\n" in given


@pytest.mark.parametrize(("text", "seconds"), [("3h50m", 13800), ("90", 90), ("1d1s", 86401), ("2.5s", 2.5)])
def test_durations(text, seconds):
    assert duration(text) == seconds


def test_what_is_no_duration_is_refused(tmp_path, capsys):
    for words in (["--time-limit", "soon"], ["--time-limit", ""], ["--watchdog", "1s"]):
        with pytest.raises(SystemExit, match="2"):
            main(["run", "r.yaml", "--run-dir", str(tmp_path / "x"), *words])
        assert "Cure" in capsys.readouterr().err


def test_a_second_signal_kills_a_child_that_does_not_listen(tmp_path):
    script = f"trap '' TERM; echo $$ > {tmp_path}/pid; touch {tmp_path}/started; while :; do sleep 0.05; done"
    walker = begin(tmp_path, script)
    walker.terminate()
    time.sleep(0.5)
    assert walker.poll() is None
    walker.terminate()
    assert walker.wait(timeout=20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def write_recipe(path: Path, values: dict) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_dry_run_prints_all_commands_and_writes_nothing(tmp_path, recipe_values, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_values)
    folder = tmp_path / "run with a space"
    assert main(["run", str(recipe), "--run-dir", str(folder), "--dry-run", "phases.text.iterations=12"]) == 0
    output = capsys.readouterr().out
    assert "[15/15] report (to do)" in output
    assert f"--run-dir '{folder}'" in output
    assert f"phase text: {12 * 2 * 64:,} tokens" in output
    body = 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert f"{body + 2 * 384 * 32:,} parameters, {body:,} of them in layers and final norm" in output
    assert not folder.exists()


def test_a_reader_that_ends_early_is_no_error(tmp_path, recipe_values):
    words = [write_recipe(tmp_path / "recipe.yaml", recipe_values), "--run-dir", tmp_path / "x", "--dry-run"]
    command = [sys.executable, "-m", "megatron_nca", "run", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 141
    process.stderr.close()


def test_a_connection_that_breaks_is_no_reader_that_ends(monkeypatch, tmp_path):
    def broken(arguments):
        raise BrokenPipeError

    monkeypatch.setattr(verb, "run", broken)
    with open(tmp_path / "out", "w") as file, monkeypatch.context() as context, pytest.raises(BrokenPipeError):
        context.setattr(sys, "stdout", file)
        main(["run", "recipe.yaml", "--run-dir", "x"])


def test_overrides_may_stand_on_either_side_of_the_options(tmp_path, recipe_values, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_values)
    words = [str(recipe), "phases.text.iterations=12", "--dry-run", "--run-dir", str(tmp_path / "x"), "seeds=[0, 1]"]
    assert main(["run", *words]) == 0
    output = capsys.readouterr().out
    assert f"phase text: {12 * 2 * 64:,} tokens" in output
    assert "text scratch seed1: train" in output


def test_words_after_options_that_are_no_settings(tmp_path, recipe_values, capsys):
    words = ["run", str(write_recipe(tmp_path / "recipe.yaml", recipe_values)), "--run-dir", str(tmp_path / "x")]
    assert main([*words, "seeds"]) == 2
    assert "override 'seeds': expected KEY.KEY=VALUE" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*words, "--dry-runs", "3"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("usage: megatron-nca run "), said
    assert said.endswith("megatron-nca run: error: unrecognized arguments: --dry-runs\n")


def test_a_dry_run_warns_of_data_that_are_not_there(tmp_path, recipe_values, capsys):
    words = [str(write_recipe(tmp_path / "recipe.yaml", recipe_values)), "--run-dir", str(tmp_path / "x"), "--dry-run"]
    local = str(plan.DATA_TOOLS.parent / "slurm" / "clusters" / "local.yaml")
    for words_of_verb in (["run"], ["submit", "--cluster", local]):
        assert main([*words_of_verb, *words, f"datasets.text.input={tmp_path}/none.jsonl"]) == 0
        said = f"warning: datasets.text.input = '{tmp_path}/none.jsonl': this file does not exist. Cure: "
        assert said in capsys.readouterr().out.splitlines()[-1]


def test_user_errors_end_with_2_and_one_message(tmp_path, recipe_values, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_values)
    assert main(["run", str(recipe), "--run-dir", str(tmp_path / "x"), "phases.txt.iterations=1"]) == 2
    assert main(["run", str(recipe), "--run-dir", str(tmp_path / "x"), "phases.text.iteration=1"]) == 2
    errors = capsys.readouterr().err
    assert "iterations" in errors and "Traceback" not in errors
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("verb", [["run"], ["submit", "--cluster", "c.yaml"], ["train", "--phase", "nca"]])
def test_a_run_folder_that_cannot_be_one_is_refused_before_all_else(tmp_path, capsys, verb):
    file = tmp_path / "file"
    file.touch()
    for path, reason in ((file, "is a file"), (file / "run", "is a file"), ("", "a variable may not be set")):
        with pytest.raises(SystemExit, match="2"):
            main([*verb, "recipe.yaml", "--run-dir", str(path)])
        assert reason in capsys.readouterr().err


def test_the_whole_walk_freezes_records_and_links(tmp_path, recipe_values, monkeypatch, capfd):
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_values)
    run = RunFolder(tmp_path / "run")
    done = tmp_path / "one"
    monkeypatch.setattr(plan, "steps", lambda recipe, folder: (shell("one", f"touch {done}", done),))
    assert main(["run", str(recipe), "--run-dir", str(run.path)]) == 0
    assert main(["run", str(run.recipe), "--run-dir", str(run.path)]) == 0
    assert "[1/1] one (already done)" in capfd.readouterr().out
    assert run.source.read_text().startswith("megatron_nca ")
    assert run.phase("attention", 0, "nca").path.is_symlink()
    assert main(["run", str(recipe), "--run-dir", str(run.path), "seeds=[3]"]) == 2
    assert "seeds: [0] before, [3] now" in capfd.readouterr().err


def test_code_that_changed_between_two_walks_is_recorded(tmp_path, capsys):
    run = RunFolder(tmp_path)
    plan.record_source(run)
    first = run.source.read_text()
    plan.record_source(run)
    assert run.source.read_text() == first
    run.source.write_text("megatron_nca 0.0.0\nother code\n")
    plan.record_source(run)
    text = run.source.read_text()
    assert text.startswith("megatron_nca 0.0.0") and text.endswith(first)
    assert "the code has changed" in capsys.readouterr().out


def test_a_copy_inside_another_checkout_is_not_taken_for_it(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    commit = ["commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(["git", "-C", str(tmp_path), *identity, *commit], check=True)
    place = tmp_path / "site-packages" / "megatron_nca"
    place.mkdir(parents=True)
    run = RunFolder(tmp_path / "run")
    monkeypatch.setattr(plan, "__file__", str(place / "plan.py"))
    plan.record_source(run)
    assert run.source.read_text().endswith("not a git checkout\n")


@pytest.mark.skipif(os.getuid() == 0 and shutil.which("setpriv") is None, reason="root may read everything")
def test_a_folder_that_is_shut_is_one_message(tmp_path):
    (tmp_path / "shut").mkdir(mode=0)
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all") if os.getuid() == 0 else ()
    command = [*bare, sys.executable, "-m", "megatron_nca", "status", str(tmp_path / "shut")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    recipe = tmp_path / "shut" / "recipe.yaml"
    assert ended.returncode == 2
    assert ended.stderr == (f"megatron-nca status: {recipe}: Permission denied. Cure: check its rights, and those of "
                            "the folders above it.\n")
