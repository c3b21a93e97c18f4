"""What a phase takes over from the one before it, how the rest starts, and what stays as it is for a while."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from megatron_nca.config.components import (
    LAYER_PARTS,
    OTHER_PARTS,
    Piece,
    at_layers,
    check_words,
    parts_in,
    pieces,
)
from megatron_nca.config.schema import suggest
from megatron_nca.errors import ConfigError, explain

LAWS = ("own", "released", "mean", "permuted", "shuffled_layers")
"""How a part starts that is not carried; also normal:STD. docs/converters.md has the table."""
FROM_SOURCE = ("mean", "permuted", "shuffled_layers")
"""Laws that need the source's numbers."""
LAYER_MAPS = ("first", "spread", "repeat")
NEW = "new"
"""In a layer map: a layer that no layer of the source goes into."""


@dataclass(frozen=True)
class Resolved:
    """A Start for a model of known depth: what is carried, each other piece's law (`own` where there is none), and
    for each layer the source's layer that goes into it, None for a new one."""

    carried: frozenset[Piece]
    laws: dict[Piece, str]
    layer_map: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a phase takes over from the step before it; all else is initialised anew."""

    carry: tuple[str, ...] = ()
    """Words of parts (convert transfer --carry); empty: nothing, which is training from scratch."""
    reinit: tuple[str, ...] = ()
    """Words of parts that are taken out of `carry` again."""
    layers: tuple[int, int] | None = None
    """Half-open range for the words of `carry` that name no layers; None: all. Layers are those of the new model."""
    laws: dict[str, str] = field(default_factory=dict)
    """Word -> the law by which those of its parts start that are not carried; the model's own law without one."""
    layer_map: str | None = None
    """The source's layer for each layer of the new model, such as 0,0,1,1, or one of first, spread, repeat."""
    shared_rows: bool = False
    """Of embedding and head carry the rows that both vocabularies have, by id, though the vocabularies differ."""

    def __post_init__(self) -> None:
        check_words(self.carry, "carry")
        check_words(self.reinit, "reinit")
        self._words()
        for word, law in self.laws.items():
            check_words([word], "laws")
            _check_law(word, law)
        listed = rf"(\d+|{NEW})(,(\d+|{NEW}))*"
        if self.layer_map not in (None, *LAYER_MAPS) and not re.fullmatch(listed, self.layer_map):
            raise ConfigError(explain("layer_map", self.layer_map, "is no map of layers.",
                                      f"give one of {', '.join(LAYER_MAPS)}, or a list such as 0,0,1,{NEW}."))
        if self.shared_rows and not {"embedding", "head"} & set(self.carry):
            raise ConfigError(explain("shared_rows", True, "neither embedding nor head is carried.", "leave it out."))

    @property
    def needs_source(self) -> bool:
        return any(word != "none" for word in self.carry) or any(law in FROM_SOURCE for law in self.laws.values())

    def resolve(self, num_layers: int, source_layers: int | None, tied: bool) -> Resolved:
        """For a model of `num_layers`, with a tied head or not, and a source's depth. Raises ConfigError."""
        words = {"carry": self._words(), "reinit": self.reinit, "laws": tuple(self.laws)}
        for setting, names in words.items():
            if tied and "head" in names:
                raise ConfigError(explain(setting, "head", "the new model's head is its embedding (tied_embeddings), "
                                          "no tensor of its own.", "leave head out, or name embedding."))
        layer_map = self._map(num_layers, source_layers)
        carried = pieces(words["carry"], num_layers, "carry") - pieces(self.reinit, num_layers, "reinit")
        kept = frozenset(p for p in carried if p[1] is None or layer_map[p[1]] is not None)
        laws: dict[Piece, str] = {}
        for word, law in self.laws.items():
            chosen = pieces([word], num_layers, "laws") - kept
            if not chosen:
                raise ConfigError(explain(f"laws.{word}", law, "all of it is carried.", "take it out of carry."))
            twice = sorted((p for p in chosen if p in laws), key=str)
            if twice:
                raise ConfigError(explain(f"laws.{word}", law, f"{twice[0][0]} has the law {laws[twice[0]]} already.",
                                          "name other parts or layers."))
            laws |= {piece: _fitting(piece, law, word, layer_map) for piece in chosen}
        return Resolved(kept, laws, layer_map)

    def _words(self) -> tuple[str, ...]:
        return at_layers(self.carry, "{}:{}".format(*self.layers), "carry") if self.layers else self.carry

    def _map(self, num_layers: int, source_layers: int | None) -> tuple[int | None, ...]:
        if source_layers is None or not self.needs_source:
            return tuple(range(num_layers))
        if self.layer_map is None:
            if source_layers != num_layers:
                raise ConfigError(explain("layer_map", None, f"the source has {source_layers} layers, the new model "
                                          f"{num_layers}.", f"say which goes where: {', '.join(LAYER_MAPS)}, a list."))
            return tuple(range(num_layers))
        if self.layer_map == "first":
            return tuple(n if n < source_layers else None for n in range(num_layers))
        if self.layer_map == "spread":
            return tuple(n * source_layers // num_layers for n in range(num_layers))
        if self.layer_map == "repeat":
            return tuple(n % source_layers for n in range(num_layers))
        listed = tuple(None if entry == NEW else int(entry) for entry in self.layer_map.split(","))
        wrong = [entry for entry in listed if entry is not None and entry >= source_layers]
        if wrong:
            reason = f"names layer {wrong[0]} of {source_layers}, which are counted from 0."
            raise ConfigError(explain("layer_map", self.layer_map, reason,
                                      f"name layers below {source_layers}, or {NEW}."))
        if len(listed) != num_layers:
            reason = f"has {len(listed)} entries for {num_layers} layers."
            raise ConfigError(explain("layer_map", self.layer_map, reason, "give an entry for each new layer."))
        return listed


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """Parts that stay as they were carried while the others are trained: no update, no decay, no moments."""

    components: tuple[str, ...]
    """Words as in `carry`. Tensors are frozen whole, so q, k and v go together, and so do gate and up."""
    iterations: int | None = None
    """Of the phase, after which all are trained, with moments that start at zero then; None: the whole phase."""

    def __post_init__(self) -> None:
        check_words(self.components, "freeze.components")
        if self.iterations is not None and self.iterations < 1:
            raise ConfigError(explain("freeze.iterations", self.iterations, "must be at least 1.", "leave freeze out."))

    def holds_at(self, iteration: int) -> bool:
        """Whether the parts are frozen in an iteration, counted from 0."""
        return self.iterations is None or iteration < self.iterations

    def kinds(self, num_layers: int, tied: bool) -> frozenset[tuple[str, int | None]]:
        """The frozen tensors of a model: (name within the layer, layer). Raises ConfigError."""
        if tied and "head" in self.components:
            raise ConfigError(explain("freeze.components", "head", "it is the embedding (tied_embeddings).",
                                      "name embedding."))
        chosen = pieces(self.components, num_layers, "freeze.components")
        places = {**LAYER_PARTS, **OTHER_PARTS}
        kinds = {(places[part], layer) for part, layer in chosen}
        for kind, layer in sorted(kinds, key=str):
            missing = [part for part in parts_in(kind) if (part, layer) not in chosen]
            if missing:
                reason = f"{' and '.join(parts_in(kind))} are one tensor in training, and {missing[0]} is not named."
                raise ConfigError(explain("freeze.components", " ".join(self.components), reason,
                                          f"name {', '.join(parts_in(kind))} together, or none of them."))
        others = [name for name in OTHER_PARTS.values() if not (tied and name == "head.weight")]
        if len(kinds) == num_layers * len(set(LAYER_PARTS.values())) + len(others) or not kinds:
            reason = "nothing would be trained." if kinds else "nothing is named."
            raise ConfigError(explain("freeze.components", " ".join(self.components), reason, "name fewer parts."
                                      if kinds else "leave freeze out."))
        return frozenset(kinds)


def _check_law(word: str, law: str) -> None:
    if law in LAWS:
        return
    kind, colon, std = law.partition(":")
    if not (kind == "normal" and colon and re.fullmatch(r"\d+(\.\d*)?(e-?\d+)?", std) and float(std) > 0):
        raise ConfigError(f"laws.{word} = {law!r}: is no law.{suggest(law, [*LAWS, 'normal:0.02'])}")


def _fitting(piece: Piece, law: str, word: str, layer_map: Iterable[int | None]) -> str:
    """`law`, if it can be the law of this piece. Raises ConfigError."""
    part, layer = piece
    if law == "mean" and part not in ("embedding", "head"):
        raise ConfigError(explain(f"laws.{word}", law, f"{part} has no rows of a vocabulary.",
                                  "use it for embedding or head."))
    if law == "shuffled_layers" and layer is None:
        raise ConfigError(explain(f"laws.{word}", law, f"{part} lies in no layer.", "use it for layers."))
    if law in FROM_SOURCE and layer is not None and tuple(layer_map)[layer] is None:
        raise ConfigError(explain(f"laws.{word}", law, f"layer {layer} is new.", "name other layers."))
    return law
