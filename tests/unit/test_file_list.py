"""A folder that lists its files: what is torn, gone or rotten is named, and readers share the hashing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_nca import file_list

WHOLE = (0, 1)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    folder = tmp_path / "iter_0000010"
    folder.mkdir()
    for number in range(5):
        (folder / f"__{number}_0.distcp").write_bytes(bytes([number]) * (1000 - number))
    file_list.write(folder)
    return folder


def test_what_was_listed_is_whole(listed: Path) -> None:
    assert file_list.flaws(listed, WHOLE) == []
    (listed / "note.txt").write_text("a user's own")
    assert file_list.flaws(listed, WHOLE) == []


def test_records_of_the_writers_are_taken(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    file_list.write(tmp_path, {"a": {"bytes": 1, "sha256": "0" * 64}, "elsewhere": {"bytes": 3, "sha256": ""}})
    assert file_list.flaws(tmp_path) == []
    assert file_list.flaws(tmp_path, WHOLE) == ["a has been changed: its sha256 is not that of its list"]


def gone(folder: Path) -> None:
    (folder / "__1_0.distcp").unlink()


def cut(folder: Path) -> None:
    path = folder / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])


def no_list(folder: Path) -> None:
    (folder / "files.json").unlink()


def torn_list(folder: Path) -> None:
    path = folder / "files.json"
    path.write_text(path.read_text()[:-9])


def other_list(folder: Path) -> None:
    (folder / "files.json").write_text(json.dumps({"files": {}}))


def climbing_list(folder: Path) -> None:
    path = folder / "files.json"
    path.write_text(path.read_text().replace("__1_0", "../__1_0"))


@pytest.mark.parametrize(("spoil", "words"), [
    (gone, "__1_0.distcp is missing"), (cut, "has 998 bytes, its list says 999"), (no_list, "files.json is missing"),
    (torn_list, "files.json cannot be read"), (other_list, "not a file list"), (climbing_list, "no records"),
])  # fmt: skip
def test_a_flaw_is_seen_without_reading_the_files(listed: Path, spoil: Callable, words: str) -> None:
    spoil(listed)
    (found,) = file_list.flaws(listed)
    assert words in found


def test_each_of_three_readers_reads_a_share_and_one_finds_the_bit(listed: Path) -> None:
    path = listed / "__3_0.distcp"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert file_list.flaws(listed) == []
    found = [file_list.flaws(listed, (reader, 3)) for reader in range(3)]
    assert sorted(map(len, found)) == [0, 0, 1]
    assert "__3_0.distcp has been changed" in max(found)[0]
