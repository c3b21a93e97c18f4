"""Parts by the hash of the document, exact de-duplication, and a corpus made by several processes."""

import dataclasses
import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_nca.data import preprocess as making
from megatron_nca.data import selection, stretches, tokenizer
from megatron_nca.data.encoders import SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.encoding import Preprocessing
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.manifest import part
from megatron_nca.data.preprocess_report import report
from megatron_nca.errors import DataError

TEXTS = [f"def f{i % 90}(x):\n\treturn x  + {i % 90}\n" * (i % 90 % 7 + 1) for i in range(240)]
"""90 texts, most of them three times."""
TEXTS[7] = TEXTS[190] = ""
PARTS = ("", "_validation", "_test")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selection")
    write(folder / "a.jsonl", [text for text in TEXTS if text])
    tokenizer.save(tokenizer.train(folder / "a.jsonl", 300)[0], folder / "tok")
    return folder / "tok.model"


@pytest.fixture(autouse=True)
def many_stretches(monkeypatch):
    monkeypatch.setattr(stretches, "SMALLEST", 6000)
    monkeypatch.setattr(selection, "IN_MEMORY", 16)


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def chosen(model, *paths, **others):
    tokenizer_files = TokenizerFiles(type=SENTENCEPIECE, model=model)
    return Preprocessing(**{"inputs": stretches.recognise(paths), "tokenizer": tokenizer_files,
                            "hold_out": (("validation", 0.2), ("test", 0.1)), "deduplicate": True, **others})


def texts_of(prefix, model):
    reader, processor = IndexedReader(prefix), tokenizer.load(model)
    return [processor.decode(reader[i][:-1].tolist()) for i in range(len(reader))]


def test_the_hash_of_a_text_decides_its_part_whatever_order_and_files(model, tmp_path):
    write(tmp_path / "a.jsonl", TEXTS)
    making.preprocess(chosen(model, tmp_path / "a.jsonl"), tmp_path / "one")
    mixed = random.Random(1).sample(TEXTS, len(TEXTS))
    write(tmp_path / "b.jsonl", mixed[:100])
    write(tmp_path / "c.jsonl", mixed[100:])
    making.preprocess(chosen(model, tmp_path / "b.jsonl", tmp_path / "c.jsonl"), tmp_path / "two")
    found = []
    for number, name in enumerate(PARTS):
        one, two = (texts_of(tmp_path / f"{run}{name}_text_document", model) for run in ("one", "two"))
        expected = [text for text in dict.fromkeys(TEXTS) if text and part_by_hand(text) == number]
        assert one == expected, "the first of equal texts, in the input's order"
        assert two == [text for text in dict.fromkeys(mixed) if text in set(expected)]
        found.append(one)
    assert sorted(text for texts in found for text in texts) == sorted({text for text in TEXTS if text}) and all(found)


def part_by_hand(text):
    place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest()[:8], "big") / 2**64
    return 1 if place < 0.2 else 2 if place < 0.3 else 0


def test_the_counts_add_up_and_are_reported(model, tmp_path):
    write(tmp_path / "a.jsonl", TEXTS)
    manifests = making.preprocess(chosen(model, tmp_path / "a.jsonl"), tmp_path / "out")
    origins = [manifest.origin for manifest in manifests]
    documents = sum(manifest.documents for manifest in manifests)
    empty, again = (sum(origin[name] for origin in origins) for name in ("empty_documents", "duplicate_documents"))
    assert (documents, empty, again) == (90, 2, 240 - 92)
    assert sum(origin["text_bytes"] for origin in origins) == sum(len(text) for text in set(TEXTS))
    assert [origin["part"] for origin in origins] == ["train", "validation", "test"]
    lines = report(manifests, tmp_path / "out").splitlines()
    assert "validation_text_document: " in lines[1] and "bytes of text a token" in lines[1]
    assert lines[3] == "input: 240 lines, of which 0 were bad and left out"


def test_equal_documents_stay_where_nobody_asks(model, tmp_path):
    write(tmp_path / "a.jsonl", TEXTS)
    both = chosen(model, tmp_path / "a.jsonl", deduplicate=False)
    manifests = making.preprocess(both, tmp_path / "out")
    assert sum(manifest.documents for manifest in manifests) == 238
    plain = dataclasses.replace(both, hold_out=())
    assert making.preprocess(plain, tmp_path / "plain")[0].documents == 238


