"""Inputs that data_tools/ refuses with one message before it works, and its own outputs, which it does not read."""

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from megatron_nca import files
from megatron_nca.data import given, stretches
from megatron_nca.data.encoders import SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.encoding import Preprocessing
from megatron_nca.data.pairs import Pairs
from megatron_nca.data.preprocess import preprocess
from megatron_nca.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/golden/tokenizers/sentencepiece.model"
TOKENIZER = TokenizerFiles(type=SENTENCEPIECE, model=MODEL)


def run(tool: str, *flags: object, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    flags = (*flags, "--tokenizer-type", SENTENCEPIECE, "--tokenizer-model", MODEL)
    return subprocess.run([*before, sys.executable, f"data_tools/{tool}.py", *map(str, flags)], capture_output=True,
                          text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def lines(number: int) -> bytes:
    return b"".join(json.dumps({"text": f"text {i}", "question": "q", "answer": f"a{i}"}).encode() + b"\n"
                    for i in range(number))


def test_plain_text_has_no_keys(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(3))
    (tmp_path / "b.txt").write_text("plain")
    paths = [tmp_path / "a.jsonl", tmp_path / "b.txt"]
    with pytest.raises(DataError, match=r"b\.txt: is plain text, .* --json-keys names 2\. Cure: "):
        Preprocessing(inputs=stretches.recognise(paths), tokenizer=TOKENIZER, json_keys=("text", "answer"))
    with pytest.raises(DataError, match=r"b\.txt: is plain text and has no keys of prompt and answer\. Cure: "):
        Pairs(inputs=tuple(paths), tokenizer=TOKENIZER, layout="gsm8k")


def test_a_tool_does_not_read_its_own_outputs(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines(200) + b"bad\n")
    (folder / "x.json").write_bytes(lines(5))
    flags = ("--input", folder, "--output-prefix", folder / "x", "--on-bad-line", "quarantine",
             "--hold-out", "validation=0.2")
    ended = run("preprocess_corpus", *flags)
    assert ended.returncode == 0 and "left out" not in ended.stderr.split("Processed")[0], ended.stderr
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"x_rejected.jsonl", "x_text_document.json", "x_validation_text_document.json"} < set(made)
    (folder / "x.parts/000000").mkdir(parents=True)
    (folder / "x.parts/000000/record.json").write_text("{}")
    (folder / ".x_text_document.json.123-abcd.tmp").write_text("{}")
    again = run("preprocess_corpus", *flags)
    assert again.returncode == 0 and "already whole" in again.stderr, again.stderr
    inputs = json.loads(made["x_text_document.json"])["origin"]["inputs"]
    assert [each["name"] for each in inputs] == ["a.jsonl", "x.json"]


def test_what_belongs_to_an_output_prefix(tmp_path):
    is_output = given.outputs_of(tmp_path / "x.y", [tmp_path / "elsewhere"])
    for name in ("x.y.parts", "x.y_text_document.bin", "x.y_test_text_document.json", "x.y_rejected.jsonl", "elsewhere",
                 "x.y_00001-of-00004_text_document.idx", "x.y_00001-of-00004.parts", ".x.y.parts.77-0a.tmp",
                 ".x.y_text_document.bin.77.tmp"):
        assert is_output(tmp_path / name), name
    for name in ("x.y.jsonl", "xzy.parts", "a_x.y_rejected.jsonl", "x.y_text.jsonl", "sub/x.y.parts"):
        assert not is_output(tmp_path / name), name


KINDS = {"a.jsonl": lambda content: content, "a.jsonl.gz": gzip.compress, "a.jsonl.zst": zstandard.compress,
         "a.txt": lambda content: content, "a.parquet": None}


def written(path: Path) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({key: ["x"] for key in ("text", "question", "answer")}), path)
    else:
        path.write_bytes(KINDS[path.name](lines(50)))
    return path


@pytest.mark.parametrize("name", KINDS)
def test_an_input_without_permission_is_named_when_it_is_read(tmp_path, monkeypatch, name):
    path = written(tmp_path / name)
    chosen = Preprocessing(inputs=stretches.recognise([path]), tokenizer=TOKENIZER)

    def refuses(*arguments, **others):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(files, "sha256", refuses)
    with pytest.raises(DataError, match=rf"^{path}: cannot be read \(Permission denied\)\. Cure: "):
        preprocess(chosen, tmp_path / "out")
    assert not list(tmp_path.glob("out_*"))
    for module, what in ((stretches, "open"), (gzip, "open"), (Path, "read_bytes"), (parquet, "ParquetFile"),
                         (stretches, "decompressed")):
        monkeypatch.setattr(module, what, refuses, raising=False)
    with pytest.raises(DataError, match=rf"^{path}: cannot be read \(Permission denied\)\. Cure: "):
        list(stretches.documents(next(stretches.cut(chosen.inputs, 1000)), ["text"]))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.skipif(os.getuid() == 0 and shutil.which("setpriv") is None, reason="root may read everything")
def test_an_input_without_permission_is_one_message(tmp_path, name):
    path = written(tmp_path / name)
    path.chmod(0)
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all") if os.getuid() == 0 else ()
    for tool, flags in (("preprocess_corpus", ("--workers", 2)), ("preprocess_pairs", ("--layout", "gsm8k"))):
        ended = run(tool, "--input", path, "--output-prefix", tmp_path / "out", *flags, before=bare)
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.startswith(f"{tool}.py: {path}: cannot be read (Permission denied). Cure: ")
        assert len(ended.stderr.splitlines()) == 1
