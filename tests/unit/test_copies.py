"""data/copies.py: a copy on a node's disk is the dataset or an error, never quietly something else."""

import collections
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from megatron_nca.data import copies
from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.data.manifest import part
from megatron_nca.errors import ConfigError, DataError

ENDINGS = ("bin", "idx", "json")


@pytest.fixture
def prefix(tmp_path):
    with IndexedWriter(tmp_path / "x", 100) as writer:
        writer.add_document(np.arange(50))
        writer.finish({"kind": "corpus", "vocab_size": 128, "origin": {}})
    return tmp_path / "x"


def same(prefix, copy) -> bool:
    return all(part(prefix, end).read_bytes() == part(copy, end).read_bytes() for end in ENDINGS)


def test_one_process_copies_and_the_others_find_it(prefix, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: copies.copy(prefix, tmp_path / "disk"), range(4)))
    assert found == {copies.place(prefix, tmp_path / "disk")}
    copy = found.pop()
    assert same(prefix, copy)
    before = part(copy, "bin").stat().st_mtime_ns, part(copy, "bin").stat().st_ino
    copies.copy(prefix, tmp_path / "disk")
    assert before == (part(copy, "bin").stat().st_mtime_ns, part(copy, "bin").stat().st_ino)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_copy_is_made_again_and_what_was_killed_is_removed(prefix, tmp_path, ending):
    path = part(copies.copy(prefix, tmp_path / "disk"), ending)
    text = bytearray(path.read_bytes())
    text[-1] ^= 1
    path.write_bytes(text)
    left = path.with_name(f".{path.name}.1-ab.tmp")
    left.write_bytes(b"half")
    assert same(prefix, copies.copy(prefix, tmp_path / "disk"))
    assert not left.exists()


def test_a_damaged_original_is_refused(prefix, tmp_path):
    text = bytearray(part(prefix, "bin").read_bytes())
    text[0] ^= 1
    part(prefix, "bin").write_bytes(text)
    with pytest.raises(DataError, match=r"its manifest says .* it was not copied to the node"):
        copies.copy(prefix, tmp_path / "disk")
    assert [path.name for path in (tmp_path / "disk").rglob("*") if path.is_file()] == [".lock"]


def test_another_dataset_of_the_name_has_another_place(prefix, tmp_path):
    place = copies.place(prefix, tmp_path / "disk")
    with IndexedWriter(tmp_path / "x", 100) as writer:
        writer.add_document(np.arange(49))
        writer.finish({"kind": "corpus", "vocab_size": 128, "origin": {}})
    assert copies.place(prefix, tmp_path / "disk") != place


def test_too_little_space_is_one_message(prefix, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(DataError, match=r"are free. Cure: free some space on .*, or do not copy"):
        copies.copy(prefix, tmp_path / "disk")


def test_the_folder_is_named_by_the_node(monkeypatch, tmp_path):
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    assert copies.folder_here("$NODE_DISK/data") == tmp_path / "data"
    for text in ("$NO_SUCH_DISK/data", "relative"):
        with pytest.raises(ConfigError, match="--copy-data-to"):
            copies.folder_here(text)
