"""Text as JSONL: the Python standard library's own source, the split by hash, and errors with file and line."""

import contextlib
import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from megatron_nca import files
from megatron_nca.data.given import files_below
from megatron_nca.errors import DataError, explain

PARTS = ("train", "validation")
FOREIGN_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}
"""Folders below the standard library that hold other packages or no source."""


@dataclass
class SplitCount:
    """What went into the two parts, and what was left out and why."""

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    text_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    undecodable: int = 0
    duplicates: int = 0
    empty: int = 0

    def describe(self) -> str:
        """Sentences for the user."""
        parts = "; ".join(f"{part}: {self.documents[part]:,} documents, {self.text_bytes[part]:,} bytes of text"
                          for part in PARTS)
        return f"{parts}. Left out: {self.duplicates} duplicates, {self.empty} empty, {self.undecodable} not UTF-8."


def is_held_out(key: str, share: float) -> bool:
    """Whether the document of this key belongs to validation: its hash, as a number in [0, 1), lies below `share`."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") < share * 2**64


def stdlib_files(root: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """The .py files of the running Python's standard library: (path below it, content), sorted by path.

    Links are left out, since they lead to files of the machine's own. Raises DataError if the folder holds none.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    there = files_below(root, lambda path: path.name in FOREIGN_FOLDERS)[0] if root.is_dir() else []
    there = [path for path in there if path.suffix == ".py" and not path.is_symlink()]
    paths = {path.relative_to(root).as_posix(): path for path in there}
    names = sorted(paths)
    if not names:
        raise DataError(f"{root}: holds no .py file, so there is no standard library to read. "
                        "Cure: give a text with --input.")
    for name in names:
        try:
            yield name, paths[name].read_bytes()
        except OSError as error:
            raise DataError(f"{paths[name]}: cannot be read ({error.strerror}). "
                            "Cure: repair the Python installation.") from error


def split_stdlib(output: Path, held_out_share: float, root: Path | None = None) -> SplitCount:
    """`split_files` of the standard library. Raises DataError."""
    return split_files(stdlib_files(root), output, held_out_share)


def split_files(found: Iterable[tuple[str, bytes]], output: Path, held_out_share: float) -> SplitCount:
    """Write OUTPUT/{train,validation}.jsonl with {"text", "path"} of files, given as path and content.

    Held out by hash of the path. Of files with equal content only the first is kept, or a held-out text could be
    trained on.
    Raises DataError.
    """
    count, seen = SplitCount(), set()
    with _two_parts(output, held_out_share, count) as write:
        for name, content in found:
            digest = hashlib.sha256(content).digest()
            if not content.strip():
                count.empty += 1
            elif digest in seen:
                count.duplicates += 1
            else:
                seen.add(digest)
                try:
                    text = content.decode("utf-8")
                except UnicodeDecodeError:
                    count.undecodable += 1
                    continue
                line = files.json_text({"text": text, "path": name}).encode() + b"\n"
                write(name, line, len(content))
    return count


def split_jsonl(source: Path, output: Path, held_out_share: float, key: str) -> SplitCount:
    """Write the lines of a JSONL file, unchanged, to OUTPUT/{train,validation}.jsonl; held out by hash of the text.

    Equal texts fall into the same part. Raises DataError naming file and line of what is not a JSON object with `key`.
    """
    count = SplitCount()
    for part in PARTS:
        if (output / f"{part}.jsonl").resolve() == source.resolve():
            raise DataError(explain("--output-dir", str(output), f"would overwrite the input {source}.",
                                    "choose another folder."))
    with _two_parts(output, held_out_share, count) as write:
        for number, line in read_lines(source):
            text = parse_line(source, number, line, [key])[0]
            if text.strip():
                write(text, line.rstrip(b"\r\n") + b"\n", len(text.encode()))
            else:
                count.empty += 1
    return count


