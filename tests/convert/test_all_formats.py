"""The hub: for models of any small shape, every format there and back is the identity, and names are mapped once."""

import dataclasses
import itertools
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_checkpoints import assert_same, random_checkpoint

from megatron_nca.config.model import ModelConfig, RopeScaling
from megatron_nca.convert import formats, llama, released
from megatron_nca.convert.canonical import CanonicalCheckpoint, CanonicalTensor, cast
from megatron_nca.convert.megatron import LAYER_KEYS, OTHER_KEYS
from megatron_nca.errors import CheckpointError
from megatron_nca.initialise import tensor_table

BOTH_WAYS = [each for each in formats.FORMATS.values() if each.reader and each.writer]


@st.composite
def models(draw: st.DrawFn, plain: bool = False) -> ModelConfig:
    """Of any shape; `plain` are those that the released code can build."""
    heads, head_size = draw(st.integers(1, 4)), 2 * draw(st.integers(1, 3))
    groups = [count for count in range(1, heads + 1) if heads % count == 0]
    hidden = heads * head_size
    values = {"num_layers": draw(st.integers(1, 3)), "hidden_size": hidden, "num_heads": heads,
              "vocab_size": draw(st.integers(2, 270)), "tied_embeddings": draw(st.booleans()),
              "sequence_length": draw(st.integers(1, 4096))}  # fmt: skip
    if plain:
        return ModelConfig(ffn_hidden_size=4 * hidden, **values)
    grouped = draw(st.sampled_from([None, *groups[:-1]]))
    scaling = draw(st.sampled_from([None, RopeScaling(kind="llama3", factor=8)]))
    values |= {"ffn_hidden_size": draw(st.integers(1, 9)), "rope_scaling": scaling}
    values |= {"rope_base": draw(st.integers(2, 10**6)), "norm_epsilon": draw(st.floats(1e-8, 1e-2))}
    return ModelConfig(num_query_groups=grouped, **values)


def through(checkpoint: CanonicalCheckpoint, route: tuple[formats.Format, ...], folder: Path) -> CanonicalCheckpoint:
    for number, each in enumerate(route):
        each.write(folder / str(number), checkpoint, lambda aside: None)
        checkpoint = each.read(folder / str(number))
    return checkpoint


@pytest.mark.parametrize("each", BOTH_WAYS, ids=[each.name for each in BOTH_WAYS])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_there_and_back_is_the_identity_for_any_shape(each: formats.Format, data: st.DataObject):
    model = data.draw(models(plain=each.name == "released"))
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    source = cast(random_checkpoint(model), dtype)
    with tempfile.TemporaryDirectory() as folder:
        found = through(source, (each,), Path(folder))
        found.check()
        assert_same(source, found, padding=each.keeps_padding)


@pytest.mark.parametrize(
    "pair", list(itertools.permutations(BOTH_WAYS, 2)), ids=lambda pair: "-".join(each.name for each in pair)
)
def test_every_pair_goes_there_and_back(pair: tuple[formats.Format, ...], tmp_path: Path):
    """A -> B -> A with the weights of one model, tied or not by turns; rows of padding are zero."""
    model = ModelConfig(num_layers=2, hidden_size=16, num_heads=2, ffn_hidden_size=64, vocab_size=150,
                        tied_embeddings=pair[0].name < pair[1].name)  # fmt: skip
    source = random_checkpoint(model, zero_padding=True)
    found = through(source, (*pair, pair[0]), tmp_path)
    assert_same(source, found)
    assert formats.recognise(tmp_path / "1")[0] is pair[1]


@settings(max_examples=50, deadline=None)
@given(model=models())
def test_every_name_is_mapped_exactly_once(model: ModelConfig):
    """Rows of all tensors there are rows here, and the other way about, each once; keys of Megatron's are distinct."""
    for names in (llama.HUGGING_FACE, released.NAMES):
        table = tensor_table(model)
        there = Counter(name for spec in table for name, _ in llama.there_of(spec.name, spec.shape, model, names))
        assert set(there.values()) == {1}
        for spec in table:
            here, parts = torch.zeros(spec.shape[0]), [torch.zeros(shape[0]) for _, shape in
                                                       llama.there_of(spec.name, spec.shape, model, names)]  # fmt: skip
            for box in llama.boxes(spec.name, spec.shape, model):
                here[box.here : box.here + box.rows] += 1
                parts[box.part][box.there : box.there + box.rows] += 1
            filled = spec.shape[0] if spec.filled_rows is None else spec.filled_rows
            assert (here[:filled] == 1).all() and (here[filled:] == 0).all()
            assert all((part == 1).all() for part in parts)
    keys = [*LAYER_KEYS.values(), *OTHER_KEYS.values()]
    assert len(set(keys)) == len(keys)


def changed(tensors: list[CanonicalTensor], how: str) -> list[CanonicalTensor]:
    last = tensors[-1]
    return {
        "missing": tensors[:-1],
        "twice": [*tensors, last],
        "unknown": [*tensors, dataclasses.replace(last, name="layers.9.mlp.fc2.weight")],
        "shape": [*tensors[:-1], dataclasses.replace(last, shape=(256, 31))],
        "dtype": [*tensors[:-1], dataclasses.replace(last, dtype="float64")],
    }[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"head\.weight is missing"),
        ("twice", r"head\.weight occurs 2 times"),
        ("unknown", r"layers\.9\.mlp\.fc2\.weight is not a tensor of this model"),
        ("shape", r"head\.weight has shape \(256, 31\), expected \(256, 32\)"),
        ("dtype", r"head\.weight is stored as float64"),
    ],
)
def test_what_does_not_fit_the_model_is_named(how: str, message: str):
    source = random_checkpoint()
    with pytest.raises(CheckpointError, match=message):
        dataclasses.replace(source, tensors=tuple(changed(list(source.tensors), how))).check()
