"""curves.png: loss against tokens for each arm, and how the automata phase went."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from megatron_nca.errors import ConfigError
from megatron_nca.report.compare import Learned, whole_frames
from megatron_nca.report.runs import Run, Validation

COLORS = ["#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
"""Told apart with any kind of colour vision (Okabe and Ito); the control is grey."""


def check_matplotlib() -> None:
    """Raise ConfigError if the drawing library is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        cure = "pip install 'megatron_nca[log]', or ask for a report without it: megatron-nca report DIR --no-curves."
        raise ConfigError(f"curves.png needs matplotlib, which is not installed. Cure: {cure}")


def draw(runs: Sequence[Run], checks: Sequence[Learned], path: Path) -> None:
    """Write a PNG at `path`; no screen is needed. A second and third panel appear if there are automata phases."""
    check_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seen = [check for check in checks if check.last is not None]
    panels = 3 if seen else 1
    figure, axes = pyplot.subplots(1, panels, figsize=(6.2 * panels, 4.6), squeeze=False, layout="constrained")
    try:
        _draw_arms(axes[0][0], runs)
        if seen:
            _draw_automata(axes[0][1], runs, seen)
            _draw_frames(axes[0][2], runs, seen)
        figure.savefig(path, dpi=120, format="png")
    finally:
        pyplot.close(figure)


def mean_curve(curves: Sequence[Sequence[Validation]]) -> tuple[list[int], list[float]]:
    """Tokens at which every curve was validated, and the mean loss there."""
    maps = [{point.tokens: point.loss for point in curve} for curve in curves]
    shared = sorted(set(maps[0]).intersection(*maps[1:])) if maps else []
    return shared, [sum(curve[tokens] for curve in maps) / len(maps) for tokens in shared]


def _draw_arms(axes, runs: Sequence[Run]) -> None:
    index = 1
    for run in runs:
        for name in run.recipe.arms:
            color = COLORS[0] if name == run.recipe.control and len(runs) == 1 else COLORS[index % len(COLORS)]
            index += color != COLORS[0]
            curves = [arm.final.validations for arm in run.arms if arm.arm == name and arm.final.validations]
            if not curves:
                continue
            label = f"{run.name} / {name}" if len(runs) > 1 else name
            if len(curves) > 1:
                for curve in curves:
                    axes.plot(*_finite(curve), color=color, linewidth=0.7, alpha=0.6)
            axes.plot(*mean_curve(curves), color=color, linewidth=1.8, label=f"{label} (n = {len(curves)})")
    axes.set(xlabel="training tokens of the last phase", ylabel="validation loss (nats per token)")
    axes.set_title("last phase: arms (mean thick, seeds thin)")
    _finish(axes)


def _draw_automata(axes, runs: Sequence[Run], checks: Sequence[Learned]) -> None:
    names = {run.name: run for run in runs}
    for index, check in enumerate(checks, 1):
        color = COLORS[index % len(COLORS)]
        arm = names[check.run].find(check.arm, check.seed)
        curve = next(phase.validations for phase in arm.phases if phase.phase == check.phase)
        axes.plot(*_finite(curve), color=color, label=_label(check))
    for entropy in sorted({check.entropy for check in checks if check.entropy is not None}):
        axes.axhline(entropy, color="#999999", linestyle="--", label=f"unigram entropy {entropy:.2f}")
    axes.set(xlabel="training tokens", ylabel="validation loss (nats per token)", title="automata phase")
    _finish(axes)


def _draw_frames(axes, runs: Sequence[Run], checks: Sequence[Learned]) -> None:
    names = {run.name: run for run in runs}
    for index, check in enumerate(checks, 1):
        recipe = names[check.run].recipe
        law = recipe.law_of(recipe.phases[check.phase].dataset)
        if law is None:
            continue
        for validation, style, when in ((check.first, ":", "start"), (check.last, "-", "end")):
            frames = [pair for pair in whole_frames(validation, law) if math.isfinite(pair[1])]
            if frames:
                label = f"{_label(check)} {when}"
                axes.plot(*zip(*frames, strict=True), style, color=COLORS[index % len(COLORS)], label=label)
    axes.set(xlabel="frame", ylabel="validation loss (nats per token)", title="automata phase: loss by frame")
    _finish(axes)


def _label(check: Learned) -> str:
    return f"{check.phase} {check.arm} seed{check.seed}"


def _finite(curve: Sequence[Validation]) -> tuple[list[int], list[float]]:
    points = [point for point in curve if math.isfinite(point.loss)]
    return [point.tokens for point in points], [point.loss for point in points]


def _finish(axes) -> None:
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
