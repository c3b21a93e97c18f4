"""What data/stretches.py takes for input, and what it says of files it cannot take."""

import errno
import gzip
import json
import os
import re
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from megatron_nca.data import stretches
from megatron_nca.data.corpus import stdlib_files
from megatron_nca.data.debian import debian_files
from megatron_nca.data.stretches import Bad
from megatron_nca.errors import DataError


def found_in(paths, keys=("text",), size=1 << 20) -> list[list[str] | Bad]:
    return [document for stretch in stretches.cut(stretches.recognise(paths), size)
            for document in stretches.documents(stretch, keys)]


def write_jsonl(path: Path, texts) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def test_numbers_of_bad_lines_are_counted_on_and_not_from_the_beginning(tmp_path, monkeypatch):
    path, read = tmp_path / "a.jsonl", []
    path.write_bytes(b"bad\n" * 3000)

    class Counted:
        def __init__(self, *arguments, **others):
            self.file = open(*arguments, **others)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, count):
            read.append(block := self.file.read(count))
            return block

    monkeypatch.setattr(stretches, "open", Counted, raising=False)
    found = found_in([path], size=1000)
    assert [bad.reason.split(": ")[0] for bad in found] == [f"{path}:{number}" for number in range(1, 3001)]
    assert sum(map(len, read)) <= path.stat().st_size
    path.write_bytes(b"\n\n" + path.read_bytes())  # another file now
    assert [bad.reason.split(": ")[0] for bad in found_in([path])][-1] == f"{path}:3002"


def test_a_place_before_the_last_one_is_counted_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"bad\n" * 100)
    for number in (50, 3, 3, 99, 1):
        assert stretches._Place(path, 4 * (number - 1))() == f"{path}:{number}"


def reasons(found) -> list[str | list[str]]:
    return [document.reason if isinstance(document, Bad) else document for document in found]


TEXT_TYPES = [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(),
              pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_columns_of_every_type_of_text_are_read(tmp_path, kind):
    texts = ["one", "two \u00e9", None, "one", ""]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": pyarrow.array(texts).cast(kind)}), path)
    found = reasons(found_in([path]))
    assert found[:2] + found[3:] == [["one"], ["two \u00e9"], ["one"], [""]]
    assert found[2].startswith(f"{path}: row 2 of group 0 has no 'text'")


@pytest.mark.parametrize("kind", [kind for kind in TEXT_TYPES if kind != pyarrow.string_view()], ids=str)
def test_a_row_that_is_not_utf8_is_bad_and_the_others_are_not(tmp_path, kind):
    plain = pyarrow.large_string() if kind == pyarrow.large_string() else pyarrow.string()
    raw = pyarrow.array([b"one", b"\xff\xfe", b"tw\xc3\xa9", None], pyarrow.large_binary()
                        if plain == pyarrow.large_string() else pyarrow.binary())
    column = pyarrow.Array.from_buffers(plain, len(raw), raw.buffers())
    if pyarrow.types.is_dictionary(kind):
        column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1, 2, None], "int32"), column.slice(0, 3))
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": column, "n": pyarrow.array(["1", "2", "3", "4"])}), path)
    found = found_in([path], ("text", "n"))
    assert [found[0], found[2]] == [["one", "1"], ["tw\u00e9", "3"]]
    assert (found[1].kind, found[1].raw, found[3].kind) == ("not UTF-8", b"\xff\xfe", "a key is missing")
    assert found[1].reason.startswith(f"{path}: row 1 of group 0: 'text' is not UTF-8. Cure: ")


def test_a_column_that_is_there_twice_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 3, names=["text", "text", "n"]), path)
    with pytest.raises(DataError, match=r"a\.parquet: has 2 columns that are called 'text'\. Cure: "):
        found_in([path])
    assert found_in([path], ("n",)) == [["x"]]


@pytest.mark.parametrize("checksums", [True, False])
def test_flipped_bytes_in_a_parquet_file_are_one_message(tmp_path, checksums):
    path, texts = tmp_path / "a.parquet", [f"text {number} of many" * 3 for number in range(2000)]
    parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd", use_dictionary=False,
                        write_page_checksum=checksums)
    whole, tried, refused = path.read_bytes(), 0, 0
    for at in range(20, len(whole) - 400, max(len(whole) // 60, 1)):
        tried += 1
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            found_in([path])
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "Cure: " in str(error)
            refused += 1
    assert refused > (0.8 * tried if checksums else 0)


def test_a_parquet_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["x"]}), path)

    def refuses(*arguments, **others):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(parquet, "ParquetFile", refuses)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read \(Permission denied\)\. Cure: "):
        found_in([path])


