"""data_tools/: the programs as a user and the plan call them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ["stdlib_corpus", "train_tokenizer", "preprocess_corpus", "merge_datasets", "verify_dataset", "show_dataset",
         "prepare_cache", "debian_corpus", "preprocess_pairs"]


def start(tool, *arguments, **kwargs):
    return subprocess.Popen([sys.executable, str(ROOT / "data_tools" / f"{tool}.py"), *map(str, arguments)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": str(ROOT)}, **kwargs)


def call(tool, *arguments, code=0, **kwargs):
    """Run a tool, require its exit code and no traceback; returns (stdout, stderr)."""
    process = start(tool, *arguments, **kwargs)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, (out, err)
    assert "Traceback" not in err
    return out, err


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """What the plan runs for a corpus dataset, on a small JSONL file."""
    folder = tmp_path_factory.mktemp("tools")
    records = [{"text": f"def f{i}(x):\n\treturn x  + {i}  # é\n" * (i % 9 + 1)} for i in range(400)]
    (folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    call("stdlib_corpus", "--input", folder / "in.jsonl", "--output-dir", folder / "data")
    data = folder / "data"
    call("train_tokenizer", "--input", data / "train.jsonl", "--model-prefix", data / "tokenizer", "--vocab-size", 300)
    for part in ("train", "validation"):
        call("preprocess_corpus", *flags(data, part))
    return data


def flags(data, part, workers=1):
    return ["--input", data / f"{part}.jsonl", "--output-prefix", data / part,
            "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", data / "tokenizer.model", "--append-eod",
            "--workers", workers]


def test_the_plans_commands_make_the_run_folders_files(corpus):
    from megatron_nca.config.recipe import Dataset
    from megatron_nca.run_dir import DatasetFolder

    folder, dataset = DatasetFolder(corpus), Dataset(source="corpus", input="x", vocab_size=300)
    assert folder.tokenizer.is_file()
    for part in ("train", "validation"):
        assert folder.jsonl(part).is_file()
        for ending in ("bin", "idx", "json"):
            assert Path(f"{folder.prefix(part, dataset)}.{ending}").is_file()
    assert not [path for path in corpus.iterdir() if path.name.startswith(".")]


def test_a_second_call_says_that_all_is_there(corpus):
    out, err = call("preprocess_corpus", *flags(corpus, "train", workers=2))
    assert "already whole" in err and "unigram entropy" in out


def test_the_standard_library_is_collected(tmp_path):
    out, _ = call("stdlib_corpus", "--output-dir", tmp_path)
    assert "not UTF-8" in out and (tmp_path / "train.jsonl").stat().st_size > 5_000_000


def test_verify_accepts_the_whole_and_names_the_broken(corpus, tmp_path):
    out, _ = call("verify_dataset", corpus / "train_text_document", corpus / "validation_text_document.bin")
    assert out.count("Structure, ranges, hashes and manifest agree") == 2
    for ending in ("bin", "idx"):
        (tmp_path / f"foreign.{ending}").write_bytes((corpus / f"train_text_document.{ending}").read_bytes())
    out, _ = call("verify_dataset", tmp_path / "foreign")
    assert "no manifest" in out
    for ending in ("bin", "idx", "json"):
        content = bytearray((corpus / f"train_text_document.{ending}").read_bytes())
        if ending == "bin":
            content[1001] ^= 1  # another token, in range or not
        (tmp_path / f"broken.{ending}").write_bytes(content)
    out, err = call("verify_dataset", tmp_path / "broken", corpus / "train_text_document", code=2)
    assert "broken" in err and "1 of 2 datasets are not sound" in err and "agree" in out


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_is_one_message_and_exit_2(corpus, tmp_path, workers):
    for name in ("train.jsonl", "tokenizer.model"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write("{oops\n")
    lines = len((tmp_path / "train.jsonl").read_text().splitlines())
    _, err = call("preprocess_corpus", *flags(tmp_path, "train", workers), code=2)
    assert f"train.jsonl:{lines}: is not JSON" in err and err.count("\n") == 1
    assert names(tmp_path) == ["tokenizer.model", "train.jsonl", "train.parts"]


def test_other_user_errors_are_one_message_and_exit_2(corpus, tmp_path):
    for tool, arguments in [
        ("stdlib_corpus", ["--output-dir", tmp_path / "d", "--input", tmp_path / "none.jsonl"]),
        ("stdlib_corpus", ["--output-dir", tmp_path / "d", "--held-out-share", "2"]),
        ("train_tokenizer", ["--input", corpus / "train.jsonl", "--model-prefix", tmp_path / "t", "--vocab-size", 100]),
        ("train_tokenizer", ["--input", tmp_path / "none", "--model-prefix", tmp_path / "t", "--vocab-size", "300"]),
        ("verify_dataset", [tmp_path / "none"]),
    ]:
        _, err = call(tool, *arguments, code=2)
        assert "Cure:" in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_datasets_are_merged_by_any_of_their_names(corpus, tmp_path):
    out, _ = call("merge_datasets", corpus / "train_text_document.json", corpus / "validation_text_document.idx",
                  "--output-prefix", tmp_path / "all.v1.bin")
    assert out.startswith(f"{tmp_path / 'all.v1'}: ") and names(tmp_path) == ["all.v1.bin", "all.v1.idx", "all.v1.json"]


def test_a_users_folder_is_not_replaced_by_a_file(corpus, tmp_path):
    quarantine = [*flags(corpus, "train"), "--on-bad-line", "quarantine", "--output-prefix", tmp_path / "q"]
    for folder, tool, arguments in [
        ("figures", "show_dataset", [corpus / "train_text_document", "--picture", tmp_path / "figures"]),
        ("t.model", "train_tokenizer", ["--input", corpus / "train.jsonl", "--model-prefix", tmp_path / "t",
                                        "--vocab-size", 300]),
        ("validation.jsonl", "stdlib_corpus", ["--output-dir", tmp_path]),
        ("q_rejected.jsonl", "preprocess_corpus", quarantine),
    ]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine").write_text("mine")
        _, err = call(tool, *arguments, code=2)
        assert f"{tmp_path / folder}: is a folder. Cure: name a file, or move it away.\n" in err
        assert (tmp_path / folder / "mine").read_text() == "mine"
    assert names(tmp_path) == ["figures", "q_rejected.jsonl", "t.model", "validation.jsonl"]


def test_a_name_that_is_no_utf8_is_recorded(corpus, tmp_path):
    source = Path(os.fsdecode(bytes(tmp_path) + b"/bad\xff.jsonl"))
    source.write_bytes((corpus / "train.jsonl").read_bytes())
    prefix = Path(os.fsdecode(bytes(tmp_path) + b"/out\xff"))
    arguments = [*flags(corpus, "train"), "--input", source, "--output-prefix", prefix]
    out, _ = call("preprocess_corpus", *arguments, errors="surrogateescape")
    assert f"{prefix}_text_document: " in out
    said = json.loads(Path(f"{prefix}_text_document.json").read_text(encoding="utf-8"))
    assert said["origin"]["inputs"][0]["name"] == source.name
    _, err = call("preprocess_corpus", *arguments, errors="surrogateescape")
    assert "already whole" in err
    call("verify_dataset", f"{prefix}_text_document", errors="surrogateescape")
    source.write_text("".join(json.dumps({"question": f"is {n}", "answer": "yes"}) + "\n" for n in range(50)))
    call("preprocess_pairs", "--input", source, "--layout", "gsm8k", "--output-prefix", tmp_path / "pairs",
         *flags(corpus, "train")[4:8])
    assert json.loads((tmp_path / "pairs_loss_mask.json").read_bytes())["origin"]["inputs"][0]["name"] == source.name


def test_documentation_whose_names_are_no_utf8_is_collected(tmp_path):
    folder = os.fsencode(tmp_path / "usr/share/doc")
    os.makedirs(folder)
    for number in range(20):
        with open(folder + b"/\xff%d.txt" % number, "w") as file:
            file.write(f"text {number}")
    call("debian_corpus", "--root", tmp_path / "usr", "--output-dir", tmp_path / "out", "--held-out-share", "0.3")
    records = [json.loads(line) for part in ("train", "validation")
               for line in (tmp_path / f"out/{part}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(os.fsencode(record["path"]) for record in records) == sorted(
        b"share/doc/\xff%d.txt" % number for number in range(20))


def test_a_reader_that_ends_early_is_no_error(corpus):
    process = start("show_dataset", corpus / "train_text_document")
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 141
    process.stderr.close()


@pytest.mark.parametrize("length", [225, 240, 300])
def test_a_name_that_is_too_long_is_one_message(corpus, tmp_path, length):
    long = tmp_path / ("x" * length)
    for tool, arguments in [("preprocess_corpus", [*flags(corpus, "train"), "--output-prefix", long]),
                            ("merge_datasets", [corpus / f"{part}_text_document" for part in ("train", "validation")]
                             + ["--output-prefix", long]),
                            ("show_dataset", [long]), ("verify_dataset", [long])]:
        if length == 300 or tool == "preprocess_corpus" or (tool == "merge_datasets" and length == 240):
            _, err = call(tool, *arguments, code=2)
            said = "(its name is|File name) (too long|longer than 233).*Cure: "
            assert re.search(f"{tool}.py: {tmp_path}/xx.*{said}", err)
            assert err.count("\n") == 1
    assert names(tmp_path) == []


def test_flags_that_cannot_be_are_named_as_they_were_given(corpus, tmp_path):
    for given, message in [
        (["--hold-out", "validation"], r"argument --hold-out: validation: is no part .* Cure: .* validation=0\.01"),
        (["--hold-out", "test=x"], r"argument --hold-out: test=x: is no part with .* Cure: for example test=0\.01"),
        (["--output-prefix", "out/"], r"argument --output-prefix: 'out/' is a folder.* Cure: .* example out/train"),
        (["--output-prefix=~/out"], r"argument --output-prefix: '~/out' has a ~ that the shell left .* Cure: put"),
        (["--vocab-size", 10], r"--vocab-size = 10: SentencePieceTokenizer has no use for it.* Cure: leave it out"),
        (["--tiktoken-special-tokens", "a"], r"--tiktoken-special-tokens = \['a'\]: .* Cure: leave it out"),
    ]:
        _, err = call("preprocess_corpus", *flags(corpus, "train"), "--output-prefix", tmp_path / "out", *given, code=2)
        assert re.search(message, err)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("after_a_part", [False, True])
def test_a_killed_worker_ends_the_run_and_the_next_goes_on(corpus, tmp_path, after_a_part):
    (tmp_path / "tokenizer.model").write_bytes((corpus / "tokenizer.model").read_bytes())
    line = json.dumps({"text": "x = [1, 2, 3]\n" * 20_000}) + "\n"
    (tmp_path / "train.jsonl").write_text(line * 600)
    process = start("preprocess_corpus", *flags(tmp_path, "train", 2))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not ((workers := spawned(process.pid)) and (
            not after_a_part or list(tmp_path.glob("train.parts/000*")))):
        time.sleep(0.005)
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "a worker process died" in err
    assert names(tmp_path) == ["tokenizer.model", "train.jsonl", "train.parts"]
    if after_a_part:
        out, _ = call("preprocess_corpus", *flags(tmp_path, "train", 2))
        assert "600 documents" in out and "train.parts" not in names(tmp_path)


def spawned(pid):
    """Worker processes of `pid`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            pass
    return found


def test_a_full_disk_is_one_message(corpus, tmp_path):
    import resource

    (tmp_path / "tokenizer.model").write_bytes((corpus / "tokenizer.model").read_bytes())
    (tmp_path / "train.jsonl").write_text((json.dumps({"text": "x = [1, 2, 3]\n" * 2_000}) + "\n") * 100)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # noqa: E731
    _, err = call("preprocess_corpus", *flags(tmp_path, "train"), code=2, preexec_fn=limit)
    assert "train.parts/000000: cannot be written" in err
    _, err = call("train_tokenizer", "--input", corpus / "train.jsonl", "--model-prefix", tmp_path / "t",
                  "--vocab-size", 300, code=2, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)))
    assert "cannot be written" in err
    assert names(tmp_path) == ["tokenizer.model", "train.jsonl", "train.parts"]


@pytest.mark.parametrize("tool", TOOLS)
def test_help_shows_an_example(tool):
    out, _ = call(tool, "--help")
    assert "Example" in out and f"python data_tools/{tool}.py" in out
