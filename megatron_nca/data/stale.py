"""Datasets of a prefix that an earlier call with other settings made, and that the call at work does not replace."""

import glob
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from megatron_nca import files
from megatron_nca.data.manifest import FORMAT, part


def origin_of(dataset: Path) -> dict:
    """What a manifest says of the making, whether or not its dataset is whole; empty where there is none."""
    try:
        values = json.loads(part(dataset, "json").read_bytes())
        return values["origin"] if values["format"] == FORMAT and isinstance(values["origin"], dict) else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def remove_datasets(prefix: Path, current: Collection[Path], names: Callable[[dict], Collection[str]]) -> list[dict]:
    """Remove the datasets of a prefix that are none of the `current` ones, one line for each on stderr; returns the
    origins of those. `names`: what comes after the prefix in the names of datasets that the calling tool would have
    made with an origin; a file of any other name, or without a manifest, is left alone. Raises DataError.
    """
    prefix, removed = Path(prefix), []
    for path in sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}_*.json")):
        dataset = path.with_name(path.name.removesuffix(".json"))
        origin = origin_of(dataset)
        if dataset in current or not origin or dataset.name.removeprefix(prefix.name) not in names(origin):
            continue
        print(f"{dataset}: was made for this prefix with other settings; it is removed.", file=sys.stderr)
        for ending in ("bin", "idx", "json"):  # the manifest last: it says whose the others are
            remove_file(part(dataset, ending))
        removed.append(origin)
    return removed


def remove_file(path: Path) -> None:
    """Raises DataError where that is not allowed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise files.translate(error, path) from error
