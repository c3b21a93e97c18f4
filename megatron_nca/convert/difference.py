"""What has changed between two checkpoints of any formats: which parts and how far; a tensor of each is held."""

import math
from pathlib import Path

import torch

from megatron_nca.config.components import COMPONENTS, LAYER_PARTS, component_of, parts_in
from megatron_nca.config.schema import to_dict
from megatron_nca.convert.canonical import CanonicalCheckpoint
from megatron_nca.convert.inspect import aligned, digest, short
from megatron_nca.convert.parts import part_of
from megatron_nca.files import publish
from megatron_nca.initialise import tensor_table

_BLOCK = 1 << 20
_OF_THE_VOCABULARY = ("embedding.weight", "head.weight")


def difference(one: CanonicalCheckpoint, other: CanonicalCheckpoint) -> dict:
    """Tensor by tensor, and its parts (q, k, v, gate, up) by themselves, fit for JSON.

    `same`: every bit and the type. Of what has one shape in both also `distance` |other - one|, `relative` to |one|
    (null where that is 0), `largest` of the changes, and `changed`, the share of numbers that are not equal; numbers
    that are not finite in either are counted and left out of the norms. Rows of a vocabulary that are padding in either
    are not compared: formats keep them or not. `padding` says which rows and whether their bits are the same.
    """
    models = to_dict(one.model), to_dict(other.model)
    settings = {key: [models[0][key], models[1][key]] for key in models[0] if models[0][key] != models[1][key]}
    theirs = {tensor.name: tensor for tensor in other.tensors}
    rows = []
    for tensor in one.tensors:
        match = theirs.pop(tensor.name, None)
        spec = next(spec for spec in tensor_table(one.model) if spec.name == tensor.name)
        place = {"name": tensor.name, "component": spec.component, "layer": spec.layer}
        if match is None or match.shape != tensor.shape:
            found = list(match.shape) if match else None
            rows.append({**place, "part": None, "same": False, "shapes": [list(tensor.shape), found]})
            continue
        rows += _of_one_shape(place, tensor.read(), match.read(), one, other)
    rows += [{"name": name, "component": component_of(parts_in(_kind(name))[0]), "layer": None, "part": None,
              "same": False, "shapes": [None, list(tensor.shape)]} for name, tensor in theirs.items()]
    return {"format": "megatron_nca difference", "version": 1, "one": one.origin, "other": other.origin,
            "model settings": settings, "same": all(row["same"] for row in rows),
            "components": {name: _summary([row for row in rows if row["component"] == name]) for name in COMPONENTS
                           if any(row["component"] == name for row in rows)}, "tensors": rows}


def _of_one_shape(place: dict, a: torch.Tensor, b: torch.Tensor, one: CanonicalCheckpoint, other: CanonicalCheckpoint
                  ) -> list[dict]:
    kind = _kind(place["name"])
    parts = parts_in(kind) if _alike(one, other) else ()
    whole = parts if len(parts) > 1 else (None,)
    hashes = {"sha256": [digest(a), digest(b)], "dtypes": [str(t.dtype).removeprefix("torch.") for t in (a, b)]}
    a, b = a.contiguous(), b.contiguous()
    if kind in _OF_THE_VOCABULARY:
        filled = min(one.model.vocab_size, other.model.vocab_size)
        if filled < len(a):
            hashes["padding"] = {"rows": [filled, len(a)], "same": digest(a[filled:]) == digest(b[filled:])}
        a, b = a[:filled], b[:filled]
    rows = []
    for part in whole:
        left, right = (t if part is None else part_of(t, part, one.model) for t in (a, b))
        same = a.dtype == b.dtype and (hashes["sha256"][0] == hashes["sha256"][1] or digest(left) == digest(right))
        rows.append({**place, "part": part, "same": same, **_norms(left, right), **hashes})
    return rows


def _alike(one: CanonicalCheckpoint, other: CanonicalCheckpoint) -> bool:
    """Whether heads and groups lie at the same rows in both."""
    names = ("hidden_size", "num_heads", "query_groups", "ffn_hidden_size")
    return all(getattr(one.model, name) == getattr(other.model, name) for name in names)


def _norms(a: torch.Tensor, b: torch.Tensor) -> dict:
    distance = before = largest = 0.0
    changed = skipped = 0
    for left, right in zip(a.reshape(-1).split(_BLOCK), b.reshape(-1).split(_BLOCK), strict=True):
        left, right = left.double(), right.double()
        changed += int(((left != right) & ~(left.isnan() & right.isnan())).sum())
        finite = left.isfinite() & right.isfinite()
        skipped += int((~finite).sum())
        left, change = left[finite], (right - left)[finite]
        distance, before = distance + float(change.square().sum()), before + float(left.square().sum())
        largest = max(largest, float(change.abs().max()) if change.numel() else 0.0)
    return {"count": a.numel(), "distance": math.sqrt(distance), "norm": math.sqrt(before), "largest": largest,
            "relative": math.sqrt(distance / before) if before else None, "changed": changed / a.numel(),
            "non_finite": skipped}


