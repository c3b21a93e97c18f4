"""The phase transition: which weights the next phase takes over, how the others start, and an account of every tensor.

As in the paper's code the layers and the final norm are carried and the vocabulary-bound tensors start anew; unlike
there, each part can be carried or not, nothing is matched by luck of its name, and a tensor that nothing explains is
an error. Optimizer, schedule and random states are never carried.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.run_config import RunConfig
from megatron_nca.config.schema import suggest, to_dict
from megatron_nca.convert.canonical import CanonicalCheckpoint, CanonicalTensor
from megatron_nca.errors import CheckpointError, ConfigError, explain
from megatron_nca.initialise import COMPONENTS, TensorSpec, initial_tensor, tensor_table

ACCOUNT_FILE = "account.json"
ALIASES = {"all": ("attention", "mlp", "norms", "final_norm"), "none": ()}
"""`all`: what does not depend on the vocabulary."""
_BY_LAYER = ("attention", "mlp", "norms")
_SHAPING = ("num_layers", "hidden_size", "num_heads", "query_groups", "ffn_hidden_size", "rope_base", "rope_scaling",
            "norm_epsilon")
"""Settings that must agree for weights to mean the same in both models; vocab_size besides for embedding and head."""


@dataclass(frozen=True)
class Selection:
    """What is carried: components, and for those of the layers a half-open range of them (None: all layers)."""

    components: tuple[str, ...]
    layers: tuple[int, int] | None = None

    def covers(self, spec: TensorSpec) -> bool:
        if spec.component not in self.components:
            return False
        return spec.layer is None or self.layers is None or self.layers[0] <= spec.layer < self.layers[1]


@dataclass
class Row:
    """One tensor in the account. `sha256` is of the float32 bytes, of carried tensors only."""

    name: str
    action: str
    """carried, re-initialised (into the new checkpoint), or dropped (of the old one)."""
    shape: tuple[int, ...] | None
    component: str | None = None
    layer: int | None = None
    law: str | None = None
    seed: int | None = None
    sha256: str | None = None
    note: str | None = None


def select(names: Iterable[str], layers: tuple[int, int] | None = None) -> Selection:
    """A selection from the words of `--carry`. Raises ConfigError naming the nearest component of an unknown word."""
    names = list(names)
    for name in names:
        if name not in COMPONENTS and name not in ALIASES:
            raise ConfigError(f"--carry {name}: is no component.{suggest(name, [*COMPONENTS, *ALIASES])}")
    if "none" in names and len(names) > 1:
        raise ConfigError(explain("--carry", " ".join(names), "'none' excludes the others.", "give it alone, or not."))
    wanted = {part for name in names for part in ALIASES.get(name, (name,))}
    if layers is not None and not wanted & set(_BY_LAYER):
        reason = f"--carry {' '.join(names)} carries nothing that lies in layers."
        raise ConfigError(explain("--layers", f"{layers[0]}:{layers[1]}", reason, "leave it out."))
    return Selection(tuple(part for part in COMPONENTS if part in wanted), layers)


class Transfer:
    """One phase transition, checked: `source` (None if nothing is carried) into a model of `target`'s shape.

    Raises CheckpointError for a source of another shape, ConfigError for a selection that does not fit.
    """

    def __init__(self, source: CanonicalCheckpoint | None, target: ModelConfig, selection: Selection,
                 seed: int) -> None:
        self.source, self.target, self.selection, self.seed = source, target, selection, seed
        self._check()
        self._rows = {spec.name: self._row(spec) for spec in tensor_table(target)}

    def _check(self) -> None:
        if self.seed < 0:
            raise ConfigError(explain("--seed", self.seed, "must not be negative.", "give 0 or more."))
        if not self.selection.components:
            return
        if self.source is None:
            raise ConfigError(explain("--carry", " ".join(self.selection.components), "there is nothing to carry from.",
                                      "add --from CHECKPOINT, or --carry none."))
        self._check_same_model(self.source.model)
        layers, num_layers = self.selection.layers, self.target.num_layers
        if layers is not None and not 0 <= layers[0] < layers[1] <= num_layers:
            raise ConfigError(explain("--layers", f"{layers[0]}:{layers[1]}", f"is no range within 0:{num_layers}.",
                                      "give FIRST:LAST, LAST not included."))

    def _check_same_model(self, source: ModelConfig) -> None:
        different = [f"model.{name} is {getattr(source, name)} there and {getattr(self.target, name)} in the target"
                     for name in _SHAPING if getattr(source, name) != getattr(self.target, name)]
        bound = [part for part in ("embedding", "head") if part in self.selection.components]
        if bound and source.vocab_size != self.target.vocab_size:
            different.append(f"vocab_size is {source.vocab_size} there and {self.target.vocab_size} in the target "
                             f"(it binds {' and '.join(bound)}; leave {'them' if bound[1:] else 'it'} out of --carry)")
        if different:
            raise CheckpointError(f"{self.source.origin}: cannot be carried into the target model: "
                                  f"{'; '.join(different)}. "
                                  "Cure: use the same model in both phases, or --carry none.")

    def _row(self, spec: TensorSpec) -> Row:
        if self.selection.covers(spec):
            note = self.source.tensor(spec.name).note
            return Row(spec.name, "carried", spec.shape, spec.component, spec.layer, note=note)
        padding = spec.filled_rows is not None and spec.filled_rows < spec.shape[0]
        note = f"rows {spec.filled_rows} to {spec.shape[0] - 1} are padding and zero" if padding else None
        return Row(spec.name, "re-initialised", spec.shape, spec.component, spec.layer, str(spec.law), self.seed,
                   note=note)

    def result(self) -> CanonicalCheckpoint:
        """The new checkpoint; reading a carried tensor also enters its hash into the account."""
        tensors = [CanonicalTensor(spec.name, spec.shape, "float32", self._reader(spec))
                   for spec in tensor_table(self.target)]
        return CanonicalCheckpoint("the new checkpoint", self.target, tuple(tensors))

    def run_config(self, recipe: str | None = None, phase: str | None = None) -> RunConfig:
        return RunConfig(model=self.target, recipe=recipe, phase=phase, seed=self.seed)

    def account(self) -> dict:
        """The account of every tensor of both checkpoints, fit for JSON; reads what it must for the hashes."""
        for row in self._rows.values():
            if row.action == "carried" and row.sha256 is None:
                self._carry(row)
        return self.outline()

    def outline(self) -> dict:
        """The account without reading any tensor: hashes are null where they are not known yet."""
        rows = [*self._rows.values(), *self._dropped()]
        source = self.source and {"checkpoint": self.source.origin, "iteration": self.source.iteration,
                                  "model": to_dict(self.source.model)}
        return {"format": "megatron_nca account", "version": 1, "source": source, "model": to_dict(self.target),
                "carry": list(self.selection.components), "layers": to_dict(self.selection.layers), "seed": self.seed,
                "totals": _totals(rows), "tensors": [to_dict(row) for row in rows]}

    def _dropped(self) -> list[Row]:
        if self.source is None:
            return []
        carried = {row.name for row in self._rows.values() if row.action == "carried"}
        parts = {spec.name: spec for spec in tensor_table(self.source.model)}
        rows = [Row(t.name, "dropped", t.shape, parts[t.name].component, parts[t.name].layer, note=t.note)
                for t in self.source.tensors if t.name not in carried]
        return rows + [Row(item.key, "dropped", item.shape, note=item.reason) for item in self.source.ignored]

    def _reader(self, spec: TensorSpec) -> Callable[[], torch.Tensor]:
        row = self._rows[spec.name]
        return partial(self._carry, row) if row.action == "carried" else partial(_initial, spec, self.seed)

    def _carry(self, row: Row) -> torch.Tensor:
        values = self.source.tensor(row.name).read().to(torch.float32).contiguous()
        row.sha256 = hashlib.sha256(values.numpy().astype("<f4", copy=False).data).hexdigest()
        return values


def _initial(spec: TensorSpec, seed: int) -> torch.Tensor:
    return torch.from_numpy(initial_tensor(spec, seed))


def same_account(one: dict, other: dict) -> list[str]:
    """Names of the entries in which two accounts differ; where the source lay does not count."""
    def place_free(account: dict) -> dict:
        source = account.get("source")
        return {**account, "source": source and {**source, "checkpoint": None}}
    one, other = json.loads(json.dumps(place_free(one))), json.loads(json.dumps(place_free(other)))
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def _totals(rows: list[Row]) -> dict:
    """Of each action, how many tensors and parameters, by component; `other` is what is no weight of the model."""
    totals: dict = {action: {} for action in ("carried", "re-initialised", "dropped")}
    for row in rows:
        entry = totals[row.action].setdefault(row.component or "other", {"tensors": 0, "parameters": 0})
        entry["tensors"] += 1
        entry["parameters"] += 0 if row.component is None else int(np.prod(row.shape))
    return totals


def format_account(account: dict) -> str:
    """The account as a compact table, a line per component."""
    head = ("component", "carried", "re-initialised", "dropped", "starts as")
    lines = [head]
    for part in (*COMPONENTS, "other"):
        cells = [_cell(account["totals"][action].get(part)) for action in ("carried", "re-initialised", "dropped")]
        laws = {row["law"] for row in account["tensors"] if row["component"] == part and row["law"]}
        if any(cells):
            lines.append((part if part != "other" else "not weights", *cells, ", ".join(sorted(laws))))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    notes = {f"{row['component']}: {row['note']}" for row in account["tensors"]
             if row["note"] and row["action"] != "dropped"}
    return "\n".join(["  ".join(line).rstrip() for line in padded] + sorted(notes))


def _cell(total: dict | None) -> str:
    if not total:
        return ""
    return f"{total['tensors']} ({total['parameters']:,})" if total["parameters"] else str(total["tensors"])


def write_transfer(folder: Path, transfer: Transfer, run_config: RunConfig) -> dict:
    """Write the new checkpoint with its account; returns the account. Raises as `convert.megatron.write`."""
    from megatron_nca.convert import megatron

    def write_account(aside: Path) -> None:
        text = json.dumps(transfer.account(), indent=1)
        (aside / ACCOUNT_FILE).write_text(text + "\n", encoding="utf-8")

    megatron.write(folder, transfer.result(), run_config, last=write_account)
    return transfer.account()
