"""Pictures: frames of sequences, and histograms of gzip ratios.

A row a sequence, a column a frame; each cell CELL pixels wide and high, one colour a state. What has no frames is drawn
as lines of 64 tokens, dark for low ids and bright for high ones.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_nca import files
from megatron_nca.errors import ConfigError, DataError, explain
from megatron_nca.look.opened import DELIMITER, Opened

CELL, GAP, MARGIN, TITLE, LABEL, NUMBERS = 4, 4, 8, 24, 16, 56
"""Pixels: a cell's side, between frames and rows, around all, a title, a row's number, space for these."""
DPI = 128
"""A power of two, so that inches times DPI are whole pixels."""
MOST_FRAMES = 64
MOST_PIXELS = 60_000
"""Of a picture's height; the library draws no more than 65,536."""
LINE_TOKENS = 64
STATE_COLORS = np.array(
    [(17, 24, 39), (250, 204, 21), (37, 99, 235), (220, 38, 38), (22, 163, 74), (249, 115, 22), (147, 51, 234),
     (6, 182, 212), (236, 72, 153), (132, 204, 22), (120, 53, 15), (99, 102, 241), (253, 186, 116), (20, 83, 45),
     (244, 114, 182), (255, 251, 235)], dtype=np.uint8)
DELIMITER_COLOR = np.array((160, 160, 160), dtype=np.uint8)

Place = tuple[int, int]
"""Row and column of a frame's upper left pixel."""


def check(path: Path, setting: str) -> None:
    """Raise ConfigError or DataError, naming the setting, if no PNG can be drawn at `path`: before the work for it."""
    files.refuse_folder(path)
    if path.suffix.lower() != ".png":
        raise ConfigError(explain(setting, str(path), "is no name of a PNG, which is drawn.", "end it with .png."))
    check_matplotlib(path, setting)


def check_matplotlib(path: Path, setting: str) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(explain(setting, str(path), "needs matplotlib.", "pip install 'megatron_nca[log]'."))


def compose(datasets: Sequence[tuple[Opened, Sequence[int]]]) -> tuple[np.ndarray, dict, dict[Place, str]]:
    """(pixels uint8 (height, width, 3), {(dataset, sequence, frame): place}, {place: label}).

    Each dataset comes with the numbers of its sequences. Raises DataError for one that is not there, or too many.
    """
    blocks = []
    places: dict[tuple[int, int, int], Place] = {}
    labels: dict[Place, str] = {}
    top = MARGIN
    for number, (dataset, sequences) in enumerate(datasets):
        labels[top, MARGIN] = f"{dataset.name}: {dataset.description}"
        top += TITLE
        for sequence in sequences:
            frames = _frames(dataset, sequence)
            height, width = frames.shape[1:3]
            labels[top, MARGIN] = str(sequence)
            for frame, pixels in enumerate(frames):
                places[number, sequence, frame] = (top, MARGIN + NUMBERS + frame * (width + GAP))
                blocks.append((places[number, sequence, frame], pixels))
            top += max(height, LABEL) + GAP
        top += MARGIN
    if top > MOST_PIXELS:
        shown = sum(len(sequences) for _, sequences in datasets)
        raise DataError(explain("sequences", shown, f"make a picture {top:,} pixels high.", "draw fewer of them."))
    titles = [MARGIN + 9 * len(text) for text in labels.values()]
    right = max([place[1] + pixels.shape[1] for place, pixels in blocks] + titles)
    canvas = np.full((top, right + MARGIN, 3), 255, dtype=np.uint8)
    for (row, column), pixels in blocks:
        canvas[row : row + pixels.shape[0], column : column + pixels.shape[1]] = pixels
    return canvas, places, labels


def _frames(dataset: Opened, sequence: int) -> np.ndarray:
    """Pixels uint8 (T, height, width, 3) of the first frames of a sequence."""
    if dataset.law is not None:
        cells = dataset.grids(sequence)[:MOST_FRAMES]
        colors = np.where((cells == DELIMITER)[..., None], DELIMITER_COLOR, STATE_COLORS[np.maximum(cells, 0)])
    else:
        tokens = dataset.sequence(sequence).astype(np.float64)
        blank = -len(tokens) % LINE_TOKENS
        share = np.pad(tokens / max(1, dataset.manifest.num_tokens - 1), (0, blank), constant_values=np.nan)
        colors = _ramp(share.reshape(1, -1, LINE_TOKENS))
    return colors.repeat(CELL, axis=1).repeat(CELL, axis=2)


def _ramp(share: np.ndarray) -> np.ndarray:
    """Dark blue to yellow for 0..1, white for nan."""
    known = np.nan_to_num(share)[..., None]
    low, high = np.array((30, 27, 75)), np.array((250, 204, 21))
    colors = np.rint(low + known * (high - low)).astype(np.uint8)
    return np.where(np.isnan(share)[..., None], np.uint8(255), colors)


def draw(datasets: Sequence[tuple[Opened, Sequence[int]]], path: Path) -> None:
    """Write the picture as a PNG, whole or not at all, pixel for pixel as composed. Raises DataError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas, _, labels = compose(datasets)
    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.figimage(canvas, origin="upper")
    for (row, column), text in labels.items():
        figure.text(column / width, 1 - row / height, text, fontsize=8, va="top", ha="left", family="monospace")
    with files.publish(path) as aside:
        figure.savefig(aside, dpi=DPI, format="png")


def draw_histogram(ratios: Sequence[tuple[str, np.ndarray]], bands: Sequence[tuple[float, float] | None], path: Path):
    """gzip ratios of each (name, ratios (N,)) as a PNG, the bounds of its band dotted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    edges = np.linspace(0, max(1.0, max(float(values.max()) for _, values in ratios)), 101)
    for number, ((name, values), band) in enumerate(zip(ratios, bands, strict=True)):
        axes.hist(values, bins=edges, histtype="step", color=f"C{number}", label=f"{name} (n = {len(values):,})")
        for bound in band or ():
            axes.axvline(bound, color=f"C{number}", linestyle=":")
    axes.set(xlabel="gzip ratio (official scale)", ylabel="sequences", title="gzip ratios, bands dotted")
    axes.legend()
    figure.savefig(path, dpi=120, format="png")
