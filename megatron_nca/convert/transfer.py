"""The phase transition: which weights the next phase takes over, how the others start, and an account of every tensor.

As in the paper's code the layers and the final norm are carried and the vocabulary-bound tensors start anew; unlike
there, each part can be carried or not, nothing is matched by luck of its name, and a tensor that nothing explains is
an error. Optimizer, schedule and random states are never carried.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from megatron_nca.config.components import OTHER_PARTS, Piece, parts_in
from megatron_nca.config.model import ModelConfig
from megatron_nca.config.run_config import RunConfig
from megatron_nca.config.schema import to_dict
from megatron_nca.config.start import FROM_SOURCE, Start
from megatron_nca.convert import laws, megatron
from megatron_nca.convert.account import ACCOUNT_FILE, FORMAT, VERSION, Row, digest, totals
from megatron_nca.convert.canonical import CanonicalCheckpoint, CanonicalTensor, check_free
from megatron_nca.convert.parts import part_of, part_shape
from megatron_nca.errors import CheckpointError, ConfigError, explain
from megatron_nca.initialise import TensorSpec, initial_tensor, tensor_table

_SHAPING = ("hidden_size", "num_heads", "query_groups", "ffn_hidden_size", "rope_base", "rope_scaling", "norm_epsilon")
"""Settings that must agree for weights to mean the same in both models."""
_VOCABULARY = ("embedding", "head")
_ORDER = (*megatron.OTHER_KEYS, *megatron.LAYER_KEYS)


@dataclass(frozen=True)
class Origin:
    """Where a piece's numbers come from: `law` is None for what is carried, `tensor` the source's, if one is read."""

    law: str | None
    tensor: str | None


class Transfer:
    """One phase transition, checked: `source` (None if nothing is taken from one) into a model of `target`'s shape.

    Raises CheckpointError for a source of another shape, ConfigError for a start that does not fit.
    """

    def __init__(self, source: CanonicalCheckpoint | None, target: ModelConfig, start: Start, seed: int) -> None:
        self.source, self.target, self.start, self.seed = source, target, start, seed
        if seed < 0:
            raise ConfigError(explain("--seed", seed, "must not be negative.", "give 0 or more."))
        if start.needs_source and source is None:
            raise ConfigError(explain("--carry", " ".join(start.carry), "there is nothing to carry from.",
                                      "add --from CHECKPOINT, or --carry none."))
        if start.needs_source:
            self._check_same_shape(source.model)
        depth = source.model.num_layers if source else None
        self.resolved = start.resolve(target.num_layers, depth, target.tied_embeddings)
        if start.needs_source:
            self._check_same_vocabulary(source.model)
        self._specs = {spec.name: spec for spec in tensor_table(target)}
        self._origins = self._find_origins()
        self._rows = {spec.name: self._rows_of(spec) for spec in self._specs.values()}

    def _check_same_shape(self, source: ModelConfig) -> None:
        names = (*(("num_layers",) if self.start.layer_map is None else ()), *_SHAPING)
        different = [f"model.{name} is {getattr(source, name)} there and {getattr(self.target, name)} in the target"
                     + (" (--layer-map says which goes where)" if name == "num_layers" else "")
                     for name in names if getattr(source, name) != getattr(self.target, name)]
        if different:
            self._refuse("; ".join(different))

    def _check_same_vocabulary(self, source: ModelConfig) -> None:
        bound = [part for part in _VOCABULARY if self.resolved.laws.get((part, None)) == "permuted"
                 or ((part, None) in self.resolved.carried and not self.start.shared_rows)]
        if bound and source.vocab_size != self.target.vocab_size:
            self._refuse(f"vocab_size is {source.vocab_size} there and {self.target.vocab_size} in the target "
                         f"(it binds {' and '.join(bound)}; leave {'them' if bound[1:] else 'it'} out of --carry, "
                         "or carry the rows that both have with --shared-rows)")

    def _refuse(self, reason: str) -> None:
        raise CheckpointError(f"{self.source.origin}: cannot be carried into the target model: {reason}. "
                              "Cure: use the same model in both phases, or --carry none.")

    def _find_origins(self) -> dict[Piece, Origin]:
        """Of every piece of the target."""
        result, shuffled = {}, {}
        for spec in self._specs.values():
            for part in _parts(spec):
                piece = part, spec.layer
                law = None if piece in self.resolved.carried else self.resolved.laws.get(piece, "own")
                needed = law is None or law in FROM_SOURCE
                result[piece] = Origin(law, self._source_name(spec) if needed else None)
                if law == "shuffled_layers":
                    shuffled.setdefault(part, []).append(spec.layer)
        for part, layers in shuffled.items():
            if len(layers) < 2:
                raise ConfigError(explain("laws", "shuffled_layers", f"of {part} there is one layer.", "use permuted."))
            taken = laws.cycle(tuple(layers), self.seed)
            names = {layer: result[part, layer].tensor for layer in layers}
            result |= {(part, layer): Origin("shuffled_layers", names[taken[layer]]) for layer in layers}
        return result

    def _source_name(self, spec: TensorSpec) -> str:
        """The source's tensor that goes into the target's; a tied source has its embedding for a head."""
        if spec.layer is not None:
            return f"layers.{self.resolved.layer_map[spec.layer]}.{_kind(spec)}"
        tied = spec.component == "head" and self.source.model.tied_embeddings
        return OTHER_PARTS["embedding"] if tied else spec.name

    def _rows_of(self, spec: TensorSpec) -> list[Row]:
        """The account's rows of a tensor: one, unless its parts, or rows of a vocabulary, differ in origin."""
        parts = _parts(spec)
        origins = {part: self._origins[part, spec.layer] for part in parts}
        if len(set(origins.values())) > 1:
            return [self._row(spec, origin, part=part) for part, origin in origins.items()]
        (origin,) = set(origins.values())
        shared = self._shared_rows(spec, origin)
        if not shared or shared == spec.filled_rows == self.source.model.vocab_size:
            return [self._row(spec, origin)]
        own = Origin(self._law_beside(parts[0]), None)
        return [self._row(spec, origin, rows=(0, shared)), self._row(spec, own, rows=(shared, spec.shape[0]))]

    def _shared_rows(self, spec: TensorSpec, origin: Origin) -> int:
        """How many rows of a vocabulary are carried by id; 0 where that is not the question."""
        if spec.filled_rows is None or origin.law is not None:
            return 0
        return min(spec.filled_rows, self.source.model.vocab_size)

    def _row(self, spec: TensorSpec, origin: Origin, part: str | None = None, rows: tuple | None = None) -> Row:
        shape = spec.shape if part is None else part_shape(spec.shape, part, self.target)
        shape = shape if rows is None else (rows[1] - rows[0], *shape[1:])
        row = Row(spec.name, "carried" if origin.law is None else "re-initialised", shape, spec.component, spec.layer,
                  part, rows, source=origin.tensor)
        if origin.law is None:
            row.note = self.source.tensor(origin.tensor).note
            if spec.component == "head" and origin.tensor != spec.name:
                row.note = "the source's embedding, to which its head is tied"
            return row
        random = origin.law != "mean"
        row.law, row.seed = self._law_text(spec, origin.law), self.seed if random else None
        if spec.filled_rows is not None and spec.filled_rows < spec.shape[0] and origin.law != "permuted":
            row.note = f"rows {spec.filled_rows} to {spec.shape[0] - 1} are padding and zero"
        return row

    def _law_text(self, spec: TensorSpec, law: str) -> str:
        return law.replace("_", " ") if law in FROM_SOURCE else str(laws.with_law(spec, law, self.target).law)

    def result(self) -> CanonicalCheckpoint:
        """The new checkpoint; reading what depends on the source also enters its hash into the account.

        Layers come in the order of the source's, in which several transfers can be written in one pass over it.
        """
        specs = sorted(self._specs.values(), key=lambda spec: self.place(spec.name))
        tensors = [CanonicalTensor(spec.name, spec.shape, "float32", partial(self._make, spec)) for spec in specs]
        return CanonicalCheckpoint("the new checkpoint", self.target, tuple(tensors))

    def place(self, name: str) -> tuple[int, int]:
        """Where a tensor of the target comes in that order: its kind, and the source's layer, or its own."""
        spec = self._specs[name]
        taken = [row.source.split(".")[1] for row in self._rows[name] if row.source and spec.layer is not None]
        return _ORDER.index(_kind(spec)), min(map(int, taken), default=spec.layer or 0)

    def _make(self, spec: TensorSpec) -> torch.Tensor:
        rows, parts = self._rows[spec.name], _parts(spec)
        origins = {part: self._origins[part, spec.layer] for part in parts}
        read = functools.cache(lambda name: self.source.tensor(name).read().float().contiguous())
        draw = functools.cache(lambda law: torch.from_numpy(
            initial_tensor(laws.with_law(spec, law, self.target), self.seed)))
        if rows[0].rows:
            result, shared = draw(self._law_beside(parts[0])), rows[0].rows[1]
            result[:shared] = read(rows[0].source)[:shared]
        elif len(rows) == 1 and origins[parts[0]].law != "permuted":
            result = self._whole(spec, origins[parts[0]], read, draw)
        else:
            result = torch.empty(spec.shape)
            for part, origin in origins.items():
                values = part_of(self._whole(spec, origin, read, draw), part, self.target)
                self._put(part_of(result, part, self.target), values, spec, part)
        for row in rows:
            if row.source is not None:
                row.sha256 = digest(row.of(result, self.target))
        return result

    def _whole(self, spec: TensorSpec, origin: Origin, read: Callable, draw: Callable) -> torch.Tensor:
        """A tensor all of which would be of this origin, not yet permuted."""
        if origin.law == "mean":
            return laws.mean_rows(read(origin.tensor), self.source.model.vocab_size, spec.shape, spec.filled_rows)
        return draw(origin.law) if origin.tensor is None else read(origin.tensor)

    def _put(self, place: torch.Tensor, values: torch.Tensor, spec: TensorSpec, part: str) -> None:
        """A part's numbers into its place, permuted if that is its law; padding stays where it is."""
        if self._origins[part, spec.layer].law != "permuted":
            place.copy_(values)
            return
        filled = len(values) if spec.filled_rows is None else spec.filled_rows
        place[filled:] = values[filled:]
        laws.permute(values[:filled], place[:filled], self.seed, f"{spec.name} {part}")

    def _law_beside(self, part: str) -> str:
        """The law of the rows of a vocabulary that are not carried with the others."""
        return self.resolved.laws.get((part, None), "own")

    def run_config(self, recipe: str | None = None, phase: str | None = None) -> RunConfig:
        return RunConfig(model=self.target, recipe=recipe, phase=phase, seed=self.seed)

    def account(self) -> dict:
        """The account of every tensor of both checkpoints, fit for JSON; reads what it must for the hashes."""
        for name, rows in self._rows.items():
            if any(row.source is not None and row.sha256 is None for row in rows):
                self._make(self._specs[name])
        return self.outline()

    def write_account(self, folder: Path) -> None:
        text = json.dumps(self.account(), indent=1)
        (folder / ACCOUNT_FILE).write_text(text + "\n", encoding="utf-8")

    def outline(self) -> dict:
        """The account without reading any tensor: hashes are null where they are not known yet."""
        rows = [*(row for rows in self._rows.values() for row in rows), *self._dropped()]
        source = self.source and {"checkpoint": self.source.origin, "iteration": self.source.iteration,
                                  "model": to_dict(self.source.model)}
        return {"format": FORMAT, "version": VERSION, "source": source, "model": to_dict(self.target),
                "start": to_dict(self.start), "layer_map": list(self.resolved.layer_map), "seed": self.seed,
                "totals": totals(rows), "tensors": [to_dict(row) for row in rows]}

    def _dropped(self) -> list[Row]:
        """What of the source goes nowhere. A mean is not the numbers it was taken of."""
        if self.source is None:
            return []
        used = {(origin.tensor, part) for (part, _), origin in self._origins.items() if origin.law != "mean"}
        if (OTHER_PARTS["embedding"], "head") in used:  # a tied source
            used.add((OTHER_PARTS["embedding"], "embedding"))
        rows = []
        for spec in tensor_table(self.source.model):
            parts = [part for part in _parts(spec) if (spec.name, part) not in used]
            whole = len(parts) == len(_parts(spec))
            for part in [None] if whole else parts:
                shape = part_shape(spec.shape, part, self.source.model) if part else spec.shape
                note = self.source.tensor(spec.name).note
                rows.append(Row(spec.name, "dropped", shape, spec.component, spec.layer, part, note=note))
            rows += self._dropped_rows(spec)
        return rows + [Row(item.key, "dropped", item.shape, note=item.reason) for item in self.source.ignored]

    def _dropped_rows(self, spec: TensorSpec) -> list[Row]:
        """Of a vocabulary of which the shared rows go on, those that do not."""
        every = (row for rows in self._rows.values() for row in rows)
        first = [row.rows[1] for row in every if row.rows and row.source == spec.name]
        left = spec.shape[0] - first[0] if first else 0
        rows = (first[0], spec.shape[0]) if left else None
        return [Row(spec.name, "dropped", (left, spec.shape[1]), spec.component, rows=rows)] if left else []


def _kind(spec: TensorSpec) -> str:
    """The tensor's name within its layer."""
    return spec.name if spec.layer is None else spec.name.split(".", 2)[2]


def _parts(spec: TensorSpec) -> tuple[str, ...]:
    return parts_in(_kind(spec))


def write_transfer(folder: Path, transfer: Transfer, run_config: RunConfig) -> dict:
    """Write the new checkpoint with its account; returns the account. Raises as `convert.megatron.write`."""
    check_free(folder, transfer.result())
    megatron.write(folder, transfer.result(), run_config, last=transfer.write_account)
    return transfer.account()
