"""JSONL files of hostile lines, from the file to the tokens, against an oracle of json and the tokenizer alone."""

import gzip
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import sentencepiece
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from megatron_nca.data import bad_lines, stretches
from megatron_nca.data.encoders import GPT2_BPE, SENTENCEPIECE, TokenizerFiles
from megatron_nca.data.encoding import Preprocessing
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.preprocess import preprocess
from megatron_nca.errors import DataError

GOLDEN = Path(__file__).resolve().parents[1] / "golden/tokenizers"
MODEL, VOCAB, MERGES = GOLDEN / "sentencepiece.model", GOLDEN / "vocab.json", GOLDEN / "merges.txt"
TOKENIZERS = [TokenizerFiles(type=SENTENCEPIECE, model=MODEL),
              TokenizerFiles(type=GPT2_BPE, vocab_file=VOCAB, merge_file=MERGES)]
EOD = (1, 0)
SNIPPETS = ["def f(x):\n", "\treturn self.x ", "  ", " ", "\r\n", "\n\n", "a", "1234", "__init__", "it's", "\u2028",
            "\x85", "\x00", "\x1c", "\u2581", "\u2581\u2581a", "<|endoftext|>", "</s>", "<unk>", "<0x0A>", "\ufeff",
            "\u00a0", "\U0001f468\u200d\U0001f469", "e\u0301\u0301", "\u4e2d\u6587", "\u0130", "\u00df", "\ufffd",
            "\ufdd0", "\U0010ffff", "{\"text\": \"x\"}", "\\", "\"", "/", "=" * 50, " " * 40, "0" * 30,
            "\u0661\u00b2\u2167"]
WHOLE_LINES = [b"", b" ", b"\r", b"\x00", b"{", b"}", b"[]", b"null", b"1", b"\"x\"", b"{}", b"{'text': 'x'}",
               b"\xff\xfe", b"\xef\xbb\xbf", b"{\"text\": \"a\"}{\"text\": \"b\"}", b"{\"text\": \"a\",}", b"NaN", b"-",
               b"{\"text\"",
               b"{\"text\": \"\xed\xa0\x80\"}", b"{\"text\": \"a\", \"b\": \"\xed\xa0\x80\"}",
               b"{\"text\": \"\\ud800\"}",
               b"{\"text\": \"\\udc00\\ud800\"}", b"{\"text\": \"\xc0\x80\"}", b"{\"text\": \"\xf5\"}",
               b"{\"text\": \"a\x0bb\"}", b"{\"text\": 1}", b"{\"text\": [\"x\"]}",
               b"{\"text\": null}", b"{\"text\": true}",
               b"{\"Text\": \"x\"}", b"{\"text\": \"x\", \"n\": " + b"9" * 5000 + b"}", b"[" * 3000,
               "{\"text\": \"x\"}".encode("utf-16"), "{\"text\": \"x\"}".encode("utf-16-le"),
               "{\"text\": \"x\"}".encode("utf-32"), b"{\"text\": \"\\x41\"}", b"{\"text\": \"tab\there\"}"]


def good_line(chance: random.Random) -> bytes:
    def text() -> str:
        if chance.random() < 0.1:
            return "".join(chr(chance.choice((chance.randrange(0xd800), chance.randrange(0xe000, 0x110000))))
                           for _ in range(8))
        return "".join(chance.choice(SNIPPETS) for _ in range(chance.randrange(8)))

    record = {"text": text()}
    if chance.random() < 0.8:
        record["title"] = text()
    if chance.random() < 0.2:
        record = {"n": chance.choice([1, None, float("nan"), 1e400, {"text": 5}, ["text"]]), **record, "\ud800": 1}
    line = json.dumps(record, ensure_ascii=chance.random() < 0.5 or "\ud800" in record).encode()
    if chance.random() < 0.1:
        line = b" \t" + line[:-1] + b", \"text\": \"last one counts\"} \r"
    return b"\xef\xbb\xbf" + line if chance.random() < 0.02 else line