def _summary(rows: list[dict]) -> dict:
    """Of a component: how many rows are the same, and the change of those of one shape as if they were one tensor,
    null where there are none."""
    measured = [row for row in rows if "distance" in row]
    distance, before = (math.sqrt(sum(row[key] ** 2 for row in measured)) for key in ("distance", "norm"))
    numbers = sum(row["count"] for row in measured)
    return {"rows": len(rows), "same": sum(row["same"] for row in rows), "other shape": len(rows) - len(measured),
            "distance": distance if measured else None, "relative": distance / before if before else None,
            "largest": max((row["largest"] for row in measured), default=None),
            "changed": sum(row["changed"] * row["count"] for row in measured) / numbers if numbers else None}


def format_difference(found: dict, tensors: bool) -> str:
    """In words and a table, a line for each component, or with `tensors` for each row."""
    lines = [f"from {found['one']}", f"to   {found['other']}"]
    lines += [f"model.{key}: {there} there, {here} here" for key, (there, here) in found["model settings"].items()]
    padding = _padding_lines(found["tensors"])
    if found["same"]:
        return "\n".join([*lines, f"The same: every bit of {len(found['tensors'])} parts and tensors.", *padding])
    if tensors:
        head = ("tensor", "same bits", "|change|", "relative", "largest", "changed")
        rows = [(row["name"] + (f" ({row['part']})" if row["part"] else ""), *_cells(row)) for row in found["tensors"]]
    else:
        head = ("component", "same bits", "|change|", "relative", "largest", "changed")
        rows = [(name, *_cells_together(row)) for name, row in found["components"].items()]
    lines += aligned([head, *rows])
    lines += [f"{row['name']}: {_shape(row['shapes'][0])} there, {_shape(row['shapes'][1])} here"
              for row in found["tensors"] if "shapes" in row]
    return "\n".join(lines + padding)


def _padding_lines(rows: list[dict]) -> list[str]:
    other = [(row["name"], *row["padding"]["rows"]) for row in rows if not row.get("padding", {"same": True})["same"]]
    return [f"{name}: rows {first} to {last - 1}, which are padding, have other bits and are not compared"
            for name, first, last in other]


_NOT_COMPARABLE = ("not comparable", "-", "-", "-", "-")
"""Of other shapes, or in one of the two only."""


def _cells(row: dict) -> tuple[str, ...]:
    return _NOT_COMPARABLE if "shapes" in row else ("yes" if row["same"] else "no", *_measured(row))


def _cells_together(row: dict) -> tuple[str, ...]:
    if row["other shape"] == row["rows"]:
        return _NOT_COMPARABLE
    others = f", {row['other shape']} not comparable" if row["other shape"] else ""
    return f"{row['same']} of {row['rows']}{others}", *_measured(row)


def _measured(row: dict) -> tuple[str, ...]:
    return *(short(row[key]) for key in ("distance", "relative", "largest")), f"{row['changed']:.2%}"


def _shape(shape: list[int] | None) -> str:
    return "none" if shape is None else " x ".join(map(str, shape))


def plot(found: dict, path: Path) -> None:
    """A PNG: the relative change of each part by layer, and of what lies outside the layers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes, beside = figure.subplots(1, 2, width_ratios=(4, 1))
    curves: dict[str, list[tuple[int, float]]] = {}
    outside = {}
    for row in found["tensors"]:
        if row.get("relative") is None:
            continue
        part = row["part"] or parts_in(_kind(row["name"]))[0]
        if row["layer"] is None:
            outside[part] = row["relative"]
        else:
            curves.setdefault(part, []).append((row["layer"], row["relative"]))
    markers = dict(zip(LAYER_PARTS, "osv^xD<>+", strict=True))
    for part, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker=markers[part], label=part)
    axes.set(xlabel="layer", ylabel="|change| / |before|", title="relative change of each part")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if curves:
        axes.legend(fontsize="small")
    beside.bar(list(outside), list(outside.values()), color="#4d4d4d")
    beside.tick_params(axis="x", rotation=60)
    with publish(path) as aside:
        figure.savefig(aside, dpi=120, format="png")


def _kind(name: str) -> str:
    return name.split(".", 2)[2] if name.startswith("layers.") else name
