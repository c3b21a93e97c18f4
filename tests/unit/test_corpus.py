"""data/corpus.py: what is collected, how it is split, and how bad input is named."""

import gzip
import json

import pytest

from megatron_nca.data.corpus import is_held_out, parse_line, read_lines, split_jsonl, split_stdlib, stdlib_files
from megatron_nca.data.debian import debian_files
from megatron_nca.errors import DataError


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "lib"
    for number in range(60):
        path = root / f"package{number % 3}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"def f():\r\n\treturn {number}  # é\n".encode())
    (root / "copy.py").write_bytes((root / "package0" / "module0.py").read_bytes())
    (root / "latin.py").write_bytes(b"# \xe9\n")
    (root / "empty.py").write_bytes(b"\n")
    for foreign in ("site-packages", "package0/__pycache__", "dist-packages"):
        (root / foreign).mkdir(parents=True)
        (root / foreign / "foreign.py").write_text("foreign = 1")
    (root / "link.py").symlink_to(root / "package1" / "module1.py")
    return root


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_library_is_split_whole_and_without_copies(library, tmp_path):
    count = split_stdlib(tmp_path / "out", 0.2, library)
    train, validation = read(tmp_path / "out" / "train.jsonl"), read(tmp_path / "out" / "validation.jsonl")
    assert (count.undecodable, count.duplicates, count.empty) == (1, 1, 1)
    assert count.documents == {"train": len(train), "validation": len(validation)}
    assert len(train) + len(validation) == 60 and 4 <= len(validation) <= 20
    assert all(is_held_out(record["path"], 0.2) for record in validation)
    assert not any(is_held_out(record["path"], 0.2) for record in train)
    assert [record["path"] for record in train] == sorted(record["path"] for record in train)
    assert not any("foreign" in record["text"] for record in train + validation)
    for record in train + validation:
        if record["path"] != "copy.py":
            assert record["text"].encode() == (library / record["path"]).read_bytes()
    assert "1 not UTF-8" in count.describe()


def test_the_split_depends_on_the_path_below_the_library_only(library, tmp_path):
    split_stdlib(tmp_path / "a", 0.2, library)
    library.rename(tmp_path / "elsewhere")
    split_stdlib(tmp_path / "b", 0.2, tmp_path / "elsewhere")
    for part in ("train", "validation"):
        assert (tmp_path / "a" / f"{part}.jsonl").read_bytes() == (tmp_path / "b" / f"{part}.jsonl").read_bytes()


def test_the_running_pythons_library_is_found():
    names = [name for name, _ in stdlib_files()]
    assert len(names) > 300 and "json/decoder.py" in names
    assert not any("site-packages" in name for name in names)


def test_the_held_out_share_is_met():
    keys = [f"package/module{i}.py" for i in range(20_000)]
    for share in (0.02, 0.05, 0.5):
        assert abs(sum(is_held_out(key, share) for key in keys) / len(keys) - share) < 0.01
    assert {key for key in keys if is_held_out(key, 0.02)} < {key for key in keys if is_held_out(key, 0.05)}


def test_an_existing_file_is_split_line_by_line(tmp_path):
    lines = [json.dumps({"body": f"text {i}\n", "id": i}, indent=None) for i in range(200)]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, lines[0], '{"body": " "}']))  # no newline at the end
    count = split_jsonl(tmp_path / "in.jsonl", tmp_path, 0.1, key="body")
    out = {part: (tmp_path / f"{part}.jsonl").read_text().splitlines() for part in ("train", "validation")}
    assert sorted(out["train"] + out["validation"]) == sorted([*lines, lines[0]])
    assert set(out["train"]).isdisjoint(out["validation"]) and len(out["validation"]) > 5
    assert count.empty == 1
    with pytest.raises(DataError, match="overwrite the input"):
        split_jsonl(tmp_path / "train.jsonl", tmp_path, 0.1, key="body")


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan"), 1e-9, 1 - 1e-9])
def test_a_share_that_leaves_a_part_empty_is_refused_and_leaves_nothing(library, tmp_path, share):
    with pytest.raises(DataError, match="--held-out-share"):
        split_stdlib(tmp_path / "out", share, library)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_folder_without_source_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.py file"):
        split_stdlib(tmp_path / "out", 0.1, tmp_path)


@pytest.mark.parametrize(("line", "what"), [
    (b"", "is not JSON"),
    (b"{'text': 1}", "is not JSON"),
    (b'{"text": "\xff"}', "is not JSON"),
    (b"[" * 100_000, "nested"),
    (b"[1]", "is a list"),
    (b'{"body": "x", "n": 1}', "has no key 'text'; it has 'body', 'n'"),
    (b'{"text": null}', "is NoneType, not text"),
    (b'{"text": "\\ud800"}', "surrogate"),
])
def test_a_bad_line_is_named_with_file_and_line(tmp_path, line, what):
    with pytest.raises(DataError, match=what) as caught:
        parse_line(tmp_path / "a.jsonl", 17, line, ["text"])
    assert "a.jsonl:17: " in str(caught.value) and "Cure:" in str(caught.value)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read"):
        list(read_lines(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match=r"a\.jsonl: is empty"):
        list(read_lines(tmp_path / "a.jsonl"))


def test_debian_documentation_is_read_and_changelogs_are_not(tmp_path):
    texts = {"share/doc/a/copyright": "free", "share/doc/a/README.Debian.gz": "read", "share/doc/b/x.html": "<p>",
             "share/doc/a/changelog.gz": "old", "share/man/man1/a.1.gz": ".TH A", "share/man/de/man1/a.1.gz": "nein"}
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    (tmp_path / "share/doc/c").symlink_to(tmp_path / "share/doc/a")
    expected = ["share/doc/a/README.Debian.gz", "share/doc/a/copyright", "share/man/man1/a.1.gz"]
    assert list(debian_files(tmp_path)) == [(name, texts[name].encode()) for name in expected]
    path = tmp_path / expected[0]
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataError, match=r"README\.Debian\.gz: is damaged"):
        list(debian_files(tmp_path))
    with pytest.raises(DataError, match="holds no documentation"):
        list(debian_files(tmp_path / "none"))
