"""The folder of a corpus's parts: one run at work in it, or shards beside each other."""

import dataclasses
import errno
import json
from pathlib import Path

import pytest

from megatron_nca import files
from megatron_nca.data import encoding, stretches, workers
from megatron_nca.data.encoders import SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.encoding import Preprocessing
from megatron_nca.data.manifest import part
from megatron_nca.data.parts import Parts
from megatron_nca.data.preprocess import make_share, merge, preprocess
from megatron_nca.errors import DataError

MODEL = Path(__file__).resolve().parents[1] / "golden/tokenizers/sentencepiece.model"


@pytest.fixture
def arguments(tmp_path):
    lines = [json.dumps({"text": f"def f{i}(x):\n\treturn x  + {i}\n" * (i % 7 + 1)}) for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return Preprocessing(inputs=stretches.recognise([tmp_path / "a.jsonl"]),
                         tokenizer=TokenizerFiles(type=SENTENCEPIECE, model=MODEL))


def test_a_run_beside_another_is_refused_and_leaves_its_parts(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(stretches, "SMALLEST", 10_000)
    preprocess(arguments, tmp_path / "whole")
    messages = []

    def meanwhile(settings, encoder, stretch, folder, real=encoding.encode_stretch):
        left = tmp_path / "out.parts/.000009.tmp"
        left.mkdir(exist_ok=True)
        for begin in () if stretch.number > 1 else (preprocess, merge, lambda *given: make_share(*given, 0, 2)):
            with pytest.raises(DataError, match=r"another run is at work here\. Cure: wait") as caught:
                begin(arguments, tmp_path / "out")
            messages.append(str(caught.value))
        assert left.exists()
        return real(settings, encoder, stretch, folder)

    with monkeypatch.context() as patched:
        patched.setattr(workers, "encode_stretch", meanwhile)
        preprocess(arguments, tmp_path / "out")
    assert len(messages) == 6 and set(messages) == {messages[0]} and str(tmp_path / "out.parts") in messages[0]
    for ending in ("bin", "idx"):
        one, other = (part(tmp_path / f"{run}_text_document", ending) for run in ("whole", "out"))
        assert one.read_bytes() == other.read_bytes()
    assert not (tmp_path / "out.parts").exists()


def test_a_call_that_finds_all_whole_leaves_the_parts_of_a_run_with_another_choice(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(stretches, "SMALLEST", 10_000)
    one, other = (dataclasses.replace(arguments, hold_out=(("test", share),)) for share in (0.2, 0.4))
    preprocess(one, tmp_path / "out")
    found = []

    def meanwhile(settings, encoder, stretch, folder, real=encoding.encode_stretch):
        if stretch.number < 2:
            found.append(preprocess(one, tmp_path / "out"))
        return real(settings, encoder, stretch, folder)

    Parts([tmp_path / "out.parts"], dict).close()  # unsigned: the next knows at once what its parts are of
    with monkeypatch.context() as patched:
        patched.setattr(workers, "encode_stretch", meanwhile)
        made = preprocess(other, tmp_path / "out")
    assert len(found) == 2 and made[1].documents > found[-1][1].documents
    assert not (tmp_path / "out.parts").exists()


def test_shards_work_beside_each_other_and_not_beside_a_merge(arguments, tmp_path):
    folder = [tmp_path / "out.parts"]
    with Parts(folder, lambda: {"of": 1}, shared=True), Parts(folder, lambda: {"of": 1}, shared=True):
        with pytest.raises(DataError, match="another run is at work"):
            Parts(folder, lambda: {"of": 1}, shared=True, alone=True)
        with pytest.raises(DataError, match="another run is at work"):
            Parts(folder, lambda: {"of": 1})
    with Parts(folder, lambda: {"of": 1}, shared=True, alone=True) as parts:
        parts.remove()
    assert not folder[0].exists()


def test_a_disk_without_locks_and_a_folder_of_the_users(arguments, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patched:
        patched.setattr(files.fcntl, "flock", no_locks)
        preprocess(arguments, tmp_path / "out")
    assert not (tmp_path / "out.parts").exists()
    (tmp_path / "new.parts").mkdir()
    (tmp_path / "new.parts/mine").write_text("mine")
    with pytest.raises(DataError, match="holds no parts of this dataset"):
        preprocess(arguments, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new.parts").iterdir()] == ["mine"]
