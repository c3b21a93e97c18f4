"""A folder that lists its own files, with sizes and hashes, so that what has been torn or has rotted is found.

    {"format": "megatron_nca file list", "version": 1, "files": {NAME: {"bytes": N, "sha256": HEX}, ...}}

The list is no proof of who wrote the files: whoever can change them can change it too.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from megatron_nca import files

NAME = "files.json"
_FORMAT = {"format": "megatron_nca file list", "version": 1}


def record(path: Path) -> dict[str, object]:
    """What the list says of one file."""
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def write(folder: Path, known: Mapping[str, dict[str, object]] | None = None) -> None:
    """List all files of `folder`; records in `known`, made by those who wrote the files, are taken as they are.

    Raises OSError.
    """
    known = known or {}
    names = sorted(path.name for path in folder.iterdir() if path.name != NAME)
    records = {name: known[name] if name in known else record(folder / name) for name in names}
    (folder / NAME).write_text(json.dumps({**_FORMAT, "files": records}, indent=1) + "\n", encoding="utf-8")


def flaws(folder: Path, hashed: tuple[int, int] | None = None) -> list[str]:
    """What is wrong with the folder, a sentence each; empty if it is as its list says.

    Sizes are compared always. With `hashed` = (i, n) the i-th of n readers also hashes its share of the files, so
    that n of them together have read all.
    """
    try:
        records = _read(folder)
    except FileNotFoundError:
        return [f"{NAME} is missing" if Path(folder).is_dir() else "is not there"]
    except (OSError, ValueError) as error:
        return [f"{NAME} cannot be read ({error})"]
    found = []
    for name, expected in records.items():
        path = Path(folder) / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != expected["bytes"]:
            found.append(f"{name} has {path.stat().st_size:,} bytes, its list says {expected['bytes']:,}")
    if hashed is not None and not found:
        for name in _share(records, *hashed):
            try:
                if files.sha256(Path(folder) / name) != records[name]["sha256"]:
                    found.append(f"{name} has been changed: its sha256 is not that of its list")
            except OSError as error:
                found.append(f"{name} cannot be read ({error.strerror or error})")
    return found


def _share(records: Mapping[str, dict], reader: int, readers: int) -> Iterable[str]:
    """Largest first, dealt out in turn."""
    return sorted(records, key=lambda name: (-records[name]["bytes"], name))[reader::readers]


def _read(folder: Path) -> dict[str, dict]:
    """The records. Raises OSError, and ValueError for a file that is no such list."""
    values = json.loads((Path(folder) / NAME).read_text(encoding="utf-8"))
    if not isinstance(values, dict) or {key: values.get(key) for key in _FORMAT} != _FORMAT:
        raise ValueError("it is not a file list of version 1")
    records = values.get("files")
    if not isinstance(records, dict) or not records or not all(map(_is_record, records.items())):
        raise ValueError("it holds no records of files")
    return records


def _is_record(item: tuple[str, object]) -> bool:
    name, values = item
    inside = Path(name).name == name
    return (
        inside and isinstance(values, dict) and isinstance(values.get("bytes"), int)
        and isinstance(values.get("sha256"), str)
    )
