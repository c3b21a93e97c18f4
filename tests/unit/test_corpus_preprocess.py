"""data/preprocess.py: the same bytes from any number of workers, all or nothing after bad input."""

import dataclasses
import gzip
import json

import numpy as np
import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from megatron_nca.data import encoding, stretches, tokenizer, workers
from megatron_nca.data.encoders import SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.encoding import Preprocessing
from megatron_nca.data.indexed import IndexedReader, IndexedWriter
from megatron_nca.data.manifest import Manifest, part
from megatron_nca.data.parts import Parts
from megatron_nca.data.preprocess import preprocess
from megatron_nca.data.verify import verify
from megatron_nca.errors import DataError

RECORDS = [{"text": f"def f{i}(x):\n\treturn x  + {i}\n" * (i % 7 + 1), "title": f"f{i}"} for i in range(300)]
RECORDS[5]["text"] = RECORDS[123]["text"] = ""


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preprocess")
    write_jsonl(folder / "a.jsonl", RECORDS)
    tokenizer.save(tokenizer.train(folder / "a.jsonl", 300)[0], folder / "tok")
    return folder / "tok.model"


@pytest.fixture
def arguments(tmp_path, model_path):
    write_jsonl(tmp_path / "a.jsonl", RECORDS)
    return settings_of(tmp_path / "a.jsonl", model_path)


def settings_of(path, model, **others):
    inputs = stretches.recognise([path])
    return Preprocessing(inputs=inputs, tokenizer=TokenizerFiles(type=SENTENCEPIECE, model=model), **others)


def test_each_document_is_its_text_and_an_end(arguments, tmp_path):
    manifest = preprocess(arguments, tmp_path / "out")[0]
    reader = IndexedReader(tmp_path / "out_text_document")
    processor = tokenizer.load(arguments.tokenizer.model)
    texts = [record["text"] for record in RECORDS if record["text"]]
    assert len(reader) == manifest.documents == len(texts) == 298
    for document, text in zip((reader[i] for i in range(len(reader))), texts, strict=True):
        assert document[-1] == 1 and processor.decode(document[:-1].tolist()) == text
    assert (manifest.kind, manifest.vocab_size, manifest.num_tokens, manifest.trajectory) == ("corpus", 300, 300, None)
    assert manifest.origin["empty_documents"] == 2
    counts = np.bincount(np.concatenate([reader[i] for i in range(len(reader))]))
    shares = counts[counts > 0] / counts.sum()
    assert manifest.unigram_entropy_nats == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-12)
    assert "hashes and manifest agree" in verify(tmp_path / "out_text_document")


