"""Elementary and life-like automata: against rules known by heart, and through the verb into the same format."""

import hashlib

import numpy as np
import pytest

from megatron_nca.__main__ import main
from megatron_nca.config.automata import ClassicGrid, ClassicLaw, parse_rule
from megatron_nca.config.recipe import Recipe
from megatron_nca.config.schema import build
from megatron_nca.data.manifest import Manifest
from megatron_nca.data.verify import verify
from megatron_nca.errors import ConfigError
from megatron_nca.look.decoding import decode
from megatron_nca.look.opened import Opened
from megatron_nca.sources.classic import ClassicSource, _update


def table(kind: str, rule: str) -> np.ndarray:
    return (parse_rule(kind, rule) >> np.arange(8 if kind == "elementary" else 18) & 1).astype(np.uint8)[None]


def test_rule_90_is_pascals_triangle_modulo_two():
    row = np.zeros((1, 1, 17), dtype=np.uint8)
    row[0, 0, 8] = 1
    for _ in range(3):
        row = _update("elementary", row, table("elementary", "90"))
    assert np.flatnonzero(row[0, 0]).tolist() == [5, 7, 9, 11]  # 1 3 3 1


def test_rule_110_of_wolfram():
    """111 110 101 100 011 010 001 000 -> 0 1 1 0 1 1 1 0, the digits of 110."""
    for configuration, after in zip(range(7, -1, -1), "01101110", strict=True):
        left, centre, right = configuration >> 2 & 1, configuration >> 1 & 1, configuration & 1
        row = np.zeros((1, 1, 9), dtype=np.uint8)
        row[0, 0, 3:6] = left, centre, right
        assert _update("elementary", row, table("elementary", "110"))[0, 0, 4] == int(after)


def test_a_glider_moves_by_one_cell_in_four_updates():
    grid = np.zeros((1, 8, 10), dtype=np.uint8)
    grid[0, [0, 1, 2, 2, 2], [1, 2, 0, 1, 2]] = 1
    later = grid
    for _ in range(4 * 40):  # 40 cells: five times around the height, four around the width
        later = _update("life_like", later, table("life_like", "B3/S23"))
    np.testing.assert_array_equal(later, grid)
    np.testing.assert_array_equal(
        _update("life_like", np.roll(grid, (3, 4), (1, 2)), table("life_like", "B3/S23")),
        np.roll(_update("life_like", grid, table("life_like", "B3/S23")), (3, 4), (1, 2)),
    )


def source(kind: str, **settings: object) -> ClassicSource:
    return ClassicSource(kind, ClassicLaw(**settings), 40, 3, 300)


FROZEN = {"elementary": "082e", "life_like": "57b0"}


@pytest.mark.parametrize("kind", FROZEN)
def test_documents_depend_on_seed_and_index_only(kind):
    whole = source(kind).documents(np.arange(40))
    backwards = np.concatenate([source(kind).documents(np.array([i])) for i in range(39, -1, -1)])
    np.testing.assert_array_equal(backwards[::-1], whole)
    assert len({row.tobytes() for row in whole}) > 30
    assert hashlib.sha256(whole.astype("<u2").tobytes()).hexdigest()[:4] == FROZEN[kind]


@pytest.mark.parametrize(("kind", "rule"), [("elementary", "110"), ("life_like", "B36/S23")])
def test_frames_follow_the_rule(kind, rule):
    made = source(kind, rules=(rule,), steps_per_frame=2, burn_in_steps=0)
    documents, grid = made.documents(np.arange(5)), made.grid
    frames = documents.reshape(5, grid.num_frames, grid.frame_tokens)
    assert (frames[..., 0] == 16).all() and (frames[..., -1] == 17).all() and frames[..., 1:-1].max() < 16
    digits = frames[..., 1:-1, None] >> np.arange(4) & 1
    tall = grid.height // grid.rows
    states = digits.reshape(5, grid.num_frames, grid.rows, -1, tall, grid.patch).swapaxes(3, 4)
    states = states.reshape(5, grid.num_frames, grid.height, grid.width).astype(np.uint8)
    assert 0.4 < states[:, 0].mean() < 0.6
    again = states[:, 0]
    for frame in range(grid.num_frames):
        np.testing.assert_array_equal(states[:, frame], again)
        again = _update(kind, _update(kind, again, table(kind, rule).repeat(5, 0)), table(kind, rule).repeat(5, 0))


@pytest.mark.parametrize("kind", FROZEN)
def test_through_the_verb_into_the_same_format(kind, tmp_path, capsys):
    prefix = tmp_path / "data"
    rules = ["--rules", *(["30", "90"] if kind == "elementary" else ["B3/S23", "B2/S"])]
    command = ["generate", "--source", kind, "--sequences", "12", "--sequence-length", "200", "--output", str(prefix)]
    assert main([*command, *rules]) == 0
    manifest = Manifest.load(prefix)
    assert (manifest.kind, manifest.documents, manifest.vocab_size) == (kind, 12, 18)
    assert "agree" in verify(prefix)
    text = decode(Opened(prefix), 0)
    assert set(text) <= set("01\nframe 23456789") and ("frame" in text) == (kind == "life_like")
    assert main([*command, *rules, "--base", "x"]) == 2
    assert "--base: belongs to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("elementary", {"rules": ("256",)}, "automaton.rules = '256'"),
        ("life_like", {"rules": ("110",)}, "B3/S23"),
        ("life_like", {"rules": ()}, "holds no rule"),
        ("elementary", {"height": 4}, "automaton.height"),
        ("elementary", {"width": 63}, "automaton.patch"),
        ("life_like", {"patch": 5, "width": 10, "height": 10}, "automaton.patch"),
        ("life_like", {"width": 64, "height": 64}, "fewer than two frames"),
        ("life_like", {"steps_per_frame": 0}, "automaton.steps_per_frame"),
    ],
)
def test_wrong_settings_are_named(kind, settings, message):
    with pytest.raises(ConfigError) as error:
        source(kind, **settings)
    assert message in str(error.value)


def test_a_recipe_may_train_on_them(recipe_values):
    recipe_values["datasets"]["automata"] = {
        "source": "life_like",
        "sequences": 8,
        "validation_sequences": 4,
        "automaton": {"height": 8, "width": 8, "rules": ["B3/S23"]},
    }
    recipe = build(Recipe, recipe_values)
    assert recipe.vocab_size("automata") == 18
    assert ClassicGrid.of("life_like", recipe.datasets["automata"].automaton, 64).frame_tokens == 18
