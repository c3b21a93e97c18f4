"""The rule bank: scores of candidates, made once in blocks that many processes fill side by side (docs/bank.md).

A bank is a folder that is one zarr v3 array of shape (2^32,): element c is the gzip size in bytes of candidate c, a
chunk is a block, and a chunk that is absent is not scored yet. `zarr.json` is written once and holds the provenance as
attributes. A block is encoded by zarr (little-endian, CRC-32C), written aside, synced and renamed, so it is whole or
absent; two writers of one block write the same bytes. Nothing is locked and nothing is ever rewritten.
"""

import os
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_nca import files, ops
from megatron_nca.config.law import LAW_VERSION, SCORING_SETTINGS, NcaLaw, scoring_law, scoring_settings
from megatron_nca.config.schema import build, to_dict
from megatron_nca.errors import ConfigError, DataError, LaunchError, explain
from megatron_nca.nca import complexity, rule

try:
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore
except ImportError as error:
    raise LaunchError(
        f"zarr: the rule bank needs the package zarr 3 ({error}). "
        "Cure: pip install 'zarr>=3' (it needs Python 3.11 or newer), or work without a bank."
    ) from error

FORMAT = "megatron_nca bank"
VERSION = 1
METADATA = "zarr.json"
MAX_CANDIDATES = 2**32
BLOCK = 65_536
"""Candidates of a block where nothing else is asked for: some seconds of work of one core, 131 kB."""
PIECE = 4_096
"""Candidates scored between two chances to interrupt."""
CRC_BYTES = 4
LARGEST_OF_UINT16 = 60_000
"""Scored bytes up to which a gzip size fits uint16, however badly they compress."""
STALE_SECONDS = 3_600
"""Age at which a file written aside is a killed writer's: writing one takes milliseconds."""


class TornBlock(DataError):
    """A block that is there and not what was written."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What decides every score of a bank, and what made it."""

    format: Literal["megatron_nca bank"] = FORMAT
    version: Literal[1] = VERSION
    law_version: int = LAW_VERSION
    law: dict
    """The settings named in config/law.py, SCORING_SETTINGS."""
    seed: int
    score_bytes: int
    """A gzip ratio is size / score_bytes."""
    zlib: str
    """Version of the library where the bank was begun; told, not compared: `complexity.check_zlib` decides."""


@dataclass(frozen=True)
class Survey:
    """What `Bank.survey` found."""

    whole: list[int]
    absent: list[range]
    """Numbers of the blocks below the last one that are not there, gap by gap."""
    torn: dict[int, str]
    counts: np.ndarray
    """Candidates int64 (K,) of each gzip size 0..K-1 in the whole blocks."""


