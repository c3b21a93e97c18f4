"""Which documents of a corpus are kept, and in which of its parts each one stands, by the hash of its text.

The hash alone decides the part, so a document is in the same one whatever the order of the input, the number of files
or of processes, and equal documents are never in two.
"""

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megatron_nca import files
from megatron_nca.errors import DataError, explain

DIGEST_BYTES = 16
TRAIN = "train"
"""The name of the part that holds what no other does."""
IN_MEMORY = 1 << 20
"""Documents whose hashes are compared at once, about 120 MB."""
_DIGEST = np.dtype([("high", ">u8"), ("low", ">u8")])
_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<i8")])


def digest(texts: Sequence[bytes]) -> bytes:
    """BLAKE2b-128 of a document: of its text in UTF-8, or of several texts the hash of their hashes."""
    if len(texts) == 1:
        return hashlib.blake2b(texts[0], digest_size=DIGEST_BYTES).digest()
    return digest([b"".join(digest([text]) for text in texts)])


def read_digests(path: Path) -> np.ndarray:
    """(n,) records of two 64-bit numbers, `high` and `low`, of a file of digests."""
    return np.fromfile(path, _DIGEST)


def as_digests(content: bytes) -> np.ndarray:
    """The same of digests in memory."""
    return np.frombuffer(content, _DIGEST)


def check_hold_out(parts: Sequence[tuple[str, float]]) -> None:
    """Raise DataError unless these are names of parts with shares of the documents that leave some for training."""
    shares = dict(parts)
    if len(shares) != len(parts):
        raise DataError(explain("--hold-out", list(parts), "names a part twice.", "name each once."))
    for name, share in parts:
        setting = f"--hold-out {name}"
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or name == TRAIN:
            raise DataError(explain(setting, share, f"the name must be of letters, digits and '-', and not {TRAIN!r}.",
                                    "for example validation=0.01."))
        if not 0 < share < 1:
            raise DataError(explain(setting, share, "must lie between 0 and 1.", "0.01 is usual."))
    if sum(shares.values()) >= 1:
        raise DataError(explain("--hold-out", shares, "leaves nothing for training.", "hold out less than all."))


def parts_of(digests: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """The part of each document: 0 for training, k for the k-th share.

    The hash's first half is a number in [0, 1); the shares lie one after another from 0 on.
    """
    bounds = np.array([min(int(end * 2**64), 2**64 - 1) for end in np.cumsum(shares)], np.uint64)
    which = np.searchsorted(bounds, digests["high"].astype(np.uint64), "right") + 1
    which[which > len(shares)] = 0
    return which


@contextlib.contextmanager
def first_ones(paths: Sequence[Path], scratch: Path) -> Iterator[np.ndarray]:
    """Yield bool (documents,), whether each is the first of its hash, for files of digests in the input's order.

    It is a file of a byte a document, mapped; hashes are sorted into buckets by their first bits and compared bucket by
    bucket, so memory does not grow with the input. `scratch` is a folder for both: 25 bytes a document, removed after.
    """
    total = sum(path.stat().st_size for path in paths) // DIGEST_BYTES
    files.remove(scratch)
    try:
        scratch.mkdir(parents=True)
        buckets = _sort_into_buckets(paths, scratch, max((total - 1) // IN_MEMORY, 0).bit_length())
        first = np.memmap(scratch / "first", bool, "w+", shape=max(total, 1))
        for bucket in buckets:
            _mark_first(bucket, first)
        yield first[:total]
    except OSError as error:
        raise files.translate(error, scratch) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _mark_first(bucket: Path, first: np.ndarray) -> None:
    """Set `first` of the documents of a bucket whose hash none before has, a block of them at a time: however often one
    text occurs, memory holds its hash once."""
    seen = np.empty(0, _ENTRY)
    with open(bucket, "rb") as file:
        while content := file.read(IN_MEMORY * _ENTRY.itemsize):
            entries = np.concatenate([seen, np.frombuffer(content, _ENTRY)])
            entries = entries[np.lexsort((entries["document"], entries["low"], entries["high"]))]
            new = np.ones(len(entries), bool)
            new[1:] = (entries["high"][1:] != entries["high"][:-1]) | (entries["low"][1:] != entries["low"][:-1])
            seen = entries[new]
            documents = seen["document"]
            first[documents[documents >= 0]] = True
            seen["document"] = -1  # before any other of its hash


def _sort_into_buckets(paths: Sequence[Path], scratch: Path, bits: int) -> list[Path]:
    """Files of _ENTRY, one for each value of the hashes' first `bits` bits that occurs."""
    held, size, document, made = [], 0, 0, set()

    def write() -> None:
        block = np.concatenate(held)
        bucket = block["high"] >> np.uint64(64 - bits) if bits else np.zeros(len(block), np.uint64)
        order = np.argsort(bucket, kind="stable")
        ends = np.flatnonzero(np.diff(bucket[order])) + 1
        for group in np.split(order, ends):
            path = scratch / f"{int(bucket[group[0]])}"
            made.add(path)
            with open(path, "ab") as file:
                file.write(block[group].tobytes())

    for path in paths:
        digests = read_digests(path)
        for start in range(0, len(digests), IN_MEMORY):
            some = digests[start : start + IN_MEMORY]
            entries = np.empty(len(some), _ENTRY)
            entries["high"], entries["low"] = some["high"], some["low"]
            entries["document"] = np.arange(document, document + len(some))
            document += len(some)
            held.append(entries)
            size += len(some)
            if size >= IN_MEMORY:
                write()
                held, size = [], 0
    if held:
        write()
    return sorted(made)