def test_workers_do_not_change_a_byte(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stretches, "SMALLEST", 1000)  # many batches, so that workers overtake each other
    arguments = dataclasses.replace(arguments, hold_out=(("test", 0.2),), deduplicate=True)
    for number in (1, 2):
        preprocess(arguments, tmp_path / f"out{number}", number, log_interval=100)
    for name in ("text_document", "test_text_document"):
        for ending in ("bin", "idx", "json"):
            one, two = ((tmp_path / f"out{number}_{name}.{ending}").read_bytes() for number in (1, 2))
            assert one == two
    assert capsys.readouterr().err.count("docs/s") == 2 * (300 // 100 + 1)


def test_several_keys_make_one_dataset_each(arguments, tmp_path):
    both = settings_of(arguments.inputs[0].path, arguments.tokenizer.model, json_keys=("text", "title"),
                       append_eod=False)
    text, title = preprocess(both, tmp_path / "out")
    assert (text.documents, title.documents) == (298, 300)
    assert 1 not in IndexedReader(tmp_path / "out_title_document")[0]
    assert text.origin["json_key"] == "text" and title.origin["json_key"] == "title"


def test_only_a_newline_ends_a_line(arguments, tmp_path):
    arguments.inputs[0].path.write_bytes(b'{"text": "a\xc2\x85\xe2\x80\xa8b",\r "n": 1}\r\n{"text":\x0d"c"}')
    preprocess(arguments, tmp_path / "out")
    processor, reader = tokenizer.load(arguments.tokenizer.model), IndexedReader(tmp_path / "out_text_document")
    assert [processor.decode(reader[i][:-1].tolist()) for i in range(len(reader))] == ["a\x85\u2028b", "c"]


def test_what_is_whole_is_left_and_what_differs_is_made_again(arguments, tmp_path, capsys):
    first = preprocess(arguments, tmp_path / "out")
    stamp = (tmp_path / "out_text_document.bin").stat().st_mtime_ns
    assert preprocess(arguments, tmp_path / "out") == first
    assert "already whole" in capsys.readouterr().err
    assert (tmp_path / "out_text_document.bin").stat().st_mtime_ns == stamp
    write_jsonl(arguments.inputs[0].path, RECORDS[:100])
    assert preprocess(arguments, tmp_path / "out")[0].documents == 99
    assert "it is replaced" in capsys.readouterr().err
    (tmp_path / "out_text_document.bin").write_bytes(b"")
    assert preprocess(arguments, tmp_path / "out")[0].documents == 99
    assert "It is made again now" in capsys.readouterr().err
    assert Manifest.load(tmp_path / "out_text_document").documents == 99


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("line", "what"), [("{", "is not JSON"), ('{"body": "x"}', "has no key 'text'")])
def test_a_bad_line_ends_all_and_leaves_nothing(arguments, tmp_path, monkeypatch, workers, line, what):
    monkeypatch.setattr(stretches, "SMALLEST", 1000)
    lines = arguments.inputs[0].path.read_text().splitlines()
    lines[200] = line
    arguments.inputs[0].path.write_text("\n".join(lines))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=rf"a\.jsonl:201: {what}"):
        preprocess(arguments, tmp_path / "out", workers)
    left = sorted(path for path in tmp_path.iterdir() if path.name != "out.parts")
    assert left == before, "nothing under a final name; the parts stay for the next run"


def test_other_bad_input_is_one_message(arguments, tmp_path):
    path, model = arguments.inputs[0].path, arguments.tokenizer.model
    for change, what in [({"path": tmp_path / "none.jsonl"}, "none.jsonl: is missing"),
                         ({"model": tmp_path / "none.model"}, "none.model: is missing"),
                         ({"model": path}, "is no sentencepiece model"),
                         ({"json_keys": ("text", "text")}, "names a key twice")]:
        with pytest.raises(DataError, match=what):
            preprocess(settings_of(**{"path": path, "model": model, **change}), tmp_path / "out")
    for values, what in [({"workers": 0}, "--workers"), ({"log_interval": 0}, "--log-interval")]:
        with pytest.raises(DataError, match=what):
            preprocess(arguments, tmp_path / "out", **values)
    path.write_text("")
    with pytest.raises(DataError, match="is empty"):
        preprocess(arguments, tmp_path / "out")
    path.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="every text of 'text' is empty"):
        preprocess(arguments, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "out.parts"}


