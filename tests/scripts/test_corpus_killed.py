"""data_tools/preprocess_corpus.py killed thirty times at random moments makes the bytes of an unbroken run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from megatron_nca import files

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "tests/golden/tokenizers/sentencepiece.model"
KILLS = 30
ENDINGS = ("bin", "idx", "json")


def start(source, prefix, workers):
    command = [sys.executable, ROOT / "data_tools/preprocess_corpus.py", "--input", source, "--output-prefix", prefix,
               "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", TOKENIZER, "--append-eod",
               "--workers", workers, "--on-bad-line", "quarantine"]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)


def digests(prefix):
    paths = [Path(f"{prefix}_text_document.{ending}") for ending in ENDINGS]
    return [files.sha256(path) for path in [*paths, Path(f"{prefix}_rejected.jsonl")]]


def write_input(path):
    """145 MB of the standard library's source, with a bad line here and there."""
    sources = sorted(Path(os.__file__).parent.glob("**/*.py"))[:900]
    with open(path, "wb") as file:
        for number in list(range(29)) * 5:
            text = b"\n".join(source.read_bytes() for source in sources[number::29]).decode("utf-8", "replace")
            for at in range(0, min(len(text), 1_000_000), 20_000):
                file.write(json.dumps({"text": text[at : at + 20_000]}).encode() + b"\n")
            file.write(b'{"text": "cut\n')


def moment(folder):
    """How far a killed run had come, by what it left."""
    if any(folder.glob("out_text_document.*")):
        return "between the names"
    return "encoding and joining" if any(folder.glob("out.parts/0*")) else "start"


@pytest.mark.long
def test_killed_thirty_times_the_bytes_are_the_same(tmp_path):
    source = tmp_path / "in.jsonl"
    write_input(source)
    expected = []
    for workers in (1, 3, 2):
        begin = time.monotonic()
        process = start(source, tmp_path / f"whole{workers}", workers)
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        expected.append(digests(tmp_path / f"whole{workers}"))
    longest = time.monotonic() - begin  # of two workers, on a machine as busy as it is
    assert expected[0] == expected[1] == expected[2]
    folder, chance = tmp_path / "killed", random.Random(7)
    folder.mkdir()
    kills, whole, moments = 0, 0, Counter()
    while kills < KILLS or whole == 0:
        process = start(source, folder / "out", 2)
        try:
            _, err = process.communicate(timeout=chance.uniform(0.1, longest) if kills < KILLS else 400)
            assert process.returncode == 0, err
            assert digests(folder / "out") == expected[0]
            assert not [path.name for path in folder.iterdir() if "parts" in path.name or path.name.startswith(".")]
            whole += 1
            for path in folder.iterdir():
                path.unlink()
        except subprocess.TimeoutExpired:
            moments[moment(folder)] += 1
            alone = kills % 2  # the workers of a parent that is killed alone live on for a while
            (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
            process.communicate()
            time.sleep(chance.uniform(0, 0.5))
            kills += 1
    print(f"\n{kills} kills in {whole} whole runs, found at: {dict(moments)}")
    assert moments["encoding and joining"] >= 10
