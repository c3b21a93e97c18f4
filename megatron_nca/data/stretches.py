"""The input of a corpus, cut into stretches that processes encode each by itself, and the documents of a stretch.

Where a stretch begins depends on the inputs alone, so any number of processes, killed and started again, come to the
same documents in the same order.
"""

import codecs
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_nca.data.compressed import COMPRESSED, TORN, decompressed
from megatron_nca.data.corpus import Bad, BadLine, bad_for_length, parse_line
from megatron_nca.data.given import check_file, files_below, reading
from megatron_nca.data.parquet_rows import opened, rows
from megatron_nca.errors import DataError, explain

SMALLEST, LARGEST, AIMED_AT = 8 << 20, 256 << 20, 1000
"""Bytes of input in a stretch, and how many stretches are aimed at between these."""
LONGEST = 64 << 20
"""Bytes of a document, or of the line that holds it, above which it is bad: a tokenizer takes up to a hundred times as
much memory."""
_BLOCK = 1 << 20
LINES, TEXT = (".jsonl", ".json", ".ndjson"), (".txt", ".md", ".rst")
"""Endings, in any case; of a folder, files of text are taken only by --suffixes."""


@dataclass(frozen=True)
class Input:
    """One file, and how its documents lie in it: "jsonl", "parquet", or "text" (the file is one document)."""

    path: Path
    kind: str

    @property
    def is_compressed(self) -> bool:
        return self.path.suffix.lower() in COMPRESSED

    @property
    def size(self) -> int:
        """In bytes, as it lies on the disk."""
        with reading(self.path):
            return self.path.stat().st_size


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


def recognise(paths: Sequence[Path], suffixes: Sequence[str] = (),
              is_left_out: Callable[[Path], bool] = lambda path: False) -> tuple[Input, ...]:
    """The files behind `paths`, folders entered in the order of their names.

    In a folder: what ends in one of `suffixes`, each file a document of text, or without them all JSONL and Parquet
    files but the manifests of datasets; nothing for which `is_left_out`. What else is there goes to stderr. Raises
    DataError for what is missing, of no known kind, not to be read, or a folder without such files.
    """
    found = []
    for path in paths:
        if os.path.isdir(path):
            found += _inside(path, suffixes, is_left_out)
        else:
            check_file(path)
            found.append(Input(path, "text" if path.suffix in suffixes else _kind_of_named(path)))
    return tuple(found)


def _inside(folder: Path, suffixes: Sequence[str], is_left_out: Callable[[Path], bool]) -> list[Input]:
    there, links = files_below(folder, is_left_out)
    if suffixes:
        found = [Input(path, "text") for path in there if path.suffix in suffixes]
    else:
        manifests = {path.with_suffix(".json") for path in there if path.suffix == ".idx"}
        found = [Input(path, _kind(path)) for path in there if _kind(path) and path not in manifests]
    if not found:
        wanted = " or ".join(suffixes or (".jsonl", ".parquet"))
        raise DataError(explain("--input", str(folder), f"holds no {wanted} file.", "check the folder."))
    for each in found:
        check_file(each.path)
    if len(found) < len(there) and not suffixes:
        taken = {each.path for each in found}
        others = [path for path in there if path not in taken]
        what, be = ("file", "is") if len(others) == 1 else ("files", "are")
        print(f"{folder}: {len(others):,} {what} {be} neither JSONL nor Parquet and {be} left out, for example "
              f"{others[0].relative_to(folder)}", file=sys.stderr)
    if links:
        what = "link to a folder is" if len(links) == 1 else "links to folders are"
        print(f"{folder}: {len(links):,} {what} not entered, for example {links[0].relative_to(folder)}",
              file=sys.stderr)
    return found


def _kind(path: Path) -> str | None:
    """By the name alone."""
    inner = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    if inner.suffix.lower() in LINES:
        return "jsonl"
    return "parquet" if path.suffix.lower() == ".parquet" else None


def _kind_of_named(path: Path) -> str:
    """Of a file that the user named: any name will do for JSONL. Raises DataError."""
    if kind := _kind(path):
        return kind
    if path.suffix.lower() in TEXT:
        return "text"
    if not _begins_as_jsonl(path):
        ending = "".join(path.suffixes[-2 if path.suffix.lower() in COMPRESSED else -1 :])
        what = f"ends in {ending}" if ending else "has no ending"
        raise DataError(f"{path}: {what} and holds no JSONL. Cure: unpack it, or give it the ending of what it is: "
                        f"{', '.join(LINES)} (also {' and '.join(COMPRESSED)}), .parquet, {', '.join(TEXT)}.")
    return "jsonl"


def _begins_as_jsonl(path: Path) -> bool:
    """Also of an empty file, and of one that is damaged, which who reads it says."""
    opens = decompressed if path.suffix.lower() in COMPRESSED else functools.partial(open, mode="rb")
    with reading(path), opens(path) as file:
        try:
            begin = file.read(1 << 16).removeprefix(codecs.BOM_UTF8).lstrip()
        except TORN:
            return True
    return not begin or begin.startswith(b"{")


def size_of_stretches(inputs: Sequence[Input]) -> int:
    """Bytes of input in a stretch, a function of the inputs' sizes."""
    return min(max(sum(each.size for each in inputs) // AIMED_AT, SMALLEST), LARGEST)


def cut(inputs: Sequence[Input], size: int, longest: int = LONGEST) -> Iterator[Stretch]:
    """All stretches of about `size` bytes, in order; `longest` as of `documents`. Raises DataError for a compressed
    file that is cut off."""
    number, texts, held = 0, [], 0
    for each in inputs:
        if each.kind == "text":
            texts.append(each)
            held += each.size
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
        total = each.size
        for offset, start in enumerate(range(0, total, size)):
            yield Stretch(number + offset, (each,), start, min(start + size, total))


def _blocks_of_lines(path: Path, size: int, longest: int) -> Iterator[tuple[bytes, int]]:
    """A compressed file as blocks of whole lines of about `size` bytes, and their numbers of lines. Of a line that is
    too long only the beginning is there, still too long."""
    with reading(path), decompressed(path) as file:
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
        yield from (_whole_file(each.path, longest) for each in stretch.inputs)
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
    with reading(path), open(path, "rb", buffering=_BLOCK) as file:
        position = stretch.start
        if position:  # the line at work there belongs to the stretch before, unless it just ended
            file.seek(position - 1)
            position += len(file.readline(stretch.stop - position + 1)) - 1
        while position < stretch.stop and (line := file.readline(longest + 2)):
            yield _Place(path, position), line
            position += len(line) + _pass_rest(file, line, longest)


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
    with reading(path), open(path, "rb", buffering=0) as file:
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


def _whole_file(path: Path, longest: int) -> list[str] | Bad:
    with reading(path):
        if path.stat().st_size > longest:
            return bad_for_length(f"{path}: it", longest, b"")
        content = path.read_bytes()
    try:
        return [content.decode("utf-8")]
    except UnicodeDecodeError as error:
        return Bad("not UTF-8", f"{path}: is not UTF-8 ({error.reason} at byte {error.start}). "
                   "Cure: write the text as UTF-8.", content)
