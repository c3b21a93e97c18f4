"""Files appear whole or not at all."""

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from megatron_nca import files
from megatron_nca.errors import DataError


def test_a_file_is_there_only_after_the_block(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with files.publish(path) as aside:
        aside.write_text("x")
        assert not path.exists() and aside.parent == path.parent
    assert path.read_text() == "x"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), files.publish(path) as aside:
        aside.write_text("new")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_replaces_a_folder(tmp_path):
    path = tmp_path / "report"
    for name in ("old", "new"):
        with files.publish(path) as aside:
            aside.mkdir()
            (aside / name).write_text(name)
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["report"]


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/mine.png").write_text("mine")
    with pytest.raises(DataError, match=r"figures: is a folder\. Cure: name a file, or move it away\."):
        files.write_text(tmp_path / "figures", "x")
    assert os.listdir(tmp_path) == ["figures"] and os.listdir(tmp_path / "figures") == ["mine.png"]
    (tmp_path / "link").symlink_to(tmp_path / "figures")
    files.write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").read_text() == "x" and os.listdir(tmp_path / "figures") == ["mine.png"]


@pytest.mark.parametrize(("number", "cure"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "may write to")])
def test_what_the_system_refuses_becomes_a_sentence_with_a_cure(tmp_path, number, cure):
    path = tmp_path / "a.txt"
    with pytest.raises(DataError, match=cure), files.publish(path) as aside:
        aside.write_text("half")
        raise OSError(number, os.strerror(number))
    assert os.listdir(tmp_path) == []


def test_a_disk_that_takes_no_writes_is_named_also_at_the_clearing_up(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(DataError, match="may write to"), files.publish(tmp_path / "a") as aside:
        refuse(aside)


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "a.txt", "x")


def test_a_folder_is_made_once(tmp_path):
    path = tmp_path / "deep" / "folder"
    assert files.create_folder(path, {"a": b"first"})
    assert not files.create_folder(path, {"a": b"second"})
    assert (path / "a").read_bytes() == b"first" and os.listdir(path.parent) == ["folder"]
    (tmp_path / "file").write_text("x")
    assert not files.create_folder(tmp_path / "file", {"a": b"x"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert files.create_folder(tmp_path / "link", {"a": b"x"})
    assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "empty") == ["a"]


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(DataError, match="free some space"):
        files.create_folder(tmp_path / "folder", {"a": b"x"})
    assert os.listdir(tmp_path) == []


def test_sha256_and_remove(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * (2**20 + 1))
    assert files.sha256(path) == hashlib.sha256(b"x" * (2**20 + 1)).hexdigest()
    files.remove(path)
    files.remove(path)
    assert not path.exists()


def test_a_link_to_a_folder_is_removed_without_the_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    files.remove(tmp_path / "link")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_hashed_file_is_what_was_written(tmp_path: Path):
    data = bytearray(range(256)) * 1000
    with files.HashedFile(tmp_path / "file") as file:
        for first in range(0, len(data), 10_007):
            part = data[first : first + 10_007]
            assert file.write(memoryview(part)) == len(part)
            part[:] = bytes(len(part))  # the caller's memory may change once it is written
        assert file.tell() == len(data)
    assert (tmp_path / "file").read_bytes() == data
    assert file.record() == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with pytest.raises(FileExistsError):
        files.HashedFile(tmp_path / "file")


def test_bytes_are_on_their_way_to_the_disk_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced = threading.Event()
    monkeypatch.setattr(files.EarlySync, "_STEP_BYTES", 100)
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: synced.set())
    with files.HashedFile(tmp_path / "file") as file:
        file.write(bytes(99))
        assert not synced.is_set()
        file.write(bytes(1))
        assert synced.wait(10)


def test_what_the_disk_refuses_early_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.EarlySync, "_STEP_BYTES", 100)
    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"), files.HashedFile(tmp_path / "file") as file:
        file.write(bytes(100))


def test_the_next_result_is_made_while_the_last_is_used():
    begun = [threading.Event() for _ in range(4)]

    def read(number: int) -> int:
        begun[number].set()
        return number

    for number in files.ahead(map(read, range(4))):
        assert number == 3 or begun[number + 1].wait(10)
        assert number >= 2 or not begun[number + 2].is_set()
    assert list(files.ahead([])) == []


def test_a_failure_ahead_comes_in_its_turn():
    results = files.ahead(1 // number for number in (1, 0, 2))
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
