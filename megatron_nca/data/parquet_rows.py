"""The rows of a Parquet file as texts."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megatron_nca.data.corpus import Bad, bad_for_length, utf8_bytes
from megatron_nca.data.tool import needed_for
from megatron_nca.errors import DataError


def opened(path: Path) -> object:
    """pyarrow's ParquetFile. Raises DataError."""
    with needed_for(str(path)):
        import pyarrow
        from pyarrow import parquet
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error, "is no Parquet file, or cut off") from error


def rows(path: Path, groups: Iterable[int], keys: Sequence[str], longest: int) -> Iterator[list[str] | Bad]:
    """The texts under `keys` of each row of these row groups, or what is wrong with it. Raises DataError."""
    file = opened(path)
    _check_columns(path, file.schema_arrow, keys)
    for group in groups:
        for row, texts in enumerate(zip(*_columns(path, file, group, keys), strict=True)):
            place = f"{path}: row {row} of group {group}"
            if bad := _missing(place, keys, texts):
                yield bad
            elif max(map(utf8_bytes, texts)) > longest:
                yield bad_for_length(place, longest, b"")
            else:
                yield list(texts)


def _check_columns(path: Path, schema: object, keys: Sequence[str]) -> None:
    for key in keys:
        there = schema.names.count(key)
        if there == 1 and _is_text(schema.field(key).type):
            continue
        if there > 1:
            raise DataError(f"{path}: has {there} columns that are called {key!r}. Cure: give each a name of its own.")
        what = f"is {schema.field(key).type}, not text" if there else f"is not there; it has {', '.join(schema.names)}"
        raise DataError(f"{path}: the column {key!r} {what}. Cure: name another with --json-keys.")


def _is_text(kind: object) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _columns(path: Path, file: object, group: int, keys: Sequence[str]) -> list[list[str | bytes | None]]:
    """Of a row group; bytes stand for what is not UTF-8."""
    import pyarrow

    try:
        table = file.read_row_group(group, columns=list(keys))
        return [_texts(table.column(key)) for key in keys]
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error, f"is damaged in row group {group}") from error


def _texts(column: object) -> list[str | bytes | None]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decoded(content) for chunk in column.chunks for content in _raw(chunk)]


def _raw(chunk: object) -> list[bytes | None]:
    import pyarrow

    if not pyarrow.types.is_dictionary(chunk.type):
        return chunk.cast(pyarrow.large_binary()).to_pylist()
    values = chunk.dictionary.cast(pyarrow.large_binary()).to_pylist()
    return [None if index is None else values[index] for index in chunk.indices.to_pylist()]


def _decoded(content: bytes | None) -> str | bytes | None:
    try:
        return content if content is None else content.decode("utf-8")
    except UnicodeDecodeError:
        return content


def _missing(place: str, keys: Sequence[str], texts: Sequence[str | bytes | None]) -> Bad | None:
    """What of a row is no text."""
    for key, text in zip(keys, texts, strict=True):
        if text is None:
            return Bad("a key is missing", f"{place} has no {key!r}. Cure: take it out.", b"")
        if isinstance(text, bytes):
            return Bad("not UTF-8", f"{place}: {key!r} is not UTF-8. Cure: write the text as UTF-8.", text)
    return None


def _unreadable(path: Path, error: Exception, what: str) -> DataError:
    if getattr(error, "errno", None) is not None:
        return DataError(f"{path}: cannot be read ({error.strerror}). Cure: check its permissions and the disk.")
    return DataError(f"{path}: {what} ({str(error)[:200]}). Cure: fetch it again.")
