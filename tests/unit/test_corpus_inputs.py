"""What data/stretches.py takes for input, and what it says of files it cannot take."""

import json
from pathlib import Path

from megatron_nca.data import stretches
from megatron_nca.data.stretches import Bad


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
