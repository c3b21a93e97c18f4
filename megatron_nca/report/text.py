"""A comparison as Markdown, as CSV, and as the last lines on the terminal."""

import csv
import io
import itertools
import math
from collections.abc import Sequence

from megatron_nca.config.changes import changes
from megatron_nca.report.compare import (
    COMPARED_FRAMES,
    HARDLY_SHARE,
    LEARNED_FRAMES,
    LEARNED_SHARE,
    Learned,
    Row,
    Spread,
    exponential,
    spread,
)
from megatron_nca.report.runs import Run

CURVES = "curves.png"


def markdown(runs: Sequence[Run], rows: Sequence[Row], checks: Sequence[Learned], curves: bool) -> str:
    """The whole report."""
    several = len(runs) > 1
    title = "Report: " + ", ".join(run.name for run in runs)
    parts = [f"# {title}", *(_about(run) for run in runs), "## Arms", arms_table(rows, several), _remarks(runs, rows)]
    if curves:
        parts += [f"![validation loss against tokens]({CURVES})"]
    parts += ["## Each arm and seed", runs_table(rows, several)]
    if checks:
        parts += ["## Did the automata phase learn?", checks_table(checks, several), _thresholds()]
    parts += ["## Result", "\n".join(f"- {line}" for line in last_lines(runs, rows))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(run: Run) -> str:
    recipe = run.recipe
    model = recipe.model
    shape = (
        f"{model.num_layers} layers, hidden {model.hidden_size}, {model.num_heads} heads, ffn {model.ffn_hidden_size}"
    )
    seeds = ", ".join(map(str, recipe.seeds))
    text = f"`{run.path}`: recipe **{recipe.name}**, {shape}, sequences of {model.sequence_length}, seeds {seeds}."
    return f"{text}\n{recipe.description.strip()}" if recipe.description else text


def arms_table(rows: Sequence[Row], several: bool) -> str:
    """One line an arm, over its seeds."""
    head = ["arm", "finished", "validation loss", "perplexity", "ratio to control", "tokens to control's final loss"]
    head += ["speed-up", "with earlier phases", "tokens of all phases"]
    lines = []
    for run, arm in dict.fromkeys((row.run, row.arm) for row in rows):
        mine = [row for row in rows if (row.run, row.arm) == (run, arm)]
        done = [row for row in mine if row.loss is not None]
        loss, difference = spread([row.loss for row in done]), spread([row.difference for row in done])
        pairs = [row for row in done if row.reached is not None]
        lines.append(
            [
                f"{run} / {arm}" if several else arm,
                f"{len(done)} of {len(mine)}",
                _with_spread(loss, "{:.4f}"),
                "-" if loss is None else _ratio(exponential(loss.mean)),
                "-" if difference is None else ratio_text(difference),
                _each(pairs, lambda row: row.tokens_to_control, _tokens),
                _each(pairs, lambda row: row.speed_up, _times),
                _each(pairs, lambda row: row.total_speed_up, _times),
                _each(mine, lambda row: row.total_tokens, _tokens, same_once=True),
            ]
        )
    return _table(head, lines)


def runs_table(rows: Sequence[Row], several: bool) -> str:
    """One line for each arm and seed; what is not finished says so."""
    head = ["arm", "seed", "state", "compared phase", "its tokens", "validation loss", "perplexity", "ratio to control"]
    head += ["tokens to control's final loss", "speed-up", "note"]
    lines = [
        [
            f"{row.run} / {row.arm}" if several else row.arm,
            str(row.seed),
            row.state,
            row.phase,
            f"{row.tokens:,}",
            _or_dash(row.loss, "{:.4f}".format),
            _or_dash(row.perplexity, _ratio),
            _or_dash(row.ratio, lambda ratio: _ratio(ratio, 4)),
            "-" if row.reached is None else _or_never(row.tokens_to_control, _tokens),
            "-" if row.reached is None else _or_never(row.speed_up, _times),
            row.note,
        ]
        for row in rows
    ]
    return _table(head, lines)


def checks_table(checks: Sequence[Learned], several: bool) -> str:
    """Loss of each automata phase against the unigram entropy, and late frames against early ones."""
    head = ["phase", "arm", "seed", "unigram entropy", "first loss", "last loss", "below the entropy"]
    head += ["early frames", "late frames", "verdict"]
    lines = [
        [
            f"{check.run} / {check.phase}" if several else check.phase,
            check.arm,
            str(check.seed),
            _or_dash(check.entropy, "{:.3f}".format),
            _or_dash(check.first and check.first.loss, "{:.3f}".format),
            _or_dash(check.last and check.last.loss, "{:.3f}".format),
            _or_dash(check.share, "{:.0%}".format),
            _or_dash(check.early, "{:.3f}".format),
            _or_dash(check.late, "{:.3f}".format),
            f"**{check.verdict}**",
        ]
        for check in checks
    ]
    return _table(head, lines)


def _thresholds() -> str:
    return (
        f"All in nats per token. *Learned*: the last validation loss lies at least {LEARNED_SHARE:.0%} below the "
        f"unigram entropy of the same data and the last {COMPARED_FRAMES} frames are at least {LEARNED_FRAMES:.0%} "
        f"easier than the first {COMPARED_FRAMES} predicted ones. *Hardly learned*: at least {HARDLY_SHARE:.0%} below. "
        "Otherwise *nothing learned*, which is what independent tokens should give. What has no frames is judged by "
        "the entropy alone. A phase that learned nothing explains nothing that follows."
    )


def _remarks(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """What a reader must know before quoting a number."""
    lines = [
        "The ratio is perplexity over the control's of the same seed at equal tokens of the last phase, averaged as a "
        "geometric mean; below 1 is better than the control. The tokens to the control's final loss are interpolated "
        "linearly between validations; the speed-up is the control's tokens over them."
    ]
    for run in runs:
        mine = [row for row in rows if row.run == run.name]
        if len(run.recipe.seeds) == 1:
            lines.append(f"{run.name}: one seed: no spread. Seeds of small runs differ as much as arms do.")
        for before, after in itertools.pairwise((*run.former, run.recipe)):
            changed, _refused = changes(before, after)
            lines += [f"{run.name}: changed in the recipe after the run had begun: {words}." for words in changed]
        lines += _compute_remarks(run, mine)
        for row in mine:
            if row.state != "finished":
                lines.append(f"{run.name}: {row.arm} seed{row.seed} is not compared: {row.state}.")
        for arm in run.arms:
            for phase in arm.phases:
                if phase.non_finite:
                    where = ", ".join(map(str, phase.non_finite[:5])) + (", ..." if len(phase.non_finite) > 5 else "")
                    lines.append(
                        f"{run.name}: {phase.phase} {arm.arm} seed{arm.seed} had a training loss that is not a number "
                        f"in {len(phase.non_finite)} iterations ({where})."
                    )
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def _compute_remarks(run: Run, rows: Sequence[Row]) -> list[str]:
    """Of each arm, by the first seed of which it and the control are finished; all seeds have one budget."""
    finished = [row for row in rows if row.loss is not None]
    controls = {row.seed: row for row in finished if row.arm == run.recipe.control}
    result = []
    for arm in run.recipe.arms:
        row = next((row for row in finished if row.arm == arm and row.seed in controls), None)
        if row is None or arm == run.recipe.control:
            continue
        control = controls[row.seed]
        extra = row.total_tokens - control.total_tokens
        if extra > 0:
            result.append(
                f"{run.name}: not matched in compute: {arm} was trained on {extra:,} tokens more than "
                f"{control.arm} ({extra / control.total_tokens:.0%}), which the control was not given."
            )
    return result


def last_lines(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """The ratio of each arm to its control, whatever the sign."""
    result = []
    for run in runs:
        head = f"{run.name}: " if len(runs) > 1 else ""
        for arm in run.recipe.arms:
            if arm == run.recipe.control:
                continue
            mine = [row for row in rows if (row.run, row.arm) == (run.name, arm)]
            difference = spread([row.difference for row in mine])
            ratio = "not available, see the states above" if difference is None else ratio_text(difference, words=True)
            result.append(f"{head}{arm} / {run.recipe.control} perplexity ratio: {ratio}")
    return result


def ratio_text(difference: Spread, words: bool = False) -> str:
    """Geometric mean of the ratios, with spread and interval where the number of seeds allows."""
    notes = [f"{difference.n} seed{'s' if difference.n > 1 else ''}"] if words else []
    if difference.sd is not None:
        notes.append(f"sd {difference.sd:.3f} nats")
    if difference.interval is not None:
        low, high = (_ratio(exponential(bound)) for bound in difference.interval)
        notes.append(f"95 % {low}..{high}")
    ratio = _ratio(exponential(difference.mean))
    return f"{ratio} ({', '.join(notes)})" if notes else ratio


def csv_text(rows: Sequence[Row]) -> str:
    """runs.csv: one line for each arm and seed, empty where there is no number."""
    names = ["run", "arm", "seed", "state", "phase", "tokens", "total_tokens", "loss", "perplexity", "difference"]
    names += ["ratio", "compared_tokens", "reached", "tokens_to_control", "control_tokens", "speed_up"]
    names += ["total_speed_up", "note"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([["" if getattr(row, name) is None else getattr(row, name) for name in names] for row in rows])
    return file.getvalue()


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads on a terminal too."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in [head, *lines]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    padded = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {padded[0]} |", f"|{rule}|", *(f"| {line} |" for line in padded[1:])])


def _or_dash(value: float | None, form) -> str:
    return "-" if value is None else form(value)


def _or_never(value: float | None, form) -> str:
    return "never" if value is None else form(value)


def _tokens(value: float) -> str:
    return f"{value:,.0f}"


def _ratio(value: float, digits: int = 3) -> str:
    """A ratio or a perplexity; one of a run that went astray may have hundreds of digits."""
    return f"{value:.{digits}f}" if value < 1e9 else f"{value:.{digits}e}"


def _times(value: float) -> str:
    return "at once" if math.isinf(value) else f"{value:.2f}x"


def _with_spread(values: Spread | None, form: str) -> str:
    if values is None:
        return "-"
    sd = "" if values.sd is None else " (sd " + form.format(values.sd) + ")"
    return form.format(values.mean) + sd


def _each(rows: Sequence[Row], value, form, same_once: bool = False) -> str:
    """The values of all seeds beside each other: a mean would have no place for 'never'."""
    texts = [_or_never(value(row), form) for row in rows]
    if same_once and len(set(texts)) == 1:
        texts = texts[:1]
    return " / ".join(texts) if texts else "-"