def test_a_run_goes_on_with_the_parts_that_are_there(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(stretches, "SMALLEST", 1000)
    preprocess(arguments, tmp_path / "whole")
    encoded = []

    def until_the_fifth(settings, encoder, stretch, folder, real=encoding.encode_stretch):
        if len(encoded) == 5:
            raise KeyboardInterrupt
        encoded.append(stretch.number)
        return real(settings, encoder, stretch, folder)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(workers, "encode_stretch", until_the_fifth)
        preprocess(arguments, tmp_path / "out")
    assert encoded == [0, 1, 2, 3, 4]

    def must_be_new(settings, encoder, stretch, folder, real=encoding.encode_stretch):
        assert stretch.number not in encoded
        return real(settings, encoder, stretch, folder)

    monkeypatch.setattr(workers, "encode_stretch", must_be_new)
    preprocess(arguments, tmp_path / "out")
    same_bytes(tmp_path / "whole_text_document", tmp_path / "out_text_document")
    assert not (tmp_path / "out.parts").exists()


def test_a_dataset_of_other_settings_is_not_replaced_in_silence(arguments, tmp_path, capsys):
    asked = dataclasses.replace(arguments, json_keys=("text", "title"))
    preprocess(asked, tmp_path / "out")
    part(tmp_path / "out_text_document", "json").unlink()
    preprocess(dataclasses.replace(asked, append_eod=False), tmp_path / "out")
    assert f"{tmp_path}/out_title_document: was made from another input, tokenizer or setting; it is replaced" in (
        capsys.readouterr().err)


def test_parts_of_other_settings_are_not_used(arguments, tmp_path, capsys):
    with Parts([tmp_path / "out.parts"], lambda: {"other": 1}) as parts:
        parts.sign()
    (tmp_path / "out.parts/000000").mkdir()
    preprocess(arguments, tmp_path / "out")
    assert "they are removed" in capsys.readouterr().err


def test_parts_last_once_it_is_known_what_they_are_of(tmp_path):
    def folder_of_a_part(new):
        (new.new(0)).mkdir()
        return new.find(0)

    parts = Parts([tmp_path / "parts"], lambda: pytest.fail("it is not known yet"))
    assert folder_of_a_part(parts)
    parts.close()
    again = Parts([tmp_path / "parts"], lambda: {"of": 1})
    assert again.find(0) is None, "the first process had not known it when it ended"
    assert folder_of_a_part(again)
    new = Parts([tmp_path / "others"], lambda: {"of": 1})
    assert folder_of_a_part(new)
    new.sign()
    again.close()
    new.close()
    for parts in (Parts([tmp_path / name], lambda: {"of": 1}) for name in ("parts", "others")):
        with parts:
            assert parts.find(0)
            parts.remove()
    assert not list(tmp_path.iterdir())


def same_bytes(one, other):
    for ending in ("bin", "idx"):
        assert part(one, ending).read_bytes() == part(other, ending).read_bytes()


@pytest.mark.parametrize("policy", ["skip", "quarantine"])
def test_bad_lines_are_left_out_and_counted(arguments, tmp_path, capsys, policy):
    path, model = arguments.inputs[0].path, arguments.tokenizer.model
    good = path.read_bytes().splitlines(keepends=True)
    bad = [b"{\n", b'{"text": 5}\n', b'{"text": "\xff"}\n', b'{"text": "\\ud800"}\n', b"[1]\n", b"\n"]
    path.write_bytes(b"".join([*good[:100], *bad[:3], *good[100:], *bad[3:]]))
    manifest = preprocess(settings_of(path, model, on_bad_line=policy), tmp_path / "out")[0]
    assert manifest.origin["left_out_lines"] == len(bad) and manifest.documents == 298
    assert manifest.origin["left_out_by_reason"] == {
        "half a surrogate pair": 1, "not JSON": 2, "not UTF-8": 1, "not an object": 1, "not text": 1}
    assert f"{len(bad)} bad lines were left out, the first: {path}:101: is not JSON" in capsys.readouterr().err
    rejected = tmp_path / "out_rejected.jsonl"
    assert rejected.exists() == (policy == "quarantine")
    if policy == "quarantine":
        lines = [json.loads(line) for line in rejected.read_text().splitlines()]
        assert [line["raw"].encode("utf-8", "surrogateescape")[:1] for line in lines] == [b[:1] for b in bad]
        assert lines[3]["reason"].startswith(f"{path}:304: ")
    path.write_bytes(b"".join(good))
    preprocess(arguments, tmp_path / "clean")
    same_bytes(tmp_path / "out_text_document", tmp_path / "clean_text_document")


def test_a_run_that_dies_before_its_end_is_finished_by_the_next(arguments, tmp_path, monkeypatch, capsys):
    path = arguments.inputs[0].path
    path.write_bytes(path.read_bytes() + b"{\n")
    asked = settings_of(path, arguments.tokenizer.model, on_bad_line="quarantine")
    rejected, folder = tmp_path / "out_rejected.jsonl", tmp_path / "out.parts"

    def dies(*_):
        raise KeyboardInterrupt

    for place, name in [(IndexedWriter, "finish"), (Parts, "remove")]:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(place, name, dies)
            preprocess(asked, tmp_path / "out")
        assert rejected.read_bytes().count(b"\n") == 1 and folder.exists()
    capsys.readouterr()
    preprocess(asked, tmp_path / "out")
    assert "already whole" in capsys.readouterr().err and not folder.exists()
    content = rejected.read_bytes()
    for change in (rejected.unlink, lambda: rejected.write_text("")):
        change()
        preprocess(asked, tmp_path / "out")
        err = capsys.readouterr().err
        assert "already whole" not in err and f"{rejected}: is not there or holds other lines" in err
        assert rejected.read_bytes() == content


def test_where_all_lines_are_bad_they_are_counted_by_reason(arguments, tmp_path):
    path = arguments.inputs[0].path
    path.write_bytes(b'{\n{"text": 5}\n[\n')
    asked = settings_of(path, arguments.tokenizer.model, on_bad_line="skip")
    message = rf"all 3 lines were bad \(not JSON: 2; not text: 1\)\. Cure: begin with the first\. {path}:1: is"
    for hold_out in ((), (("test", 0.5),)):
        with pytest.raises(DataError, match=message):
            preprocess(dataclasses.replace(asked, hold_out=hold_out), tmp_path / "out")
    path.write_bytes(b'{\n{"text": ""}\n')
    with pytest.raises(DataError, match=r"every text of 'text' is empty, and 1 of 2 lines were bad \(not JSON: 1\)"):
        preprocess(asked, tmp_path / "out")
    assert not list(tmp_path.glob("out_*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_compressed_and_several_files_give_the_same_documents(arguments, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(stretches, "SMALLEST", 1000)
    path, model = arguments.inputs[0].path, arguments.tokenizer.model
    preprocess(arguments, tmp_path / "plain")
    lines = path.read_bytes().splitlines(keepends=True)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[100:200])))
    frames = [zstandard.compress(b"".join(lines[at : at + 40])) for at in range(200, 300, 40)]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    path.write_bytes(b"".join(lines[:100]))
    inputs = stretches.recognise([path, tmp_path / "b.jsonl.gz", tmp_path / "c.jsonl.zst"])
    preprocess(dataclasses.replace(settings_of(path, model), inputs=inputs), tmp_path / "out", workers)
    same_bytes(tmp_path / "plain_text_document", tmp_path / "out_text_document")


