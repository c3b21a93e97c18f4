"""data/indexed.py: whatever happens while writing, nothing half-written stands under a final name."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from megatron_nca.data.indexed import IndexedReader, IndexedWriter
from megatron_nca.data.manifest import Manifest
from megatron_nca.errors import DataError

FIELDS = {"kind": "corpus", "vocab_size": 100, "origin": {}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(prefix, value):
    with IndexedWriter(prefix, 100) as writer:
        writer.add_document(np.full(value, value))
        return writer.finish(FIELDS)


def test_leaving_without_finish_removes_all(tmp_path):
    with IndexedWriter(tmp_path / "x", 100) as writer:
        writer.add_document(np.arange(9))
        assert [name for name in names(tmp_path) if not name.startswith(".")] == []
    assert names(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), IndexedWriter(tmp_path / "x", 100) as writer:
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_an_empty_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match="no document"), IndexedWriter(tmp_path / "x", 100) as writer:
        writer.finish(FIELDS)
    assert names(tmp_path) == []


def test_wrong_fields_leave_the_old_dataset_as_it_was(tmp_path):
    old = write(tmp_path / "x", 3)
    with pytest.raises(DataError, match="num_tokens"), IndexedWriter(tmp_path / "x", 100) as writer:
        writer.add_document(np.arange(9))
        writer.finish({**FIELDS, "vocab_size": 50})
    assert Manifest.load(tmp_path / "x") == old
    old.verify(tmp_path / "x")


def test_writing_twice_gives_the_same_bytes(tmp_path):
    write(tmp_path / "x", 3)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path / "x", 3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


@pytest.mark.parametrize("failing", ["x.bin", "x.idx", "x.json"])
def test_an_old_manifest_never_describes_new_files(tmp_path, monkeypatch, failing):
    write(tmp_path / "x", 3)
    replace = os.replace

    def fail(source, target):
        if os.path.basename(target) == failing:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match="Input/output error"):
        write(tmp_path / "x", 4)
    with pytest.raises(DataError, match=r"x\.json: is missing"):
        Manifest.load(tmp_path / "x")
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def child(code, tmp_path, **kwargs):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}, **kwargs)


def test_kill_9_while_writing_leaves_no_final_name(tmp_path):
    code = """
import sys, numpy as np
from megatron_nca.data.indexed import IndexedWriter
with IndexedWriter(sys.argv[1], 100) as writer:
    while True:
        writer.add_documents(np.full((1000, 1000), 7))
        print("wrote", flush=True)
"""
    process = child(code, tmp_path)
    process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert names(tmp_path) and all(name.startswith(".") and name.endswith(".tmp") for name in names(tmp_path))
    with pytest.raises(DataError, match="is missing"):
        IndexedReader(tmp_path / "x")
    (tmp_path / f".x.bin.{os.getpid()}.tmp.other").touch()
    write(tmp_path / "x", 3)
    assert names(tmp_path) == [f".x.bin.{os.getpid()}.tmp.other", "x.bin", "x.idx", "x.json"]


@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path, old):
    """The limit on a file's size stands for a full disk: the write fails half-way with an OSError."""
    code = """
import resource, sys, numpy as np
from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
try:
    with IndexedWriter(sys.argv[1], 100) as writer:
        for _ in range(100):
            writer.add_documents(np.full((100, 1000), 7))
        writer.finish({"kind": "corpus", "vocab_size": 100, "origin": {}})
except DataError as error:
    sys.exit(str(error))
"""
    if old:
        write(tmp_path / "x", 3)
    before = names(tmp_path)
    process = child(code, tmp_path)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert stderr.count("\n") == 1 and "x.bin: cannot be written" in stderr and "Cure:" in stderr
    assert names(tmp_path) == before


def test_an_unwritable_place_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"x\.bin: cannot be written"), IndexedWriter(tmp_path / "file" / "x", 100):
        pass
