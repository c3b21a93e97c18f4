"""What data/stretches.py takes for input, and what it says of files it cannot take."""

import errno
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from megatron_nca.data import stretches
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
    column = column.dictionary_encode() if pyarrow.types.is_dictionary(kind) else column
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