class Bank:
    """An existing bank. Raises DataError if there is none at `path`, or one that this program cannot go on with."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        complexity.check_zlib()
        self._array, self.provenance = _open(self.path)
        self.law = scoring_law(self.provenance.law)
        self.seed = self.provenance.seed
        self.block_size: int = self._array.chunks[0]
        self.block_bytes: int = _block_bytes(self.block_size, self._array.dtype)
        self._params = rule.params_of(self.law)
        self._loaded: tuple[int, np.ndarray] | None = None

    @classmethod
    def create(cls, path: Path, law: NcaLaw, seed: int, block_size: int | None = None, candidates: int = 1,
               shard: tuple[int, int] = (0, 1)) -> "Bank":  # fmt: skip
        """Begin a bank at `path`, or open the one that is there if it has these settings.

        `candidates` and `shard` are those of `blocks_of`; where they cannot be, or their blocks find no space, no bank
        is begun. Raises ConfigError for settings that cannot be, DataError if something else is there or for space.
        """
        rule.check_seed(seed)
        if block_size is not None and (not 1 <= block_size <= 2**24 or block_size & (block_size - 1)):
            raise ConfigError(explain("block", block_size, "must be a power of two up to 2^24.", f"{BLOCK} is usual."))
        size = block_size or BLOCK
        numbers = _blocks_of(candidates, shard, size)
        if not (Path(path) / METADATA).exists():
            complexity.check_zlib()
            provenance = _provenance(law, seed)
            _check_space(path, len(numbers) * _block_bytes(size, _dtype(provenance)))
            content = _metadata(provenance, size)
            if not files.create_folder(path, {METADATA: content}) and not (Path(path) / METADATA).exists():
                raise DataError(
                    f"{path}: is there already and is no bank. Cure: name another folder, or an empty one."
                )
        bank = cls(path)
        bank.check(law, seed)
        if block_size not in (None, bank.block_size):
            raise DataError(
                explain(
                    "block", block_size, f"{path} has blocks of {bank.block_size:,} candidates.", "leave --block out."
                )
            )
        return bank

    def check(self, law: NcaLaw, seed: int) -> None:
        """Raises DataError, naming each difference, unless the scores are those of `law` at `seed`."""
        asked, there = (_compared(record) for record in (_provenance(law, seed), self.provenance))
        different = [
            f"{name} = {there[name]!r} (asked: {value!r})" for name, value in asked.items() if there[name] != value
        ]
        if different:
            raise DataError(
                f"{self.path}: is a bank of other settings: {', '.join(different)}. "
                "Cure: name the bank of these settings, or fill another one."
            )

    def block_path(self, number: int) -> Path:
        return self.path / "c" / str(number)

    def present(self) -> list[int]:
        """Numbers of the blocks that are there, whole or torn, ascending."""
        try:
            names = os.listdir(self.path / "c")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(self.path / "c", error) from error
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    @property
    def end(self) -> int:
        """Candidates 0 .. end - 1 are there, without a gap."""
        numbers = self.present()
        gap = next((i for i, number in enumerate(numbers) if i != number), len(numbers))
        return gap * self.block_size

    def read(self, number: int) -> np.ndarray | None:
        """gzip sizes int32 (block_size,) of a block, None if it is absent.

        Raises TornBlock for a wrong length or checksum, or if the first candidate, scored again, has another size.
        """
        path, first = self.block_path(number), number * self.block_size
        try:
            length = path.stat().st_size
            if length != self.block_bytes:
                raise self._torn(number, f"it has {length:,} bytes in place of {self.block_bytes:,}")
            sizes = np.asarray(self._array[first : first + self.block_size]).astype(np.int32)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        except ValueError as error:
            raise self._torn(number, "its checksum is wrong") from error
        again = int(ops.score(self._params, self.seed, first, 1)[0])
        if sizes[0] != again:
            raise self._torn(
                number, f"candidate {first:,} has the size {sizes[0]} in it, and {again} when scored again"
            )
        return sizes

    def ratios(self, first: int, count: int) -> np.ndarray:
        """gzip ratios float64 (count,) of candidates first .. first + count - 1, as `simulate.score` gives them.

        Raises DataError for a block that is absent or torn.
        """
        parts = []
        for number in range(first // self.block_size, -(-(first + count) // self.block_size)):
            start = number * self.block_size
            parts.append(self._block(number)[max(first - start, 0) : first + count - start])
        return np.concatenate(parts) / self._params.score_bytes

    def accepted(self, band: tuple[float, float], enough: int) -> int:
        """How many of candidates 0 .. end - 1 lie in `band`; counting stops at the block that makes it `enough`."""
        found = 0
        for first in range(0, self.end, self.block_size):
            if found >= enough:
                break
            found += int(complexity.in_band(self.ratios(first, self.block_size), band).sum())
        return found

    def fill(self, numbers: Iterable[int], *, threads: int = 1, mend: bool = True) -> Iterator[tuple[int, str]]:
        """Make the blocks whole, yielding each with what was done: "was there", "scored", or "made again: why".

        `mend`: torn blocks are made again; else TornBlock is raised. Raises DataError if the disk is full; blocks that
        were whole before stay so.
        """
        numbers = list(numbers)
        self._remove_leftovers()
        _check_space(self.path, len(set(numbers) - set(self.present())) * self.block_bytes)
        for number in numbers:
            done = "scored"
            try:
                if self.read(number) is not None:
                    yield number, "was there"
                    continue
            except TornBlock as error:
                if not mend:
                    raise
                done = f"made again: {error}"
            with files.publish(self.block_path(number)) as aside:
                aside.write_bytes(self._score(number, threads))
            yield number, done

    def blocks_of(self, candidates: int, shard: tuple[int, int]) -> range:
        """Numbers of the blocks that hold candidates 0 .. candidates - 1 and fall to shard I of N.

        Raises ConfigError for a number of candidates or a shard out of range.
        """
        return _blocks_of(candidates, shard, self.block_size)

    def survey(self) -> Survey:
        """Read every block. Raises DataError only for what cannot be read at all."""
        whole, torn = [], {}
        counts = np.zeros(1, dtype=np.int64)
        for number in self.present():
            try:
                sizes = self.read(number)
            except TornBlock as error:
                torn[number] = str(error)
                continue
            if sizes is None:
                continue
            whole.append(number)
            more = np.bincount(sizes, minlength=len(counts))
            more[: len(counts)] += counts
            counts = more
        there = sorted([*whole, *torn])
        gaps = [range(a + 1, b) for a, b in zip([-1, *there], there, strict=False) if b > a + 1]
        return Survey(whole, gaps, torn, counts)

    def _block(self, number: int) -> np.ndarray:
        if self._loaded is None or self._loaded[0] != number:
            sizes = self.read(number)
            if sizes is None:
                raise DataError(
                    f"{self.block_path(number)}: is missing, so candidates from {number * self.block_size:,} on are "
                    "not scored. Cure: fill the bank further with `megatron-nca bank fill`."
                )
            self._loaded = number, sizes
        return self._loaded[1]

    def _score(self, number: int, threads: int) -> bytes:
        """The block as zarr writes it."""
        first = number * self.block_size
        sizes = [
            ops.score(self._params, self.seed, first + at, min(PIECE, self.block_size - at), threads=threads)
            for at in range(0, self.block_size, PIECE)
        ]
        store: dict = {}
        array = _array_in(store, self.block_size, self.block_size, self._array.dtype)
        array[:] = np.concatenate(sizes)
        return store["c/0"].to_bytes()

    def _torn(self, number: int, why: str) -> TornBlock:
        return TornBlock(
            f"{self.block_path(number)}: is torn: {why}. "
            "Cure: the `megatron-nca bank fill` that made it makes this block again."
        )

    def _remove_leftovers(self) -> None:
        """What killed writers left aside."""
        places = [(self.path / "c", ".*.tmp"), (self.path.resolve().parent, f".{self.path.resolve().name}.*.tmp")]
        for folder, pattern in places:
            for path in folder.glob(pattern):
                try:
                    if time.time() - path.stat().st_mtime > STALE_SECONDS:
                        files.remove(path)
                except (FileNotFoundError, PermissionError):
                    continue  # another process was faster, or it is another user's to remove


def _blocks_of(candidates: int, shard: tuple[int, int], block_size: int) -> range:
    index, shards = shard
    if not 1 <= candidates <= MAX_CANDIDATES:
        cure = "give at least 1." if candidates < 1 else "take another seed for more."
        raise ConfigError(explain("candidates", candidates, "must lie in 1..2^32.", cure))
    if not 0 <= index < shards:
        raise ConfigError(explain("shard", f"{index}/{shards}", "I/N needs 0 <= I < N.", "give for example 0/8."))
    return range(index, -(-candidates // block_size), shards)


def _check_space(path: Path, need: int) -> None:
    """Raises DataError if the disk of a bank, begun or not, has less than `need` bytes free."""
    files.check_free(path, need, "bank", str(path), "free some space, or ask for fewer candidates.")


def _block_bytes(block_size: int, dtype: np.dtype) -> int:
    """Of one block's file."""
    return block_size * dtype.itemsize + CRC_BYTES


