"""data/preprocess.py: the same bytes from any number of workers, all or nothing after bad input."""

import json

import numpy as np
import pytest

from megatron_nca.data import preprocess as module
from megatron_nca.data import tokenizer
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.manifest import Manifest
from megatron_nca.data.preprocess import Preprocessing, preprocess
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
    return Preprocessing(input=tmp_path / "a.jsonl", tokenizer_model=model_path)


def test_each_document_is_its_text_and_an_end(arguments, tmp_path):
    manifest = preprocess(arguments, tmp_path / "out")[0]
    reader = IndexedReader(tmp_path / "out_text_document")
    processor = tokenizer.load(arguments.tokenizer_model)
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
    monkeypatch.setattr(module, "BATCH_BYTES", 1000)  # many batches, so that workers overtake each other
    for workers in (1, 2):
        preprocess(arguments, tmp_path / f"out{workers}", workers, log_interval=100)
    for ending in ("bin", "idx", "json"):
        one, two = ((tmp_path / f"out{workers}_text_document.{ending}").read_bytes() for workers in (1, 2))
        assert one == two
    assert capsys.readouterr().err.count("docs/s") == 2 * (300 // 100 + 1)


def test_several_keys_make_one_dataset_each(arguments, tmp_path):
    settings = Preprocessing(input=arguments.input, tokenizer_model=arguments.tokenizer_model,
                             json_keys=("text", "title"), append_eod=False)
    text, title = preprocess(settings, tmp_path / "out")
    assert (text.documents, title.documents) == (298, 300)
    assert 1 not in IndexedReader(tmp_path / "out_title_document")[0]
    assert text.origin["json_key"] == "text" and title.origin["json_key"] == "title"


def test_only_a_newline_ends_a_line(arguments, tmp_path):
    arguments.input.write_bytes(b'{"text": "a\xc2\x85\xe2\x80\xa8b",\r "n": 1}\r\n{"text":\x0d"c"}')
    preprocess(arguments, tmp_path / "out")
    processor, reader = tokenizer.load(arguments.tokenizer_model), IndexedReader(tmp_path / "out_text_document")
    assert [processor.decode(reader[i][:-1].tolist()) for i in range(len(reader))] == ["a\x85\u2028b", "c"]


def test_what_is_whole_is_left_and_what_differs_is_made_again(arguments, tmp_path, capsys):
    first = preprocess(arguments, tmp_path / "out")
    stamp = (tmp_path / "out_text_document.bin").stat().st_mtime_ns
    assert preprocess(arguments, tmp_path / "out") == first
    assert "already whole" in capsys.readouterr().err
    assert (tmp_path / "out_text_document.bin").stat().st_mtime_ns == stamp
    write_jsonl(arguments.input, RECORDS[:100])
    assert preprocess(arguments, tmp_path / "out")[0].documents == 99
    assert "it is replaced" in capsys.readouterr().err
    (tmp_path / "out_text_document.bin").write_bytes(b"")
    assert preprocess(arguments, tmp_path / "out")[0].documents == 99
    assert "It is made again now" in capsys.readouterr().err
    assert Manifest.load(tmp_path / "out_text_document").documents == 99


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("line", "what"), [("{", "is not JSON"), ('{"body": "x"}', "has no key 'text'")])
def test_a_bad_line_ends_all_and_leaves_nothing(arguments, tmp_path, monkeypatch, workers, line, what):
    monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    lines = arguments.input.read_text().splitlines()
    lines[200] = line
    arguments.input.write_text("\n".join(lines))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=rf"a\.jsonl:201: {what}"):
        preprocess(arguments, tmp_path / "out", workers)
    assert sorted(tmp_path.iterdir()) == before


def test_other_bad_input_is_one_message(arguments, tmp_path):
    for change, what in [({"input": tmp_path / "none.jsonl"}, "none.jsonl: is missing"),
                         ({"tokenizer_model": tmp_path / "none.model"}, "none.model: is missing"),
                         ({"tokenizer_model": arguments.input}, "is no sentencepiece model"),
                         ({"json_keys": ("text", "text")}, "names a key twice")]:
        values = {"input": arguments.input, "tokenizer_model": arguments.tokenizer_model, **change}
        with pytest.raises(DataError, match=what):
            preprocess(Preprocessing(**values), tmp_path / "out")
    for values, what in [({"workers": 0}, "--workers"), ({"log_interval": 0}, "--log-interval")]:
        with pytest.raises(DataError, match=what):
            preprocess(arguments, tmp_path / "out", **values)
    arguments.input.write_text("")
    with pytest.raises(DataError, match="is empty"):
        preprocess(arguments, tmp_path / "out")
    arguments.input.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="every text of 'text' is empty"):
        preprocess(arguments, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