def test_of_a_folder_lines_and_parquet_are_taken_and_the_rest_is_told(tmp_path, capsys):
    folder, hub = tmp_path / "data", tmp_path / "hub/blob"
    write_jsonl(folder / "b/UPPER.JSONL", ["upper"])
    write_jsonl(hub, ["linked"])
    (folder / "c.jsonl").symlink_to(hub)
    (folder / "README.md").write_text("no document")
    (folder / "x.txt.gz").write_bytes(b"")
    (folder / "whole").symlink_to(tmp_path / "hub", target_is_directory=True)
    assert found_in([folder]) == [["upper"], ["linked"]]
    said = capsys.readouterr().err
    assert f"{folder}: 2 files are neither JSONL nor Parquet and are left out, for example README.md\n" in said
    assert f"{folder}: 1 link to a folder is not entered, for example whole\n" in said
    assert [each.path.name for each in stretches.recognise([folder], [".md"])] == ["README.md"]
    assert "neither" not in capsys.readouterr().err
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone\.jsonl: is a link to a file that is missing\. Cure: "):
        stretches.recognise([folder])


def test_the_manifest_of_a_dataset_in_the_folder_is_no_document(tmp_path, capsys):
    write_jsonl(tmp_path / "a.json", ["x"])
    for ending in ("bin", "idx", "json"):
        (tmp_path / f"train_text_document.{ending}").write_text("{}")
    assert found_in([tmp_path]) == [["x"]]
    assert "3 files are neither" in capsys.readouterr().err


def test_a_folder_of_text_alone_needs_suffixes(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no \.jsonl or \.parquet file"):
        stretches.recognise([tmp_path])
    assert [each.kind for each in stretches.recognise([tmp_path / "a.txt"])] == ["text"]


@pytest.mark.parametrize("reads", [lambda root: stretches.recognise([root]), lambda root: list(debian_files(root)),
                                   lambda root: list(stdlib_files(root))], ids=["folder", "debian", "stdlib"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, reads):
    shut = tmp_path / "share/doc/shut"
    write_jsonl(shut / "a.jsonl", ["x"])
    write_jsonl(tmp_path / "share/doc/copyright", ["x"])
    write_jsonl(tmp_path / "a.py", ["x"])
    scandir = os.scandir

    def refuses(path):
        if os.fspath(path) == str(shut):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(DataError, match=r"share/doc/shut: cannot be read \(Permission denied\)\. Cure: "):
        reads(tmp_path)


def test_a_pipe_or_device_is_called_so(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), Path("/dev/stdin"), Path("/dev/fd/0")):
        with pytest.raises(DataError, match=f"{path}: is a pipe or device.*Cure: give a file"):
            stretches.recognise([path])


@pytest.mark.parametrize("name, content, what", [
    ("a.bz2", b"BZh9\x00", "ends in .bz2"), ("a.jsonl.xz", b"\xfd7zXZ", "ends in .xz"), ("a", b"text", "has no ending"),
    ("a.txt.gz", gzip.compress(b"text"), "ends in .txt.gz"), ("a.csv.zst", zstandard.compress(b"a,b"),
                                                                        "ends in .csv.zst")], ids=str.split(
    "bz2 xz none txt.gz csv.zst"))
def test_a_file_of_unknown_ending_that_is_no_jsonl_is_refused_by_its_ending(tmp_path, name, content, what):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{re.escape(f'{path}: {what}')} and holds no JSONL\. Cure: "):
        stretches.recognise([path])
    lines = b'\xef\xbb\xbf \n{"text": "x"}\n'
    path.write_bytes({".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(lines))
    assert [each.kind for each in stretches.recognise([path])] == ["jsonl"]


def test_a_zst_file_of_the_largest_window_is_read(tmp_path):
    how = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    with open(tmp_path / "a.jsonl.zst", "wb") as file:
        stream = zstandard.ZstdCompressor(compression_params=how).compressobj()
        file.write(stream.compress(b'{"text": "x"}\n') + stream.flush())
    assert found_in([tmp_path / "a.jsonl.zst"]) == [["x"]]