def _dtype(provenance: Provenance) -> np.dtype:
    return np.dtype(np.uint16 if provenance.score_bytes <= LARGEST_OF_UINT16 else np.int32)


def _provenance(law: NcaLaw, seed: int) -> Provenance:
    score_bytes = rule.params_of(law).score_bytes
    return Provenance(law=scoring_settings(law), seed=seed, score_bytes=score_bytes, zlib=zlib.ZLIB_RUNTIME_VERSION)


def _compared(record: Provenance) -> dict:
    law = {f"law.{name}": record.law[name] for name in SCORING_SETTINGS}
    return {**law, "seed": record.seed, "law_version": record.law_version, "score_bytes": record.score_bytes}


def _array_in(store: dict, length: int, block_size: int, dtype: np.dtype, **more: object) -> "zarr.Array":
    """A new array of the bank's form in a dictionary; 0 stands for candidates that are not scored."""
    return zarr.create_array(
        MemoryStore(store),
        shape=(length,),
        chunks=(block_size,),
        dtype=dtype,
        fill_value=0,
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        **more,
    )


def _metadata(provenance: Provenance, block_size: int) -> bytes:
    store: dict = {}
    _array_in(store, MAX_CANDIDATES, block_size, _dtype(provenance), attributes=to_dict(provenance))
    return store[METADATA].to_bytes()


def _open(path: Path) -> tuple["zarr.Array", Provenance]:
    if not (path / METADATA).is_file():
        raise DataError(f"{path}: there is no bank. Cure: check the path, or begin one with `megatron-nca bank fill`.")
    try:
        array = zarr.open_array(path, mode="r", zarr_format=3)
        attributes = array.attrs.asdict()
        if attributes.get("format") != FORMAT or len(array.shape) != 1:
            raise ConfigError("it is a zarr array, but no bank of this program.")
        if attributes.get("version") != VERSION:
            raise ConfigError(f"version = {attributes.get('version')!r}: this program reads version {VERSION}.")
        provenance = build(Provenance, attributes)
        if set(provenance.law) != set(SCORING_SETTINGS):
            raise ConfigError(f"law = {sorted(provenance.law)}: expected {sorted(SCORING_SETTINGS)}.")
        scoring_law(provenance.law)
    except OSError as error:
        raise _unreadable(path / METADATA, error) from error
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path / METADATA}: is not the record of a bank ({error}). Cure: name another folder, or fill a new bank."
        ) from error
    return array, provenance


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror or error}). Cure: check the path and your rights.")
