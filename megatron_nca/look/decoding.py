"""A sequence as text: grids of automata, brackets, words, or bare ids."""

import textwrap
from pathlib import Path

import numpy as np

from megatron_nca import files
from megatron_nca.config.automata import CLASSIC, ClassicGrid, ClassicLaw
from megatron_nca.config.schema import build
from megatron_nca.data import tokenizer
from megatron_nca.errors import DataError, explain
from megatron_nca.look.opened import DELIMITER, Opened

STATES = "0123456789abcdef"


def decode(dataset: Opened, index: int, model: Path | None = None) -> str:
    """Sequence `index` for a reader; `model` is the sentencepiece model of a text.

    Automata: each whole frame as H lines of hexadecimal states, `.` for a delimiter among the patches.
    Classic automata: the same, of cells 0 and 1. Brackets: (s opens kind s, s) closes it. Else ids. Raises DataError.
    """
    if model is not None:
        return _text(dataset, index, model)
    if dataset.law is not None:
        grids = dataset.grids(index)
        return "\n\n".join(f"frame {number}\n{_grid(grid)}" for number, grid in enumerate(grids)) + "\n"
    tokens = dataset.sequence(index)
    automaton = dataset.common("automaton")
    if dataset.manifest.kind in CLASSIC and automaton is not None:
        return _classic(dataset, automaton, tokens)
    if dataset.manifest.kind in ("dyck", "k_shuffle_dyck"):
        symbols = dataset.manifest.num_tokens // 2
        return _wrapped(f"({token}" if token < symbols else f"{token - symbols})" for token in tokens.tolist())
    return _wrapped(map(str, tokens.tolist()))


def _classic(dataset: Opened, automaton: dict, tokens: np.ndarray) -> str:
    """Whole frames of an elementary or life-like automaton, a line of cells for each row."""
    law = build(ClassicLaw, automaton, f"{dataset.prefix}.json: origin.automaton")
    grid = ClassicGrid.of(dataset.manifest.kind, law, dataset.trajectory.sequence_length)
    patches = tokens[: len(tokens) // grid.frame_tokens * grid.frame_tokens].reshape(-1, grid.frame_tokens)[:, 1:-1]
    tall = grid.height // grid.rows
    cells = patches[..., None].astype(np.int64) >> np.arange(grid.patch * tall) & 1
    frames = cells.reshape(-1, grid.rows, grid.width // grid.patch, tall, grid.patch).swapaxes(2, 3)
    frames = frames.reshape(-1, grid.height, grid.width)
    if grid.height == 1:  # time runs downwards
        return _grid(frames[:, 0]) + "\n"
    return "\n\n".join(f"frame {number}\n{_grid(frame)}" for number, frame in enumerate(frames)) + "\n"


def _grid(cells: np.ndarray) -> str:
    return "\n".join("".join("." if cell == DELIMITER else STATES[cell] for cell in row) for row in cells)


def _wrapped(words) -> str:
    return "\n".join(textwrap.wrap(" ".join(words), 100)) + "\n"


def _text(dataset: Opened, index: int, model: Path) -> str:
    processor = tokenizer.load(model)
    stated = dataset.said("tokenizer")[0]  # merged ones have one tokenizer, perhaps of several names
    if stated is None:
        reason = f"{dataset.prefix} is {dataset.manifest.kind}, which was not made of text."
        raise DataError(explain("--tokenizer-model", str(model), reason, "leave it out."))
    if stated["sha256"] != files.sha256(model):
        reason = f"{dataset.prefix} was made with another tokenizer (sha256 {stated['sha256'][:12]}...)."
        raise DataError(explain("--tokenizer-model", str(model), reason, "give that one."))
    return processor.decode(dataset.sequence(index).tolist()) + "\n"