def test_a_compressed_file_that_is_cut_off_is_refused(arguments, tmp_path):
    for name, content in (("b.jsonl.gz", gzip.compress(arguments.inputs[0].path.read_bytes())),
                          ("c.jsonl.zst", zstandard.compress(arguments.inputs[0].path.read_bytes()))):
        (tmp_path / name).write_bytes(content[:-50])
        with pytest.raises(DataError, match=f"{name}: is cut off or damaged"):
            preprocess(settings_of(tmp_path / name, arguments.tokenizer.model), tmp_path / "out")


def test_a_source_tree_is_a_document_a_file(arguments, tmp_path):
    tree = tmp_path / "tree"
    texts = {"b/two.py": "y = 2\n", "a.py": "x = 1\n", "a.txt": "not this"}
    for name, text in texts.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    preprocess(dataclasses.replace(arguments, inputs=stretches.recognise([tree], [".py"])), tmp_path / "out")
    reader, processor = IndexedReader(tmp_path / "out_text_document"), tokenizer.load(arguments.tokenizer.model)
    assert [processor.decode(reader[i][:-1].tolist()) for i in range(len(reader))] == ["x = 1\n", "y = 2\n"]


def test_a_parquet_file_is_a_document_a_row(arguments, tmp_path):
    path, texts = tmp_path / "a.parquet", [record["text"] for record in RECORDS]
    parquet.write_table(pyarrow.table({"text": texts, "n": range(len(texts))}), path, row_group_size=70)
    preprocess(dataclasses.replace(arguments, inputs=stretches.recognise([path])), tmp_path / "out", 2)
    preprocess(arguments, tmp_path / "jsonl")
    same_bytes(tmp_path / "out_text_document", tmp_path / "jsonl_text_document")
    for key, what in (("n", "the column 'n' is int64, not text"), ("body", "the column 'body' is not there")):
        with pytest.raises(DataError, match=what):
            preprocess(settings_of(path, arguments.tokenizer.model, json_keys=(key,)), tmp_path / "other")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="is no Parquet file, or cut off"):
        preprocess(settings_of(path, arguments.tokenizer.model), tmp_path / "third")


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=30), size=st.integers(1, 60), ended=st.booleans(),
       longest=st.integers(12, 60), name=st.sampled_from(["a.jsonl", "a.jsonl.gz"]))
