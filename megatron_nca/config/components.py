"""The parts of a model by name, sets of them, and the words that choose parts of some layers, such as mlp@0:4,8:12."""

import re
from collections.abc import Iterable

from megatron_nca.config.schema import suggest
from megatron_nca.errors import ConfigError, explain

LAYER_PARTS = {
    "attention_norm": "attention_norm.weight",
    "q": "attention.qkv.weight",
    "k": "attention.qkv.weight",
    "v": "attention.qkv.weight",
    "o": "attention.proj.weight",
    "mlp_norm": "mlp_norm.weight",
    "gate": "mlp.fc1.weight",
    "up": "mlp.fc1.weight",
    "down": "mlp.fc2.weight",
}
"""Part of a layer -> the tensor it lies in. q, k and v are rows of one tensor, gate and up of another."""
OTHER_PARTS = {"embedding": "embedding.weight", "final_norm": "final_norm.weight", "head": "head.weight"}

COMPONENTS = {
    "attention": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
    "norms": ("attention_norm", "mlp_norm"),
    "final_norm": ("final_norm",),
    "embedding": ("embedding",),
    "head": ("head",),
}
"""What accounts count by; every part is in one of them. norms: also the one that Megatron stores with the qkv
projection."""
_LAYERS = tuple(LAYER_PARTS)
SETS = {**COMPONENTS, "layers": _LAYERS, "all": (*_LAYERS, "final_norm"), "none": ()}
"""`all`: what does not depend on the vocabulary."""

Piece = tuple[str, int | None]
"""A part and its layer; None outside the layers."""


def component_of(part: str) -> str:
    return next(name for name, parts in COMPONENTS.items() if part in parts)


def parts_in(kind: str) -> tuple[str, ...]:
    """The parts that lie in a tensor, in their order; `kind` is its name, within its layer if it is in one."""
    return tuple(part for part, place in {**LAYER_PARTS, **OTHER_PARTS}.items() if place == kind)


def check_words(words: Iterable[str], setting: str) -> None:
    """Raise ConfigError for a word that names no parts, naming the nearest, or whose layers cannot be read."""
    words = list(words)
    for word in words:
        name, at, ranges = word.partition("@")
        known = [*SETS, *LAYER_PARTS]
        if name not in known:
            raise ConfigError(f"{setting} {word}: is no component.{suggest(name, known)}")
        if not at:
            continue
        if not re.fullmatch(r"(\d*:\d*|\d+)(,(\d*:\d*|\d+))*", ranges):
            raise ConfigError(explain(f"{setting} {word}", ranges, "are no ranges of layers.",
                                      "give FIRST:LAST, LAST not included, or several with commas: 0:4,8:12."))
        if not set(_parts(name)) & set(LAYER_PARTS):
            raise ConfigError(explain(setting, word, "names layers, but nothing of it lies in layers.",
                                      f"give {name} alone."))
    if "none" in words and len(words) > 1:
        raise ConfigError(explain(setting, " ".join(words), "'none' excludes the others.", "give it alone, or not."))


def at_layers(words: Iterable[str], ranges: str, setting: str) -> tuple[str, ...]:
    """`words` with `ranges` on those that lie in layers and name none. Raises ConfigError if there are none such."""
    words, result = tuple(words), []
    for word in words:
        inside = "@" not in word and set(_parts(word)) & set(LAYER_PARTS)
        outside = [part for part in _parts(word) if part in OTHER_PARTS] if inside else []
        name = "layers" if outside else word  # only `all` is both
        result += [f"{name}@{ranges}", *outside] if inside else [word]
    if result == list(words):
        raise ConfigError(explain("layers", ranges, f"{setting} {' '.join(words)} carries nothing that lies in layers.",
                                  "leave it out."))
    return tuple(result)


def pieces(words: Iterable[str], num_layers: int, setting: str) -> frozenset[Piece]:
    """What checked `words` choose in a model of so many layers. Raises ConfigError for layers that it has not."""
    chosen: set[Piece] = set()
    for word in words:
        name, at, ranges = word.partition("@")
        layers = _layers(ranges, num_layers, f"{setting} {word}") if at else range(num_layers)
        for part in _parts(name):
            if part in LAYER_PARTS:
                chosen |= {(part, layer) for layer in layers}
            elif not at:
                chosen.add((part, None))
    return frozenset(chosen)


def _parts(name: str) -> tuple[str, ...]:
    return SETS.get(name, (name,))


def _layers(ranges: str, num_layers: int, setting: str) -> set[int]:
    layers: set[int] = set()
    for piece in ranges.split(","):
        first, colon, last = piece.partition(":")
        low = int(first or 0)
        high = int(last or num_layers) if colon else low + 1
        if not low < high <= num_layers:
            reason = f"is no range within 0:{num_layers}."
            raise ConfigError(explain(setting, piece, reason, "give FIRST:LAST, LAST not included."))
        layers |= set(range(low, high))
    return layers
