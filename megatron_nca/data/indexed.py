"""Megatron's memory-mapped indexed datasets (MMIDIDX, version 1): a checked writer and a checked reader.

PREFIX.bin holds the tokens of all sequences one after another. PREFIX.idx, little-endian:
    9 bytes "MMIDIDX\\0\\0", u64 version 1, u8 code of the token's dtype, u64 sequences S, u64 document bounds D + 1,
    S int32 lengths in tokens, S int64 byte offsets into the .bin, D + 1 int64 bounds of documents in sequences.
Format: megatron/core/datasets/indexed_dataset.py. Here a sequence is a document, so bounds are 0..S.
"""

import contextlib
import glob
import io
import mmap
import os
import struct
from array import array
from pathlib import Path
from types import TracebackType

import numpy as np

from megatron_nca import files, ops
from megatron_nca.data.manifest import FileRecord, Manifest, part, unigram_entropy_nats
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {code: np.dtype(name) for code, name in [(1, "u1"), (2, "i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")]}
"""Megatron's codes; 6 and 7 are floating point and hold no tokens."""
MAX_LENGTH = 2**31 - 1
CHUNK = 1 << 20
"""Entries of the index that are handled at a time."""


def optimal_dtype(num_tokens: int) -> np.dtype:
    """uint16 where Megatron's DType.optimal_dtype chooses it (fewer than 65,500 ids), else int32."""
    return DTYPES[8] if num_tokens < 65_500 else DTYPES[4]


class Aside:
    """A new file beside the one that it will be, hashed while it is written; small writes are gathered."""

    def __init__(self, path: Path, aside: Path | None = None) -> None:
        self.path = path
        self.aside = aside or path.with_name(f".{path.name}.{os.getpid()}.tmp")
        files.remove(self.aside)  # of a process that was killed and had this one's number
        self._hashed = files.HashedFile(self.aside)
        self._file = io.BufferedWriter(self._hashed, CHUNK)
        self.write, self.flush = self._file.write, self._file.flush

    def write_kept(self, data: np.ndarray) -> None:
        """Bytes that stay as they are; the hash may lag behind."""
        self.flush()
        self._hashed.write_kept(data)

    def sync(self) -> FileRecord:
        self.flush()
        os.fsync(self._hashed.fileno())
        self._file.close()
        return FileRecord(**self._hashed.record())

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # closing a file on a full disk fails once more
            self._file.close()
        files.remove(self.aside)


