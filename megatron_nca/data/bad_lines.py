"""What becomes of documents that cannot be taken (--on-bad-line)."""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from megatron_nca import files
from megatron_nca.data import stale
from megatron_nca.data.corpus import Bad
from megatron_nca.data.parts import Counts
from megatron_nca.errors import DataError

POLICIES = ("stop", "skip", "quarantine")


def rejected_of(output_prefix: Path) -> Path:
    """Where quarantine keeps them."""
    return Path(f"{output_prefix}_rejected.jsonl")


@contextlib.contextmanager
def kept(output_prefix: Path, policy: str) -> Iterator[BinaryIO | None]:
    """The file of those that are kept, which appears at the end of the block; None where none are. Raises DataError."""
    if policy != "quarantine":
        yield None
        return
    path = rejected_of(output_prefix)
    files.refuse_folder(path)
    with files.publish(path) as aside, open(aside, "wb") as file:
        yield file


def leave_out(bad: Bad, policy: str, counts: Counts, rejected: BinaryIO | None) -> None:
    """Count it, and keep it in `rejected` if there is such a file. Raises DataError where the policy is to stop."""
    if policy == "stop":
        raise DataError(bad.reason)
    counts.bad[bad.kind] = counts.bad.get(bad.kind, 0) + 1
    counts.first_bad = counts.first_bad or bad.reason
    if rejected is not None:
        raw = bad.raw.decode("utf-8", "backslashreplace")
        rejected.write(json.dumps({"reason": bad.reason, "raw": raw}).encode() + b"\n")


def summary(counts: Counts) -> str:
    """A sentence if there were bad ones, else nothing."""
    bad = sum(counts.bad.values())
    return f"{bad:,} bad lines were left out, the first: {counts.first_bad}" if bad else ""


def refuse_all_bad(path: Path, counts: Counts) -> None:
    """Raise DataError, naming the first input and the first bad line, if there was no other line."""
    bad = sum(counts.bad.values())
    if bad and bad == counts.documents:
        raise DataError(f"{path}: all {bad:,} lines were bad ({counts.reasons}). Cure: begin with the first. "
                        f"{counts.first_bad}")


def remove_stale(output_prefix: Path, before: Iterable[dict], policy: str) -> None:
    """Remove what an earlier call kept, by the origins of its datasets, if this one keeps nothing. Raises DataError."""
    path, kept = rejected_of(output_prefix), any(origin.get("on_bad_line") == "quarantine" for origin in before)
    if kept and policy != "quarantine" and path.is_file():
        print(f"{path}: was made for this prefix with other settings; it is removed.", file=sys.stderr)
        stale.remove_file(path)
