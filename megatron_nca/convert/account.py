"""The account of a phase transition: a row for every tensor of both checkpoints, kept in the new one and checked there.

A row speaks of a whole tensor, of one of its parts (q, k, v, gate, up) or of some of its rows.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megatron_nca.config.components import COMPONENTS
from megatron_nca.config.model import ModelConfig
from megatron_nca.config.schema import build
from megatron_nca.convert import megatron
from megatron_nca.convert.parts import part_of
from megatron_nca.errors import CheckpointError, ConfigError
from megatron_nca.initialise import tensor_table

ACCOUNT_FILE = "account.json"
FORMAT, VERSION = "megatron_nca account", 2
ACTIONS = ("carried", "re-initialised", "dropped")


@dataclass
class Row:
    """A tensor, or a part or rows of one, in the account."""

    name: str
    action: str
    """carried, re-initialised (into the new checkpoint), or dropped (of the old one)."""
    shape: tuple[int, ...] | None
    component: str | None = None
    layer: int | None = None
    part: str | None = None
    """None: all parts of the tensor."""
    rows: tuple[int, int] | None = None
    """Half-open; None: all rows."""
    source: str | None = None
    """The tensor of the source that this one's numbers come from."""
    law: str | None = None
    seed: int | None = None
    sha256: str | None = None
    """Of the float32 bytes, little-endian and contiguous, of what depends on the source's numbers."""
    note: str | None = None

    def of(self, tensor: torch.Tensor, model: ModelConfig) -> torch.Tensor:
        """What of its tensor the row speaks of."""
        if self.part is not None:
            return part_of(tensor, self.part, model)
        return tensor if self.rows is None else tensor[slice(*self.rows)]


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().astype("<f4", copy=False).data).hexdigest()


def totals(rows: list[Row]) -> dict:
    """Of each action, how many tensors and parameters, by component; `other` is what is no weight of the model.

    A tensor of which parts differ counts as a tensor in each action that it has a part of.
    """
    result: dict = {action: {} for action in ACTIONS}
    seen = set()
    for row in rows:
        entry = result[row.action].setdefault(row.component or "other", {"tensors": 0, "parameters": 0})
        entry["tensors"] += (row.action, row.name) not in seen
        entry["parameters"] += 0 if row.component is None else int(np.prod(row.shape))
        seen.add((row.action, row.name))
    return result


def same_account(one: dict, other: dict) -> list[str]:
    """Names of the entries in which two accounts differ; where the source lay does not count."""
    def place_free(account: dict) -> dict:
        source = account.get("source")
        return {**account, "source": source and {**source, "checkpoint": None}}
    one, other = json.loads(json.dumps(place_free(one))), json.loads(json.dumps(place_free(other)))
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def without_hashes(account: dict) -> dict:
    """What of an account is known before the source is read, as JSON gives it back."""
    tensors = [{**row, "sha256": None} for row in account.get("tensors", ())]
    return json.loads(json.dumps({**account, "tensors": tensors}))


def format_account(account: dict) -> str:
    """The account as a compact table, a line per component."""
    head = ("component", *ACTIONS, "starts as")
    lines = [head]
    for component in (*COMPONENTS, "other"):
        cells = [_cell(account["totals"][action].get(component)) for action in ACTIONS]
        laws = {row["law"] for row in account["tensors"] if row["component"] == component and row["law"]}
        if any(cells):
            lines.append((component if component != "other" else "not weights", *cells, ", ".join(sorted(laws))))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    notes = {f"{row['component']}: {row['note']}" for row in account["tensors"]
             if row["note"] and row["action"] != "dropped"}
    if account["start"]["layer_map"]:
        notes.add(f"layers: from {', '.join('new' if n is None else str(n) for n in account['layer_map'])}")
    return "\n".join(["  ".join(line).rstrip() for line in padded] + sorted(notes))


def _cell(total: dict | None) -> str:
    if not total:
        return ""
    return f"{total['tensors']} ({total['parameters']:,})" if total["parameters"] else str(total["tensors"])


def check_account(folder: Path, share: tuple[int, int] = (0, 1)) -> list[str]:
    """Where a checkpoint differs from the account of a phase transition inside it; nothing if it has none.

    Every call looks whether the rows are the model's tensors, once each; of the hashes it computes those of share
    (I, N), every N-th tensor from the I-th on.
    """
    path = Path(folder) / ACCOUNT_FILE
    if not path.is_file():
        return []
    try:
        account = json.loads(path.read_text(encoding="utf-8"))
        if account["format"] != FORMAT:  # that of a conversion, which has no hashes
            return []
        model = build(ModelConfig, account["model"])
        rows = [build(Row, row) for row in account["tensors"] if row["action"] != "dropped"]
        checkpoint = megatron.read(folder)
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        return [f"{ACCOUNT_FILE} cannot be read ({error})"]
    except CheckpointError as error:
        return [str(error)]
    faults = [] if model == checkpoint.model else [f"{ACCOUNT_FILE} is of another model"]
    table = {spec.name: spec.size for spec in tensor_table(checkpoint.model)}
    counted, expected = sum(int(np.prod(row.shape)) for row in rows), sum(table.values())
    if counted != expected or {row.name for row in rows} != set(table):
        faults.append(f"{ACCOUNT_FILE} explains {counted:,} of {expected:,} parameters")
    hashed = sorted({row.name for row in rows if row.sha256})[share[0] :: share[1]] if not faults else []
    for name in hashed:
        values = checkpoint.tensor(name).read().float()
        faults += [f"{name} is not the tensor of {ACCOUNT_FILE}" for row in rows
                   if row.name == name and row.sha256 and row.sha256 != digest(row.of(values, model))]
    return faults