def hostile(chance: random.Random) -> bytes:
    """A file of up to a dozen lines, some of them bad, sometimes with bytes changed anywhere."""
    badness = chance.choice((0, 0, 0.1, 0.5))
    lines = [chance.choice(WHOLE_LINES) if chance.random() < badness else good_line(chance)
             for _ in range(chance.randrange(13))]
    content = bytearray(b"\n".join(lines) + b"\n" * chance.randrange(2))
    while content and chance.random() < 0.15:
        at = chance.randrange(len(content))
        content[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    return bytes(content)


def texts_of(line: bytes, keys: tuple[str, ...]) -> list[str] | None:
    """None: the line is bad."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
        texts = [record[key] for key in keys]
        for text in texts:
            text.encode("utf-8")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return texts


class Campaign:
    def __init__(self, folder: Path) -> None:
        self.folder, self.outcome = folder, Counter()
        processor = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
        bpe = ByteLevelBPETokenizer(json.loads(VOCAB.read_text()), [
            tuple(line.split(" ")) for line in MERGES.read_text().splitlines()[1:]])
        self.encode = [processor.encode, lambda text: bpe.encode(text).ids]
        self.loaded = {chosen: chosen.load() for chosen in TOKENIZERS}

    def one(self, seed: str) -> None:
        chance = random.Random(seed)
        content, which, eod = hostile(chance), chance.randrange(2), chance.random() < 0.5
        keys, policy = chance.choice((("text",), ("title",), ("text", "title"))), chance.choice(bad_lines.POLICIES)
        name = "a.jsonl" + chance.choice(("", "", "", "", ".gz", ".zst"))
        packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(name[7:], bytes)(content)
        torn = name != "a.jsonl" and chance.random() < 0.2
        path = self.folder / name
        for left in self.folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        path.write_bytes(packed[: chance.randrange(len(packed))] if torn else packed)
        with mock.patch.object(stretches, "SMALLEST", chance.choice((200, 1 << 20, 1 << 20))), \
                mock.patch.object(TokenizerFiles, "load", lambda chosen: self.loaded[chosen]):
            self.judge(path, content, torn, which, Preprocessing(
                inputs=stretches.recognise([path]), tokenizer=TOKENIZERS[which], json_keys=keys, append_eod=eod,
                on_bad_line=policy))

    def judge(self, path: Path, content: bytes, torn: bool, which: int, chosen: Preprocessing) -> None:
        lines = content.split(b"\n")[: None if content[-1:] not in (b"\n", b"") else -1]
        found = [texts_of(line, chosen.json_keys) for line in lines]
        bad = [number for number, texts in enumerate(found) if texts is None]
        expected = []
        for key in range(len(chosen.json_keys)):
            tokens = [self.encode[which](texts[key]) for texts in found if texts is not None]
            expected.append([ids + [EOD[which]] * chosen.append_eod for ids in tokens if ids])
        try:
            manifests = preprocess(chosen, self.folder / "out")
        except DataError as error:
            stopped = chosen.on_bad_line == "stop" and bool(bad)
            assert torn or stopped or not all(expected), error
            assert torn or not stopped or str(error).startswith(f"{path}:{bad[0] + 1}: "), (error, bad)
            assert not [left.name for left in self.folder.iterdir() if left.name.startswith("out_")]
            self.outcome["torn" if torn else "stopped" if stopped else "nothing in it"] += 1
            return
        assert not torn and (not bad or chosen.on_bad_line != "stop")
        for key, manifest, documents in zip(chosen.json_keys, manifests, expected, strict=True):
            reader = IndexedReader(self.folder / f"out_{key}_document")
            assert [reader[i].tolist() for i in range(len(reader))] == documents
            origin = manifest.origin
            assert origin["left_out_lines"] == len(bad)
            assert manifest.documents + origin["empty_documents"] + origin["left_out_lines"] == len(lines)
        if chosen.on_bad_line == "quarantine":
            kept = [json.loads(line) for line in (self.folder / "out_rejected.jsonl").read_text().splitlines()]
            assert [line["reason"].startswith(f"{path}:{number + 1}: ") for line, number in
                    zip(kept, bad, strict=True)] == [True] * len(bad)
            for line, number in zip(kept, bad, strict=True):
                assert line["raw"].rstrip("\n") == lines[number].decode("utf-8", "backslashreplace").rstrip("\n")
        self.outcome["with lines left out" if bad else "whole"] += 1


def campaign(examples: int, which: int = 0) -> Counter:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    run = Campaign(folder)

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(st.integers(0, 2**64 - 1))
    def each(seed):
        run.one(f"{which} {seed}")

    try:
        each()
    finally:
        shutil.rmtree(folder)
    return run.outcome


KINDS = {"torn", "stopped", "nothing in it", "whole", "with lines left out"}


def test_hostile_files_lose_nothing_in_silence(capsys):
    assert set(campaign(100)) == KINDS


@pytest.mark.long
@pytest.mark.parametrize("which", range(1, 5))
def test_of_a_hundred_thousand_hostile_files_none_loses_anything_in_silence(capsys, which):
    """In four parts, which processes can share."""
    outcome = campaign(25_000, which)
    with capsys.disabled():
        print(f"\n{dict(outcome)}")
    assert set(outcome) == KINDS and sum(outcome.values()) >= 25_000