def test_stretches_hold_every_line_once_and_name_those_that_are_too_long(tmp_path_factory, sizes, size, ended, longest,
                                                                        name):
    path = tmp_path_factory.mktemp("stretches") / name
    lines = [json.dumps({"text": "x" * n}).encode() for n in sizes]
    content = b"\n".join(lines) + b"\n" * ended
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    cuts = list(stretches.cut(stretches.recognise([path]), size, longest))
    assert [cut.number for cut in cuts] == list(range(len(cuts)))
    found = [document for cut in cuts for document in stretches.documents(cut, ["text"], longest)]
    for number, (line, n, document) in enumerate(zip(lines, sizes, found, strict=True), 1):
        if len(line) > longest:
            assert document.reason.startswith(f"{path}:{number}: the line is longer than {longest} bytes")
        else:
            assert document == ["x" * n]


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet"])
def test_a_document_that_is_too_long_is_a_bad_line(arguments, tmp_path, kind):
    path, texts = tmp_path / f"a.{kind}", ["x" * 10, "\u00e9" * 40]  # fewer letters than bytes
    if kind == "parquet":
        parquet.write_table(pyarrow.table({"text": texts}), path)
    else:
        path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
                        if kind == "jsonl" else texts[1], encoding="utf-8")
    settings = settings_of(path, arguments.tokenizer.model, longest_document=60)
    with pytest.raises(DataError, match=r"is longer than 60 bytes\. Cure: take it out\. .* has --longest-document"):
        preprocess(settings, tmp_path / "out")
    if kind != "txt":
        manifest = preprocess(dataclasses.replace(settings, on_bad_line="skip"), tmp_path / "out")[0]
        assert (manifest.documents, manifest.origin["left_out_by_reason"]) == (1, {"too long": 1})
    with pytest.raises(DataError, match="--longest-document = 0: must be positive"):
        dataclasses.replace(settings, longest_document=0)


@pytest.mark.long
def test_a_line_of_a_gibibyte_is_bad_and_the_next_is_read(arguments, tmp_path):
    path = arguments.inputs[0].path
    good = b'{"text": "good"}\n'
    with open(path, "wb") as file:
        file.write(good + b'{"text": "')
        file.seek(1 << 30, 1)
        file.write(b'"}\n' + good)
    with pytest.raises(DataError, match=r"a\.jsonl:2: the line is longer than 67,108,864 bytes"):
        preprocess(settings_of(path, arguments.tokenizer.model), tmp_path / "out")
    manifest = preprocess(settings_of(path, arguments.tokenizer.model, on_bad_line="skip"), tmp_path / "out")[0]
    assert (manifest.documents, manifest.origin["left_out_lines"]) == (2, 1)
