"""What a checkpoint holds: its model, every tensor's numbers in figures, how it was split when it was saved.

Of any format of the hub, with the memory of a tensor, and no model, process group or GPU.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from megatron_nca.config.components import COMPONENTS
from megatron_nca.config.schema import to_dict
from megatron_nca.convert import megatron
from megatron_nca.convert.canonical import CanonicalCheckpoint
from megatron_nca.initialise import tensor_table
from megatron_nca.mcore.torch_dist import METADATA_FILE, read_metadata

_BLOCK = 1 << 20
"""Numbers at a time in float64."""


@dataclass(frozen=True)
class Figures:
    """Of one tensor; all but `zeros` and `non_finite` are of its finite numbers. Sums are in float64."""

    count: int
    zeros: int
    non_finite: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    """Of the numbers at hand, not of a population they are drawn from."""
    norm: float
    """Euclidean."""


def figures(values: torch.Tensor) -> Figures:
    zeros = non_finite = 0
    low, high, total, square = math.inf, -math.inf, 0.0, 0.0
    for block in _blocks(values):
        finite = block[torch.isfinite(block)]
        non_finite += block.numel() - finite.numel()
        zeros += int((finite == 0).sum())
        if finite.numel():
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            total, square = total + float(finite.sum()), square + float(finite.square().sum())
    number = values.numel() - non_finite
    if not number:
        return Figures(values.numel(), zeros, non_finite, None, None, None, None, 0.0)
    mean = total / number
    spread = sum(float((block[torch.isfinite(block)] - mean).square().sum()) for block in _blocks(values))
    return Figures(values.numel(), zeros, non_finite, low, high, mean, math.sqrt(spread / number), math.sqrt(square))


def together(parts: list[Figures]) -> Figures:
    """The figures of several tensors as one."""
    count, zeros, non_finite = (sum(getattr(part, name) for part in parts) for name in ("count", "zeros", "non_finite"))
    known = [part for part in parts if part.mean is not None]
    if not known:
        return Figures(count, zeros, non_finite, None, None, None, None, 0.0)
    weights = [part.count - part.non_finite for part in known]
    mean = sum(weight * part.mean for weight, part in zip(weights, known, strict=True)) / sum(weights)
    spread = sum(w * (p.std**2 + (p.mean - mean) ** 2) for w, p in zip(weights, known, strict=True)) / sum(weights)
    return Figures(count, zeros, non_finite, min(p.minimum for p in known), max(p.maximum for p in known), mean,
                   math.sqrt(spread), math.sqrt(sum(part.norm**2 for part in known)))


def digest(values: torch.Tensor) -> str:
    """sha256 of a tensor's bytes in its stored type, little-endian and in order."""
    return hashlib.sha256(values.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


def inspect(checkpoint: CanonicalCheckpoint, format_name: str) -> dict:
    """All that can be said of a checkpoint, fit for JSON; reads every tensor once."""
    table = {spec.name: spec for spec in tensor_table(checkpoint.model)}
    rows, parts = [], {}
    for tensor in checkpoint.tensors:
        spec, values = table[tensor.name], tensor.read()
        found = figures(values)
        parts.setdefault(spec.component, []).append(found)
        rows.append({"name": tensor.name, "component": spec.component, "layer": spec.layer,
                     "shape": list(tensor.shape), "dtype": tensor.dtype, **asdict(found), "sha256": digest(values),
                     "note": tensor.note})
    components = {name: {"tensors": len(parts[name]), **asdict(together(parts[name]))}
                  for name in COMPONENTS if name in parts}
    return {"format": "megatron_nca inspection", "version": 1, "checkpoint": checkpoint.origin,
            "checkpoint format": format_name, "iteration": checkpoint.iteration, "model": to_dict(checkpoint.model),
            "notes": list(checkpoint.notes), "saved": saved_layout(Path(checkpoint.origin)),
            "left aside": [{"key": item.key, "shape": item.shape and list(item.shape), "reason": item.reason}
                           for item in checkpoint.ignored],
            "components": components, "tensors": rows}


def saved_layout(folder: Path) -> dict | None:
    """How one of our checkpoints was split: chunks of its tensors along each axis, the ranks that wrote files, and the
    layout that its provenance states. None for other formats."""
    if not (folder / METADATA_FILE).is_file():
        return None
    entries = read_metadata(folder)
    chunks = {}
    for key in (*megatron.OTHER_KEYS.values(), *megatron.LAYER_KEYS.values()):
        entry = entries.state_dict_metadata.get(key)
        if entry is not None:
            offsets = [tuple(chunk.offsets) for chunk in entry.chunks]
            chunks[key] = [len(set(axis)) for axis in zip(*offsets, strict=True)]
    files = {place.relative_path for place in entries.storage_data.values()}
    ranks = sorted({int(match[1]) for name in files if (match := re.fullmatch(r"__(\d+)_\d+\.distcp", name))})
    provenance = folder / "provenance.json"
    stated = json.loads(provenance.read_text(encoding="utf-8")).get("parallel") if provenance.is_file() else None
    return {"chunks": chunks, "ranks that wrote": ranks, "parallel": stated}


def format_inspection(found: dict, tensors: bool) -> str:
    """In words and a table, a line for each component, or with `tensors` for each tensor."""
    model = ", ".join(f"{key} {value}" for key, value in found["model"].items() if value is not None)
    lines = [f"{found['checkpoint']}: {found['checkpoint format']}, iteration {found['iteration']}", f"model: {model}"]
    lines += [f"note: {note}" for note in found["notes"]]
    lines += _layout_lines(found["saved"])
    aside: dict[str, int] = {}
    for item in found["left aside"]:
        aside[item["reason"]] = aside.get(item["reason"], 0) + 1
    lines += [f"beside the weights: {reason}: {count}" for reason, count in sorted(aside.items())]
    head = ("tensor" if tensors else "component", "parameters", "min", "max", "mean", "std", "zeros", "non-finite")
    rows = [(row["name"], row) for row in found["tensors"]] if tensors else list(found["components"].items())
    lines += aligned([head, *((name, f"{row['count']:,}", *(short(row[key]) for key in (
        "minimum", "maximum", "mean", "std")), f"{row['zeros']:,}", f"{row['non_finite']:,}") for name, row in rows)])
    bad = [row["name"] for row in found["tensors"] if row["non_finite"]]
    lines += [f"NOT FINITE: numbers in {len(bad)} tensors, the first {bad[0]}"] if bad else []
    return "\n".join(lines)


def _layout_lines(saved: dict | None) -> list[str]:
    if saved is None:
        return []
    qkv, embedding = (saved["chunks"].get(key, []) for key in (
        megatron.LAYER_KEYS["attention.qkv.weight"], megatron.OTHER_KEYS["embedding.weight"]))
    ranks = saved["ranks that wrote"]
    lines = [f"saved: chunks of qkv {' x '.join(map(str, qkv))}, of the embedding {' x '.join(map(str, embedding))}; "
             f"files of {len(ranks)} rank{'s' if len(ranks) != 1 else ''}"]
    if saved["parallel"]:
        stated = ", ".join(f"{key} {value}" for key, value in saved["parallel"].items() if value not in (None, False))
        lines.append(f"trained at: {stated}")
    return lines


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) if i else cell.ljust(width)
                      for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _blocks(values: torch.Tensor) -> Iterator[torch.Tensor]:
    return (block.double() for block in values.reshape(-1).split(_BLOCK))
