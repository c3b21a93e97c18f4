"""The input of a corpus, cut into stretches that processes encode each by itself, and the documents of a stretch.

Where a stretch begins depends on the inputs alone, so any number of processes, killed and started again, come to the
same documents in the same order.
"""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_nca.data.compressed import COMPRESSED, TORN, decompressed
from megatron_nca.data.corpus import Bad, BadLine, bad_for_length, parse_line
from megatron_nca.data.parquet_rows import opened, rows
from megatron_nca.errors import DataError, explain

SMALLEST, LARGEST, AIMED_AT = 8 << 20, 256 << 20, 1000
"""Bytes of input in a stretch, and how many stretches are aimed at between these."""
LONGEST = 64 << 20
"""Bytes of a document, or of the line that holds it, above which it is bad: a tokenizer takes up to a hundred times as
much memory."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Input:
    """One file, and how its documents lie in it: "jsonl", "parquet", or "text" (the file is one document)."""

    path: Path
    kind: str

    @property
    def is_compressed(self) -> bool:
        return self.path.suffix in COMPRESSED


@dataclass(frozen=True)
class Stretch:
    """Part of one input, or several inputs that are a document each."""

    number: int
    inputs: tuple[Input, ...]
    start: int = 0
    """Of a plain JSONL file the byte, of a Parquet file the row group."""
    stop: int = 0
    content: bytes | None = None
    """The lines themselves where the file is compressed and has to be read from its beginning."""
    first_line: int | None = None
    """Of `content`, in its file, from 1."""


def recognise(paths: Sequence[Path], suffixes: Sequence[str] = ()) -> tuple[Input, ...]:
    """The files behind `paths`, folders entered in the order of their names.

    In a folder: what ends in one of `suffixes`, each file a document of text, or without them all JSONL and Parquet
    files. Raises DataError for what is missing, of no known kind, or a folder without such files.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(child for child in path.rglob("*") if child.is_file() and not child.is_symlink())
            inside = [child for child in inside if (child.suffix in suffixes if suffixes else _kind(child))]
            if not inside:
                wanted = " or ".join(suffixes or (".jsonl", ".parquet"))
                raise DataError(explain("--input", str(path), f"holds no {wanted} file.", "check the folder."))
            found += [Input(child, "text" if suffixes else _kind(child)) for child in inside]
        elif not path.is_file():
            raise DataError(f"{path}: is missing. Cure: check --input.")
        else:
            found.append(Input(path, "text" if path.suffix in suffixes else _kind(path) or "jsonl"))
    return tuple(found)


def _kind(path: Path) -> str | None:
    inner = Path(path.stem) if path.suffix in COMPRESSED else path
    if inner.suffix in (".jsonl", ".json", ".ndjson"):
        return "jsonl"
    if path.suffix == ".parquet":
        return "parquet"
    return "text" if path.suffix in (".txt", ".md", ".rst") else None


