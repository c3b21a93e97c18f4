"""data/merge.py: documents follow one another, whatever the size of a block; what does not belong is refused."""

from pathlib import Path

import numpy as np
import pytest

from megatron_nca.data import merge as module
from megatron_nca.data.indexed import IndexedReader, IndexedWriter
from megatron_nca.data.manifest import Manifest, part
from megatron_nca.data.merge import merge
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.data.verify import verify
from megatron_nca.errors import DataError


def corpus(prefix: Path, seed: int, tokenizer: str = "t", num_tokens: int = 300, kind: str = "corpus") -> list:
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, num_tokens, rng.integers(1, 40)) for _ in range(30)]
    with IndexedWriter(prefix, num_tokens) as writer:
        for document in documents:
            writer.add_document(document)
        writer.finish({"kind": kind, "vocab_size": num_tokens, "origin": {"tokenizer": {"sha256": tokenizer}}})
    return documents


@pytest.mark.parametrize("block", [1, 37, 1 << 24])
def test_documents_follow_one_another(tmp_path, monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK_TOKENS", block)
    expected = corpus(tmp_path / "a", 1) + corpus(tmp_path / "b", 2) + corpus(tmp_path / "c", 3)
    manifest = merge([tmp_path / name for name in "abc"], tmp_path / "all")
    reader = IndexedReader(tmp_path / "all")
    assert len(reader) == manifest.documents == len(expected)
    assert all((reader[i] == document).all() for i, document in enumerate(expected))
    assert "manifest agree" in verify(tmp_path / "all")
    merge([tmp_path / "all", tmp_path / "a"], tmp_path / "more")  # a merged one is a corpus of the same tokenizer
    assert Manifest.load(tmp_path / "more").documents == 120


def test_trajectories_stay_trajectories(tmp_path):
    layout = Trajectory(sequence_length=8, document_tokens=10, frame_tokens=2, first_scored_token=2)
    for name in "ab":
        with IndexedWriter(tmp_path / name, 16, layout) as writer:
            writer.add_documents(np.random.default_rng(ord(name)).integers(0, 16, (12, 10)))
            writer.finish({"kind": "nca", "vocab_size": 16, "origin": {}})
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all").trajectory == layout
    assert "manifest agree" in verify(tmp_path / "all")


@pytest.mark.parametrize("ending", ["bin", "idx"])
def test_a_dataset_that_has_rotted_is_not_merged_into_a_sound_one(tmp_path, ending):
    for name, seed in (("a", 1), ("b", 2)):
        corpus(tmp_path / name, seed)
    path = part(tmp_path / "b", ending)
    data = bytearray(path.read_bytes())
    if ending == "bin":
        data[10] ^= 1  # another id of the vocabulary
    else:  # one token of the first document goes to the second
        lengths = np.frombuffer(data, np.int32, 2, offset=34)
        lengths += np.array([-1, 1], np.int32)
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"b\.{ending}: (its sha256 is|.* Cure)"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert not list(tmp_path.glob("*all*"))


def test_what_does_not_belong_together_is_refused(tmp_path):
    corpus(tmp_path / "a", 1)
    for change, what in (({"tokenizer": "u"}, "tokenizer_sha256 is u"), ({"num_tokens": 200}, "vocab_size is 200"),
                         ({"kind": "nca"}, "kind is nca")):
        corpus(tmp_path / "b", 2, **change)
        with pytest.raises(DataError, match=what):
            merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    corpus(tmp_path / "b", 2)
    corpus(tmp_path / "copy", 1)
    for twice in ("a", "copy"):
        with pytest.raises(DataError, match=f"{twice}: has the very documents of .*a, each of which would stand twice"):
            merge([tmp_path / name for name in ("a", "b", twice)], tmp_path / "all")
    with pytest.raises(DataError, match="is missing"):
        merge([tmp_path / "a", tmp_path / "none"], tmp_path / "all")
    with pytest.raises(DataError, match="nothing to merge"):
        merge([tmp_path / "a"], tmp_path / "all")
    with pytest.raises(DataError, match="exists"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "b")
    assert not part(tmp_path / "all", "bin").exists()
