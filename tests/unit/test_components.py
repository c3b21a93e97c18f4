"""Words for parts of some layers, and maps of layers: what hypothesis says of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_nca.config.components import (
    COMPONENTS,
    LAYER_PARTS,
    OTHER_PARTS,
    SETS,
    at_layers,
    check_words,
    parts_in,
    pieces,
)
from megatron_nca.config.start import Freeze, Start
from megatron_nca.errors import ConfigError

DEPTH = 6
EVERY = {*((part, layer) for part in LAYER_PARTS for layer in range(DEPTH)), *((part, None) for part in OTHER_PARTS)}
RANGE = st.integers(0, DEPTH - 1).flatmap(lambda first: st.tuples(st.just(first), st.integers(first + 1, DEPTH)))
NAMES = st.sampled_from(sorted({*SETS, *LAYER_PARTS} - {"none"}))
LAYERED = st.sampled_from(sorted({*COMPONENTS, "layers", *LAYER_PARTS} - set(OTHER_PARTS)))


def test_every_part_is_of_one_component_and_all_tensors_have_parts():
    assert sorted(part for parts in COMPONENTS.values() for part in parts) == sorted({*LAYER_PARTS, *OTHER_PARTS})
    assert [parts_in(kind) for kind in ("attention.qkv.weight", "mlp.fc1.weight", "mlp_norm.weight")] == [
        ("q", "k", "v"), ("gate", "up"), ("mlp_norm",)]
    assert set(SETS["all"]) == {*LAYER_PARTS, "final_norm"}


@given(LAYERED, st.lists(RANGE, min_size=1, max_size=3))
def test_ranges_choose_those_layers_and_no_others(name: str, ranges: list):
    word = f"{name}@{','.join(f'{first}:{last}' for first, last in ranges)}"
    check_words([word], "carry")
    wanted = {layer for first, last in ranges for layer in range(first, last)}
    parts = SETS.get(name, (name,))
    assert pieces([word], DEPTH, "carry") == {(part, layer) for part in parts for layer in wanted}
    assert pieces([name], DEPTH, "carry") == pieces([f"{name}@:"], DEPTH, "carry")
    assert at_layers([name], word.split("@")[1], "carry") == (word,)


@given(st.lists(NAMES, max_size=4), st.lists(NAMES, max_size=3))
def test_what_is_carried_and_what_is_taken_out(carry: list, reinit: list):
    resolved = Start(carry=tuple(carry), reinit=tuple(reinit)).resolve(DEPTH, DEPTH, tied=False)
    assert resolved.carried == pieces(carry, DEPTH, "") - pieces(reinit, DEPTH, "") <= EVERY
    law = {"all": "permuted"}
    left = pieces(["all"], DEPTH, "") - resolved.carried
    if left:
        laws = Start(carry=tuple(carry), reinit=tuple(reinit), laws=law).resolve(DEPTH, DEPTH, tied=False).laws
        assert laws == dict.fromkeys(left, "permuted")


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(["first", "spread", "repeat"]))
def test_named_maps(new: int, old: int, name: str):
    found = Start(carry=("all",), layer_map=name).resolve(new, old, tied=False).layer_map
    assert len(found) == new
    assert all(layer is None or 0 <= layer < old for layer in found)
    if name == "spread":
        assert list(found) == sorted(found)
        counts = [found.count(layer) for layer in range(old)]
        assert max(counts) - min(counts) <= 1
    elif name == "first":
        assert [layer for layer in found if layer is not None] == list(range(min(new, old)))
    else:
        assert list(found) == [n % old for n in range(new)]
    listed = ",".join("new" if layer is None else str(layer) for layer in found)
    assert Start(carry=("all",), layer_map=listed).resolve(new, old, tied=False).layer_map == found


@given(st.lists(LAYERED, min_size=1, max_size=5), RANGE)
def test_tensors_are_frozen_whole_or_the_word_is_refused(names: list, layers: tuple):
    words = tuple(f"{name}@{layers[0]}:{layers[1]}" for name in names)
    chosen = {part for name in names for part in SETS.get(name, (name,))}
    torn = [kind for kind in LAYER_PARTS.values() if chosen & set(parts_in(kind)) and set(parts_in(kind)) - chosen]
    freeze = Freeze(components=words)
    if torn:
        with pytest.raises(ConfigError, match="are one tensor in training"):
            freeze.kinds(DEPTH, tied=False)
    else:
        expected = {(LAYER_PARTS[part], layer) for part in chosen for layer in range(*layers)}
        assert freeze.kinds(DEPTH, tied=False) == expected


def test_when_parts_are_frozen():
    assert [Freeze(components=("mlp",), iterations=2).holds_at(n) for n in range(4)] == [True, True, False, False]
    assert Freeze(components=("mlp",)).holds_at(10**9)