def size_of_stretches(inputs: Sequence[Input]) -> int:
    """Bytes of input in a stretch, a function of the inputs' sizes."""
    return min(max(sum(each.path.stat().st_size for each in inputs) // AIMED_AT, SMALLEST), LARGEST)


def cut(inputs: Sequence[Input], size: int, longest: int = LONGEST) -> Iterator[Stretch]:
    """All stretches of about `size` bytes, in order; `longest` as of `documents`. Raises DataError for a compressed
    file that is cut off."""
    number, texts, held = 0, [], 0
    for each in inputs:
        if each.kind == "text":
            texts.append(each)
            held += each.path.stat().st_size
            if held < size:
                continue
        if texts:
            yield Stretch(number, tuple(texts))
            number, texts, held = number + 1, [], 0
        if each.kind != "text":
            for stretch in _cut_one(each, size, number, longest):
                yield stretch
                number += 1
    if texts:
        yield Stretch(number, tuple(texts))


def _cut_one(each: Input, size: int, number: int, longest: int) -> Iterator[Stretch]:
    if each.kind == "parquet":
        groups = range(opened(each.path).num_row_groups)
        yield from (Stretch(number + group, (each,), group, group + 1) for group in groups)
    elif each.is_compressed:
        line = 1
        for offset, (content, lines) in enumerate(_blocks_of_lines(each.path, size, longest)):
            yield Stretch(number + offset, (each,), content=content, first_line=line)
            line += lines
    else:
        total = each.path.stat().st_size
        for offset, start in enumerate(range(0, total, size)):
            yield Stretch(number + offset, (each,), start, min(start + size, total))


def _blocks_of_lines(path: Path, size: int, longest: int) -> Iterator[tuple[bytes, int]]:
    """A compressed file as blocks of whole lines of about `size` bytes, and their numbers of lines. Of a line that is
    too long only the beginning is there, still too long."""
    with decompressed(path) as file:
        block, lines = bytearray(), 0
        try:
            while line := file.readline(longest + 2):
                block += line
                lines += 1
                if _pass_rest(file, line, longest):
                    block += b"\n"
                if len(block) >= size:
                    yield bytes(block), lines
                    block, lines = bytearray(), 0
        except TORN as error:
            raise DataError(f"{path}: is cut off or damaged ({error}). Cure: fetch it again.") from error
        if block:
            yield bytes(block), lines


def _pass_rest(file: BinaryIO, line: bytes, longest: int) -> int:
    """Of a line of which only the beginning was read, for it is too long: how many bytes it has more."""
    count = 0
    while len(line) > longest + 1 and not line.endswith(b"\n") and (more := file.readline(_BLOCK)):
        count += len(more)
        if more.endswith(b"\n"):
            break
    return count


def documents(stretch: Stretch, keys: Sequence[str], longest: int = LONGEST) -> Iterator[list[str] | Bad]:
    """The texts under `keys` of each document of a stretch, or what is wrong with it.

    Lines that begin in a stretch are its own. A document that is empty has empty texts. A line, file or row of more
    than `longest` bytes is bad.
    """
    if stretch.inputs[0].kind == "text":
        yield from (_whole_file(each.path, len(keys), longest) for each in stretch.inputs)
    elif stretch.inputs[0].kind == "parquet":
        yield from rows(stretch.inputs[0].path, range(stretch.start, stretch.stop), keys, longest)
    else:
        path = stretch.inputs[0].path
        for place, line in _lines(stretch, longest):
            if len(line) - line.endswith(b"\n") > longest:
                yield bad_for_length(f"{place()}: the line", longest, line)
                continue
            try:
                yield parse_line(path, 0, line, list(keys))
            except BadLine as error:
                yield Bad(error.kind, str(error).replace(f"{path}:0", place(), 1), line)


def _lines(stretch: Stretch, longest: int) -> Iterator[tuple["_Place", bytes]]:
    """Of a line that is too long the beginning."""
    path = stretch.inputs[0].path
    if stretch.content is not None:
        for number, line in enumerate(io.BytesIO(stretch.content), stretch.first_line):
            yield _Place(path, line=number), line
        return
    try:
        with open(path, "rb", buffering=_BLOCK) as file:
            position = stretch.start
            if position:  # the line at work there belongs to the stretch before, unless it just ended
                file.seek(position - 1)
                position += len(file.readline(stretch.stop - position + 1)) - 1
            while position < stretch.stop and (line := file.readline(longest + 2)):
                yield _Place(path, position), line
                position += len(line) + _pass_rest(file, line, longest)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Cure: check the path.") from error


@dataclass(frozen=True)
class _Place:
    """Where a line begins; its number is counted only when somebody asks."""

    path: Path
    byte: int = 0
    line: int | None = None

    def __call__(self) -> str:
        return f"{self.path}:{_line_at(self.path, self.byte) if self.line is None else self.line}"


_COUNTED: dict[Path, tuple[tuple[int, int, int], int, int]] = {}
"""Of a file which one it was, the last byte that was asked for, and its line: the next is counted on from there, since
a process goes through its stretches in their order."""


def _line_at(path: Path, byte: int) -> int:
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        which = (status.st_ino, status.st_size, status.st_mtime_ns)
        known, position, number = _COUNTED.get(path, (which, 0, 1))
        if known != which or position > byte:
            position, number = 0, 1
        file.seek(position)
        while block := file.read(min(byte - position, _BLOCK)):
            number, position = number + block.count(b"\n"), position + len(block)
    _COUNTED[path] = which, position, number
    return number


def _whole_file(path: Path, keys: int, longest: int) -> list[str] | Bad:
    try:
        if path.stat().st_size > longest:
            return bad_for_length(f"{path}: it", longest, b"")
        content = path.read_bytes()
        return [content.decode("utf-8")] * keys
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Cure: check the path.") from error
    except UnicodeDecodeError as error:
        return Bad("not UTF-8", f"{path}: is not UTF-8 ({error.reason} at byte {error.start}).", content)