@contextlib.contextmanager
def _two_parts(output: Path, share: float, count: SplitCount):
    """Yield write(key, line, text_bytes). Both files appear when all is written, validation.jsonl last."""
    if not 0 < share < 1:
        raise DataError(explain("--held-out-share", share, "must lie between 0 and 1.", "0.05 is usual."))
    train, validation = (output / f"{part}.jsonl" for part in PARTS)
    files.refuse_folder(validation)  # or train.jsonl would appear alone
    with files.publish(validation) as validation_aside, files.publish(train) as train_aside:
        with open(train_aside, "wb") as train_file, open(validation_aside, "wb") as validation_file:
            handles = {"train": train_file, "validation": validation_file}

            def write(key: str, line: bytes, text_bytes: int) -> None:
                part = "validation" if is_held_out(key, share) else "train"
                handles[part].write(line)
                count.documents[part] += 1
                count.text_bytes[part] += text_bytes

            yield write
        for part in PARTS:
            if not count.documents[part]:
                raise DataError(explain("--held-out-share", share, f"leaves the {part} part without a document, of "
                                        f"{sum(count.documents.values())}.", "give more documents or another share."))


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines of a file with their numbers from 1. Raises DataError if it is missing, unreadable or empty."""
    number = 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Cure: check the path.") from error
    if number == 0:
        raise DataError(f"{path}: is empty. Cure: give a file with one JSON object a line.")


def utf8_bytes(text: str) -> int:
    """How long a text is in UTF-8. Raises UnicodeEncodeError for half of a surrogate pair."""
    return len(text) if text.isascii() else len(text.encode())  # Python knows of a text whether it is ASCII


class BadLine(DataError):
    """A line that holds no document; `kind` says in a few words why, for counting."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple:
        return BadLine, (self.kind, str(self))


def _parsed(line: bytes) -> object:
    """What JSON in UTF-8 says. Raises ValueError, RecursionError.

    orjson takes a third of json's time and refuses more (NaN, a mark of byte order, halves of surrogate pairs in other
    fields): what it refuses is json's to judge.
    """
    with contextlib.suppress(orjson.JSONDecodeError):
        return orjson.loads(line)
    return json.loads(line.decode("utf-8-sig"))  # from bytes, json takes halves of surrogate pairs and UTF-16 too


def parse_line(path: Path, number: int, line: bytes, keys: list[str]) -> list[str]:
    """The texts under `keys` of one JSONL line. Raises BadLine naming file and line."""
    where = f"{path}:{number}"
    try:
        record = _parsed(line)
    except ValueError as error:  # both of JSON and of UTF-8
        kind = "not UTF-8" if isinstance(error, UnicodeError) else "not JSON"
        raise BadLine(kind, f"{where}: is not JSON ({error}). Cure: one JSON object a line, in UTF-8.") from error
    except RecursionError as error:
        raise BadLine("not JSON", f"{where}: is nested too deeply. Cure: one flat JSON object a line.") from error
    if not isinstance(record, dict):
        raise BadLine("not an object", f"{where}: is a {type(record).__name__}, not an object. "
                      "Cure: one JSON object a line.")
    for key in keys:
        if key not in record:
            there = ", ".join(map(repr, record)) or "none"
            raise BadLine("a key is missing", f"{where}: has no key {key!r}; it has {there}. "
                          "Cure: name the right one with --json-keys.")
        if not isinstance(record[key], str):
            what = type(record[key]).__name__
            raise BadLine("not text", f"{where}: the value of {key!r} is {what}, not text. "
                          "Cure: put text there.")
        try:
            utf8_bytes(record[key])
        except UnicodeEncodeError as error:
            raise BadLine("half a surrogate pair", f"{where}: the text of {key!r} holds half of a surrogate pair "
                          f"({error.reason}). Cure: write the text as UTF-8.") from error
    return [record[key] for key in keys]


@dataclass(frozen=True)
class Bad:
    """A document that could not be taken: why in a few words, a sentence with file and place, and its bytes."""

    kind: str
    reason: str
    raw: bytes


def bad_for_length(what: str, longest: int, content: bytes) -> Bad:
    return Bad("too long", f"{what} is longer than {longest:,} bytes. Cure: take it out. preprocess_corpus.py has "
               "--longest-document for more, which takes more memory, and --on-bad-line skip.", content[:1000])
