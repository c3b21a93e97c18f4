"""Shared by all tests: a small recipe as plain dictionaries, to be changed at will."""

import copy

import pytest

_OPTIMIZER = {"lr": 1e-3, "warmup_iterations": 1}
_LAW = {"num_states": 2, "height": 8, "width": 8, "sequence_length": 64, "score_frames": 4, "band": [0.05, 1.0]}
_RECIPE = {
    "name": "tiny",
    "seeds": [0],
    "control": "scratch",
    "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "ffn_hidden_size": 64, "sequence_length": 64},
    "datasets": {
        "automata": {"source": "nca", "sequences": 8, "validation_sequences": 4, "law": _LAW},
        "text": {"source": "corpus", "input": "python-stdlib", "vocab_size": 300},
    },
    "phases": {
        "nca": {
            "dataset": "automata",
            "iterations": 4,
            "global_batch_size": 2,
            "micro_batch_size": 2,
            "validation_sequences": 4,
            "parallel": {"tensor": 2},
            "optimizer": _OPTIMIZER,
        },
        "text": {
            "dataset": "text",
            "iterations": 6,
            "global_batch_size": 2,
            "micro_batch_size": 2,
            "validation_sequences": 4,
            "optimizer": _OPTIMIZER,
        },
    },
    "arms": {
        "scratch": {"steps": [{"phase": "text"}]},
        "nca": {"steps": [{"phase": "nca"}, {"phase": "text", "start": {"carry": ["all"]}}]},
        "attention": {"steps": [{"phase": "nca"}, {"phase": "text", "start": {"carry": ["attention"]}}]},
    },
}


@pytest.fixture
def recipe_values() -> dict:
    """A recipe with three arms, of which two share the automata phase."""
    return copy.deepcopy(_RECIPE)
