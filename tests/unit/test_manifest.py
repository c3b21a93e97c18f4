"""data/manifest.py: a manifest is read as it was written, and says what is wrong with its dataset."""

import json
import math

import numpy as np
import pytest

from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.data.manifest import Manifest, unigram_entropy_nats
from megatron_nca.errors import DataError


@pytest.fixture
def prefix(tmp_path):
    with IndexedWriter(tmp_path / "x", 100) as writer:
        writer.add_document(np.arange(50))
        writer.finish({"kind": "corpus", "vocab_size": 128, "origin": {"text": "é", "inputs": [{"name": "a"}]}})
    return tmp_path / "x"


def change(prefix, **values):
    path = prefix.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_is_read_as_it_was_written(prefix):
    text = prefix.with_suffix(".json").read_text()
    assert Manifest.load(prefix).to_json() == text
    assert list(json.loads(text)) == ["format", "version", "kind", "documents", "tokens", "dtype", "vocab_size",
                                      "num_tokens", "files", "unigram_entropy_nats", "trajectory", "origin"]
    Manifest.load(prefix).replace(tokens=51).save(prefix)
    assert Manifest.load(prefix).tokens == 51


@pytest.mark.parametrize(("values", "what"), [
    ({"format": "other"}, "is not the manifest of a dataset"),
    ({"version": 2}, "version = 2"),
    ({"kinds": 1}, "kinds: unknown setting. Did you mean 'kind'"),
    ({"tokens": "many"}, "expected int"),
    ({"kind": "video"}, "not one of"),
    ({"vocab_size": 99}, "num_tokens = 100"),
    ({"files": {}}, "expected the records"),
    ({"trajectory": {"sequence_length": 9, "document_tokens": 9, "frame_tokens": 3, "first_scored_token": 1}},
     "whole frames"),
])
def test_a_foreign_or_wrong_manifest_is_refused(prefix, values, what):
    change(prefix, **values)
    with pytest.raises(DataError, match=what) as caught:
        Manifest.load(prefix)
    assert "x.json" in str(caught.value) and "Cure" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"null"])
def test_what_is_no_manifest_is_refused(prefix, content):
    prefix.with_suffix(".json").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.json"):
        Manifest.load(prefix)


def test_missing_files_and_other_sizes_are_named(prefix):
    bin_path = prefix.with_suffix(".bin")
    bin_path.write_bytes(bin_path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"x\.bin: has 98 bytes, but its manifest says 100"):
        Manifest.load(prefix)
    bin_path.unlink()
    with pytest.raises(DataError, match=r"x\.bin: is missing"):
        Manifest.load(prefix)
    prefix.with_suffix(".json").unlink()
    with pytest.raises(DataError, match="never finished"):
        Manifest.load(prefix)


def test_verify_finds_a_changed_byte_of_the_same_size(prefix):
    manifest = Manifest.load(prefix)
    manifest.verify(prefix)
    content = bytearray(prefix.with_suffix(".bin").read_bytes())
    content[7] ^= 1
    prefix.with_suffix(".bin").write_bytes(content)
    assert Manifest.load(prefix) == manifest
    with pytest.raises(DataError, match="sha256"):
        manifest.verify(prefix)


def test_unigram_entropy():
    assert unigram_entropy_nats(np.array([5, 0, 5])) == pytest.approx(math.log(2))
    assert unigram_entropy_nats(np.full(512, 3)) == pytest.approx(math.log(512))
    assert unigram_entropy_nats(np.array([0, 7])) == 0.0
    assert unigram_entropy_nats(np.array([1, 3])) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    with pytest.raises(DataError):
        unigram_entropy_nats(np.zeros(3))