class IndexedWriter:
    """Write PREFIX.{bin,idx,json}; nothing appears under these names before `finish`.

        with IndexedWriter(prefix, num_tokens) as writer:
            writer.add_documents(tokens)        # (N, length), any integer dtype
            manifest = writer.finish({"kind": "nca", "vocab_size": …, "trajectory": …, "origin": {…}})

    `num_tokens`: ids lie in 0..num_tokens-1, checked at every write (Megatron's builder wraps silently).
    `trajectory`: layout of the documents, given for automata; then all must have document_tokens tokens, and
    the unigram entropy is over the scored targets. Without it, it is over all tokens.
    Raises DataError for a token out of range, an empty document, a full disk.
    """

    def __init__(self, prefix: Path, num_tokens: int, trajectory: Trajectory | None = None) -> None:
        self.prefix = Path(prefix)
        self.num_tokens = num_tokens
        self.trajectory = trajectory
        self.dtype = optimal_dtype(num_tokens)
        self.tokens = 0
        self.histogram = np.zeros(num_tokens, dtype=np.int64)
        """Counts (num_tokens,) of the tokens, or of the scored targets if there is a trajectory."""
        self._lengths = array("i")
        self._bin: Aside | None = None
        self._idx: Aside | None = None

    def __enter__(self) -> "IndexedWriter":
        files.check_name(part(self.prefix, "json"))
        with self._translated("bin"):
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self._bin = Aside(part(self.prefix, "bin"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for file in (self._bin, self._idx):
            if file is not None:
                file.discard()
        self._bin = None

    def _remove_leftovers(self) -> None:
        """What a killed process left aside for this prefix would fill the disk in silence."""
        for ending in ("bin", "idx"):
            pattern = f".{glob.escape(part(self.prefix, ending).name)}.*.tmp"
            for path in self.prefix.parent.glob(pattern):
                writer = path.name.split(".")[-2]
                if writer.isdigit() and not Path(f"/proc/{writer}").exists() and Path("/proc/self").exists():
                    files.remove(path)

    @property
    def documents(self) -> int:
        return len(self._lengths)

    def add_document(self, tokens: np.ndarray) -> None:
        """Append one document (length,)."""
        tokens = np.asarray(tokens)
        if tokens.ndim != 1:
            raise DataError(f"{self.prefix}: a document of shape {tokens.shape} was given. Cure: give one dimension.")
        self.add_documents(tokens[None])

    def add_documents(self, tokens: np.ndarray, kept: bool = False) -> None:
        """Append N documents of the same length, (N, length), in one write. `kept`: the caller leaves them as they
        are."""
        tokens = np.asarray(tokens)
        self._check(tokens)
        block = np.ascontiguousarray(tokens, dtype=self.dtype)
        scored = slice(None) if self.trajectory is None else self.trajectory.scored_columns
        counts = ops.token_counts(block, scored, self.num_tokens)
        with self._translated("bin"):
            (self._bin.write_kept if kept else self._bin.write)(block.reshape(-1).view(np.uint8))
        self.histogram += counts
        self._lengths.extend(array("i", [tokens.shape[1]]) * tokens.shape[0])
        self.tokens += tokens.size

    def add_ragged(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents of a corpus one after another in `tokens` (n,), whose lengths (int32) sum to n. The caller
        leaves them as they are."""
        if not len(lengths):
            return
        if int(lengths.sum(dtype=np.int64)) != len(tokens) or lengths.min() < 1:
            raise DataError(f"{self.prefix}: {len(tokens)} tokens and lengths that sum to {int(lengths.sum())} were "
                            "given. Cure: make the parts again.")
        self._check(tokens[None])
        block = np.ascontiguousarray(tokens, dtype=self.dtype)
        self.histogram += ops.token_counts(block[None], slice(None), self.num_tokens)
        with self._translated("bin"):
            self._bin.write_kept(block.view(np.uint8))
        self._lengths.frombytes(lengths.astype(np.int32, copy=False).tobytes())
        self.tokens += len(tokens)

    def _check(self, tokens: np.ndarray) -> None:
        if self._bin is None:
            raise DataError(f"{self.prefix}: the writer is not open. Cure: use it in a `with` block, before finish().")
        where = f"{self.prefix}: document {self.documents}"
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise DataError(f"{where}: tokens of shape {tokens.shape} and dtype {tokens.dtype} were given. "
                            "Cure: give integers of shape (documents, length).")
        if tokens.shape[0] and not 0 < tokens.shape[1] <= MAX_LENGTH:
            raise DataError(f"{where}: has {tokens.shape[1]} tokens; a document holds 1..{MAX_LENGTH}. "
                            "Cure: leave it out.")
        if self.trajectory is not None and tokens.shape[1] != self.trajectory.document_tokens:
            raise DataError(f"{where}: has {tokens.shape[1]} tokens, but the trajectory's document_tokens is "
                            f"{self.trajectory.document_tokens}. Cure: give whole documents.")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.num_tokens:
            row = int(np.argmax(((tokens < 0) | (tokens >= self.num_tokens)).any(axis=1)))
            bad = tokens[row][(tokens[row] < 0) | (tokens[row] >= self.num_tokens)][0]
            raise DataError(f"{self.prefix}: document {self.documents + row}: token {bad} is outside "
                            f"0..{self.num_tokens - 1}. Cure: raise num_tokens to the size of "
                            "the vocabulary that made it.")

    def finish(self, manifest_fields: dict) -> Manifest:
        """Publish .bin, .idx and, last, the manifest.

        `manifest_fields`: `kind`, `vocab_size`, `origin`; optionally `trajectory` and `unigram_entropy_nats` if they
        are not to be the writer's own. Raises DataError; then no file stands under its final name but those of an
        older dataset, and these without their manifest if publishing had begun.
        """
        if not self.tokens:
            raise DataError(f"{self.prefix}: no document was written, and an empty dataset cannot be mapped. "
                            "Cure: give it data.")
        fields = {"trajectory": self.trajectory, **manifest_fields}
        fields.setdefault("unigram_entropy_nats", unigram_entropy_nats(self.histogram))
        with self._translated("idx"):
            if self._idx is None:
                self._idx = Aside(part(self.prefix, "idx"))
                self._write_index()
            records = {"bin": self._bin.sync(), "idx": self._idx.sync()}
        manifest = Manifest(documents=self.documents, tokens=self.tokens, dtype=self.dtype.name,
                            num_tokens=self.num_tokens, files=records, **fields)
        # An old manifest or index must never describe a new .bin, whatever happens between these lines.
        with self._translated("bin"):
            part(self.prefix, "json").unlink(missing_ok=True)
            part(self.prefix, "idx").unlink(missing_ok=True)
            os.replace(self._bin.aside, self._bin.path)
            os.replace(self._idx.aside, self._idx.path)
        manifest.save(self.prefix)
        self._bin = self._idx = None
        return manifest

    def _write_index(self) -> None:
        count, itemsize = len(self._lengths), self.dtype.itemsize
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        self._idx.write(HEADER.pack(MAGIC, VERSION, code, count, count + 1))
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        self._idx.write(lengths.astype("<i4", copy=False).view(np.uint8))
        offset = 0
        for start in range(0, count, CHUNK):
            ends = offset + np.cumsum(lengths[start : start + CHUNK], dtype="<i8") * itemsize
            self._idx.write(np.concatenate([[offset], ends[:-1]]).astype("<i8").view(np.uint8))
            offset = int(ends[-1])
        for start in range(0, count + 1, CHUNK):
            self._idx.write(np.arange(start, min(start + CHUNK, count + 1), dtype="<i8").view(np.uint8))

    @contextlib.contextmanager
    def _translated(self, ending: str):
        try:
            yield
        except OSError as error:
            raise files.translate(error, part(self.prefix, ending)) from error


class IndexedReader:
    """Read PREFIX.{bin,idx} through a memory map, whoever wrote them. Opening reads the .idx and not the .bin.

    `reader[i]` is the i-th sequence as a read-only array that stays valid after the reader is gone.
    Raises DataError, naming the file and what is wrong, if the files are missing, truncated, foreign or at odds.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = Path(prefix)
        self._read_index(part(prefix, "idx"))
        path = part(prefix, "bin")
        self.bytes = _size(path)
        tokens = int(self.lengths.sum(dtype=np.int64))
        if self.bytes != tokens * self.dtype.itemsize:
            raise DataError(f"{path}: has {self.bytes:,} bytes, but its index says {tokens:,} tokens of "
                            f"{self.dtype.itemsize} bytes. Cure: copy it anew, or make the dataset again.")
        self.tokens = tokens
        self._tokens = _map(path).view(self.dtype)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.prefix}: sequence {index} of {len(self)}")
        start = int(self._offsets[index]) // self.dtype.itemsize
        return self._tokens[start : start + int(self.lengths[index])]

    def __reduce__(self) -> tuple:
        return IndexedReader, (self.prefix,)  # a worker process maps the files itself

    def stream(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of all sequences written one after another, as a read-only array."""
        return self._tokens[start:stop]

    def _read_index(self, path: Path) -> None:
        size = _size(path)
        if size < HEADER.size:
            raise DataError(f"{path}: has {size} bytes, fewer than the header's {HEADER.size}. "
                            "Cure: make the dataset again.")
        content = _map(path)
        magic, version, code, count, bounds = HEADER.unpack(content[: HEADER.size].tobytes())
        if magic != MAGIC:
            raise DataError(f"{path}: does not begin with 'MMIDIDX', so it is no index of a dataset. "
                            "Cure: check the prefix.")
        if version != VERSION:
            raise DataError(f"{path}: version {version} at byte 9; only version {VERSION} is known. "
                            "Cure: make the dataset again.")
        if code not in DTYPES:
            raise DataError(f"{path}: dtype code {code} at byte 17 is no integer type. Cure: make the dataset again.")
        expected = HEADER.size + 12 * count + 8 * bounds
        if size != expected:
            multimodal = size == expected + count
            hint = " (it may hold modes of multimodal data, which are not read here)" if multimodal else ""
            raise DataError(f"{path}: has {size:,} bytes, but the {count:,} sequences and {bounds:,} document "
                            f"bounds that its header names take {expected:,}{hint}. "
                            "Cure: copy it anew, or make the dataset again.")
        if count == 0:
            raise DataError(f"{path}: holds no sequence. Cure: make the dataset again from input that is not empty.")
        self.dtype = DTYPES[code]
        offsets_at, bounds_at = HEADER.size + 4 * count, HEADER.size + 12 * count
        self.lengths = content[HEADER.size : offsets_at].view("<i4")
        self._offsets = content[offsets_at:bounds_at].view("<i8")
        self.document_bounds = content[bounds_at:].view("<i8")
        self._check_index(path)

    def _check_index(self, path: Path) -> None:
        expected = 0
        for start in range(0, len(self.lengths), CHUNK):
            lengths = self.lengths[start : start + CHUNK]
            if lengths.min() < 0:
                _wrong(path, "a negative length", start + int(np.argmax(lengths < 0)), HEADER.size, 4)
            ends = expected + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
            wrong = self._offsets[start : start + CHUNK] != np.concatenate([[expected], ends[:-1]])
            if wrong.any():
                _wrong(path, "an offset that is not the sum of the lengths before it", start + int(np.argmax(wrong)),
                       HEADER.size + 4 * len(self.lengths), 8)
            expected = int(ends[-1])
        bounds = self.document_bounds
        if len(bounds) == 0 or bounds[0] != 0 or bounds[-1] != len(self.lengths) or (bounds[1:] < bounds[:-1]).any():
            start = HEADER.size + 12 * len(self.lengths)
            raise DataError(f"{path}: its document bounds, from byte {start:,} on, do not rise from 0 to "
                            f"{len(self.lengths):,} sequences. Cure: make the dataset again.")


def _wrong(path: Path, what: str, entry: int, base: int, itemsize: int) -> None:
    raise DataError(f"{path}: sequence {entry:,} has {what} (byte {base + entry * itemsize:,}). "
                    "Cure: make the dataset again.")


def _size(path: Path) -> int:
    if not path.is_file():
        raise DataError(f"{path}: is missing. "
                        "Cure: check the prefix (a path without .bin or .idx), or make the dataset.")
    return path.stat().st_size


def _map(path: Path) -> np.ndarray:
    """A file as read-only bytes; arrays viewed from it keep the map alive."""
    try:
        with open(path, "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except ValueError as error:  # an empty file
        raise DataError(f"{path}: holds nothing. Cure: make the dataset again from input that is not empty.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Cure: check the path and your rights.") from error
