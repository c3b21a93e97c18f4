"""Mutated triples of .bin, .idx and .json: no crash, and what `verify` passes reads as it was written."""

import json
import os
import random
import shutil
import struct
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_nca.data.indexed import DTYPES, IndexedReader, IndexedWriter
from megatron_nca.data.manifest import part
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.data.verify import verify
from megatron_nca.errors import DataError

ENDINGS = ("bin", "idx", "json")
NUMBERS = [0, 1, 2, -1, 255, 2**15, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63)]
VALUES = [None, True, "", "x", [], {}, [[]], 0.5, float("nan"), float("inf"), 10**30, *NUMBERS]
DEEP = "[" * 100_000
"""More than json takes."""


def originals() -> list[dict[str, bytes]]:
    """Small datasets of both types of tokens, with and without a layout; the last two have no manifest."""
    layout = Trajectory(sequence_length=4, document_tokens=6, frame_tokens=2, first_scored_token=2)
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (vocabulary, shape) in enumerate([(100, None), (70_000, None), (10, layout)]):
            prefix = Path(folder) / str(number)
            with IndexedWriter(prefix, vocabulary, shape) as writer:
                for length in (3, 1, 7, 4) if shape is None else (6, 6, 6):
                    writer.add_document(np.arange(length) * (vocabulary // 10) + 1)
                kind = "corpus" if shape is None else "nca"
                writer.finish({"kind": kind, "vocab_size": vocabulary, "origin": {"inputs": [{"name": "a", "n": 1}]}})
            made.append({ending: part(prefix, ending).read_bytes() for ending in ENDINGS})
    return made + [{ending: each[ending] for ending in ("bin", "idx")} for each in made[:2]]


class Mutator:
    def __init__(self, seed: int, bases: list[dict[str, bytes]]) -> None:
        self.random, self.bases = random.Random(seed), bases
        self.ways = [self.flip, self.flip, self.byte, self.cut, self.grow, self.number, self.number, self.splice,
                     self.swap, self.repeat]

    def __call__(self, base: dict[str, bytes]) -> dict[str, bytes]:
        """Some of the files changed in one to three ways; those that stay as they are are not named."""
        changed = {}
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            ending = self.random.choice(list(base))
            content = bytearray(changed.get(ending, base[ending]))
            way = self.field if ending == "json" and self.random.random() < 0.7 else self.random.choice(self.ways)
            changed[ending] = bytes(way(content, ending))
        return changed

    def at(self, content: bytearray) -> int:
        return self.random.randrange(len(content)) if content else 0

    def flip(self, content, ending):
        if content:
            content[self.at(content)] ^= 1 << self.random.randrange(8)
        return content

    def byte(self, content, ending):
        content[self.at(content) : self.at(content)] = bytes([self.random.randrange(256)])
        return content

    def cut(self, content, ending):
        return content[: self.at(content)]

    def grow(self, content, ending):
        return content + self.random.randbytes(self.random.randrange(1, 25))

    def number(self, content, ending):
        """A number where the header has one, or anywhere."""
        code, size = self.random.choice(["<i4", "<q8", "<H2"])[:2], 0
        size = struct.calcsize(code)
        at = self.random.choice([9, 17, 18, 26, 34, 38, self.at(content)])
        content[at : at + size] = (self.random.choice(NUMBERS) % 256**size).to_bytes(size, "little")
        return content

    def splice(self, content, ending):
        """The beginning or the end of the same file of another dataset."""
        other, at = self.random.choice(self.bases).get(ending, b""), self.at(content)
        return self.random.choice([other[:at] + content[at:], content[:at] + other[at:], bytearray(other)])

    def swap(self, content, ending):
        """Two stretches of eight or four bytes."""
        size = self.random.choice((4, 8))
        one, two = sorted((self.at(content), self.at(content)))
        return content[:one] + content[two : two + size] + content[one + size : two] + content[one : one + size] \
            + content[two + size :]

    def repeat(self, content, ending):
        return content + content if self.random.random() < 0.5 else content[self.at(content) :]

    def field(self, content, ending):
        """A value of the manifest replaced, removed, swapped or doubled."""
        try:
            values = json.loads(content)
            holders = [holder for holder in walk(values) if holder]
            holder, other = self.random.choice(holders), self.random.choice(holders)
        except (ValueError, IndexError, RecursionError):
            return content
        name, there = self.random.choice(list(holder)), self.random.choice(list(other))
        way = self.random.randrange(5)
        if way == 0:
            del holder[name]
        elif way == 1:
            holder[name], other[there] = other[there], holder[name]
        elif way == 2 and isinstance(holder[name], int):
            holder[name] += self.random.choice((-1, 1, 2**40))
        else:
            holder[name] = self.random.choice(VALUES)
        try:
            text = json.dumps(values)
        except (ValueError, RecursionError):  # a record swapped into itself
            return content
        if self.random.random() < 0.01:  # what json itself refuses
            text = text.replace("1", self.random.choice([DEEP, "9" * 5000]), 1)
        return text.encode()


def walk(values: object) -> list[dict]:
    found = [values] if isinstance(values, dict) else []
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        found += walk(value)
    return found


def sequences(content: dict[str, bytes]) -> list[list[int]]:
    """What .bin and .idx hold, read without the reader."""
    _, _, code, count, _ = struct.unpack_from("<9sQBQQ", content["idx"])
    lengths = struct.unpack_from(f"<{count}i", content["idx"], 34)
    offsets = struct.unpack_from(f"<{count}q", content["idx"], 34 + 4 * count)
    return [np.frombuffer(content["bin"], DTYPES[code], length, offset).tolist() if length else []
            for length, offset in zip(lengths, offsets, strict=True)]


def fuzz(number: int, seed: int) -> Counter:
    """Mutate `number` triples; returns how many were refused and passed."""
    bases, outcome = originals(), Counter()
    mutate = Mutator(seed, bases)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        prefixes = [folder / str(index) / "x" for index in range(len(bases))]
        for prefix, base in zip(prefixes, bases, strict=True):
            prefix.parent.mkdir()
            for ending, content in base.items():
                part(prefix, ending).write_bytes(content)
        for index in range(number):
            base, prefix = bases[index % len(bases)], prefixes[index % len(bases)]
            changed = mutate(base)
            for ending, content in changed.items():
                part(prefix, ending).write_bytes(content)
            outcome[judge(prefix, base, {**base, **changed}, index)] += 1
            for ending in changed:
                part(prefix, ending).write_bytes(base[ending])
    finally:
        shutil.rmtree(folder)
    return outcome


def judge(prefix: Path, base: dict[str, bytes], content: dict[str, bytes], index: int) -> str:
    try:
        said = verify(prefix)
    except DataError:
        read_if_it_opens(prefix)
        return "refused"
    except BaseException as error:
        raise AssertionError(f"triple {index}: {error!r}; {content}") from error
    reader = IndexedReader(prefix)
    read = [reader[i].tolist() for i in range(len(reader))]
    assert read == sequences(content), (index, said)
    if "json" in content:
        assert read == sequences(base), (index, said)
        return "passed with a manifest"
    tokens = [token for sequence in read for token in sequence]
    assert reader.tokens == len(tokens) and f"ids {min(tokens)}..{max(tokens)}." in said and min(tokens) >= 0
    return "passed without"


def read_if_it_opens(prefix: Path) -> None:
    """What `verify` refuses for its tokens or manifest may open; then every sequence can be read."""
    try:
        reader = IndexedReader(prefix)
    except DataError:
        return
    assert sum(len(reader[i]) for i in range(len(reader))) == reader.tokens


def test_no_mutated_triple_crashes_or_reads_wrong():
    outcome = fuzz(500, 1)
    assert outcome["refused"] > 250 and outcome["passed with a manifest"] and outcome["passed without"]


@pytest.mark.long
def test_of_a_million_mutated_triples_none_crashes_or_reads_wrong():
    outcome = fuzz(1_000_000, 2)
    print(f"\n{dict(outcome)}")
    assert sum(outcome.values()) == 1_000_000