def test_a_document_of_two_keys_is_both_texts(model, tmp_path):
    lines = [{"a": "x", "b": "y"}, {"a": "x", "b": "z"}, {"a": "x", "b": "y"}, {"a": "", "b": "y"}, {"a": "", "b": ""}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    one, two = making.preprocess(chosen(model, tmp_path / "a.jsonl", json_keys=("a", "b"), hold_out=()),
                                 tmp_path / "out")
    assert (one.documents, one.origin["empty_documents"], one.origin["duplicate_documents"]) == (2, 2, 1)
    assert (two.documents, two.origin["empty_documents"], two.origin["duplicate_documents"]) == (3, 1, 1)


@settings(max_examples=20, deadline=None)
@given(files=st.lists(st.lists(st.integers(0, 60), max_size=50), min_size=1, max_size=5))
def test_first_ones_are_those_of_a_set(tmp_path_factory, files):
    folder, seen, expected = tmp_path_factory.mktemp("first"), set(), []
    for number, values in enumerate(files):
        digests = [selection.digest([str(value).encode()]) for value in values]
        (folder / f"{number}").write_bytes(b"".join(digests))
        expected += [not (each in seen or seen.add(each)) for each in digests]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(selection, "IN_MEMORY", 16)
        with selection.first_ones([folder / f"{number}" for number in range(len(files))], folder / "scratch") as first:
            assert np.array_equal(first, expected)
    assert not (folder / "scratch").exists()


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_parts_that_are_no_longer_held_out_are_removed_and_named(model, tmp_path, capsys):
    write(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes() + b"{\n")
    asked = chosen(model, tmp_path / "a.jsonl", on_bad_line="quarantine")
    making.preprocess(asked, tmp_path / "out")
    making.preprocess(asked, tmp_path / "out_tests")
    for ending in ("bin", "idx"):  # made by another tool, and the user's own
        part(tmp_path / "out_foreign_text_document", ending).write_bytes(b"")
    for name, content in (("out_my_document", "{}"), ("out_notes", "["), ("out_own_text_document", '{"format": 1}')):
        part(tmp_path / name, "json").write_text(content)
    before = names(tmp_path)
    capsys.readouterr()
    making.preprocess(dataclasses.replace(asked, hold_out=(("validation", 0.4),), on_bad_line="skip"), tmp_path / "out")
    gone = before - names(tmp_path)
    assert gone == {"out_rejected.jsonl", *(f"out_test_text_document.{ending}" for ending in ("bin", "idx", "json"))}
    err = capsys.readouterr().err
    for name in ("out_test_text_document", "out_rejected.jsonl"):
        assert f"{tmp_path / name}: was made for this prefix with other settings; it is removed.\n" in err
    assert err.count("it is removed") == 2 and names(tmp_path) <= before
    plain = dataclasses.replace(asked, hold_out=(), on_bad_line="skip", json_keys=("text",))
    making.preprocess(plain, tmp_path / "out")
    assert not part(tmp_path / "out_validation_text_document", "bin").exists()
    assert len(list(tmp_path.glob("out_tests_*"))) == 10, "another prefix, though it begins alike"


def test_another_key_leaves_the_datasets_of_the_first(model, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "title": text + "t"}) + "\n" for text in TEXTS))
    making.preprocess(chosen(model, tmp_path / "a.jsonl"), tmp_path / "out")
    before = names(tmp_path)
    making.preprocess(chosen(model, tmp_path / "a.jsonl", json_keys=("title",), hold_out=()), tmp_path / "out")
    assert before < names(tmp_path)


@pytest.mark.parametrize("asked", [{"train": 0.1}, {"a_b": 0.1}, {"a": 0.0}, {"a": 0.6, "b": 0.4}])
def test_parts_that_cannot_be_are_refused(asked):
    with pytest.raises(DataError, match="--hold-out"):
        selection.check_hold_out(tuple(asked.items()))


def test_shards_make_the_bytes_of_one_process(model, tmp_path):
    write(tmp_path / "a.jsonl", [*TEXTS, *TEXTS])
    asked = chosen(model, tmp_path / "a.jsonl")
    making.preprocess(asked, tmp_path / "one")
    with pytest.raises(DataError, match="no shard has come to its end"):
        making.merge(asked, tmp_path / "out")
    making.make_share(asked, tmp_path / "out", 2, 3)
    with pytest.raises(DataError, match=r"stretches of the input are missing \(0, 1, 3, 4, 6"):
        making.merge(asked, tmp_path / "out")
    with pytest.raises(DataError, match="another input, tokenizer or setting"):
        making.make_share(dataclasses.replace(asked, append_eod=False), tmp_path / "out", 0, 3)
    nodes = [tmp_path / "node0", tmp_path / "node1"]
    for shard, node in enumerate(nodes):
        assert "stretches are there" in making.make_share(asked, tmp_path / "out", shard, 3, [node])
    making.merge(asked, tmp_path / "out", [tmp_path / "out.parts", *nodes])
    for name in PARTS:
        for ending in ("bin", "idx", "json"):
            one, other = (part(tmp_path / f"{run}{name}_text_document", ending) for run in ("one", "out"))
            assert one.read_bytes() == other.read_bytes()
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    assert "nothing is left to do" in making.make_share(asked, tmp_path / "out", 0, 3)


def test_shards_by_themselves_hold_every_document_once(model, tmp_path):
    write(tmp_path / "a.jsonl", TEXTS)
    asked = chosen(model, tmp_path / "a.jsonl", deduplicate=False)
    making.preprocess(asked, tmp_path / "one")
    names = [making.name_of_share(tmp_path / "out", shard, 2) for shard in range(2)]
    made = [making.datasets_of_share(asked, name, shard, 2) for shard, name in enumerate(names)]
    for name in PARTS:
        whole, *shards = (IndexedReader(Path(f"{run}{name}_text_document")) for run in (tmp_path / "one", *names))
        documents = [[reader[i].tolist() for i in range(len(reader))] for reader in (whole, *shards)]
        assert min(map(len, documents)) > 0 and sorted(documents[0]) == sorted(documents[1] + documents[2])
    assert [manifest.origin["shard"] for manifest, *_ in made] == ["0/2", "1/2"]
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    assert making.datasets_of_share(asked, names[1], 1, 2) == made[1]
    with pytest.raises(DataError, match="--shard = '500/501': the input has"):
        making.datasets_of_share(asked, tmp_path / "none", 500, 501)
    with pytest.raises(DataError, match="--deduplicate"):
        making.datasets_of_share(chosen(model, tmp_path / "a.jsonl", deduplicate=True), names[0], 0, 2)
