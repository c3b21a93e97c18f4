"""`megatron-nca report`: compare the arms of run folders."""

import argparse
from pathlib import Path

from megatron_nca.errors import ConfigError
from megatron_nca.files import check_replaced, publish
from megatron_nca.run_dir import RunFolder

EXAMPLES = """examples:
  megatron-nca report runs/demo                                 writes runs/demo/report/
  megatron-nca report runs/a runs/b --output runs/a_and_b       one report of several runs

A run that is still going can be reported too; what is not finished is listed as such and not compared."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="run folders")
    parser.add_argument("--output", type=Path, help="folder to write to; needed for several DIRs (one: DIR/report)")
    parser.add_argument("--no-curves", action="store_true", help="leave out curves.png, which needs matplotlib")


def run(arguments: argparse.Namespace) -> int:
    from megatron_nca.report import compare, curves, text
    from megatron_nca.report.runs import load_run

    if len(arguments.directories) > 1 and arguments.output is None:
        raise ConfigError("--output: several run folders were given. Cure: say where their report goes.")
    if not arguments.no_curves:
        curves.check_matplotlib()
    runs = [load_run(directory) for directory in arguments.directories]
    if len({run.name for run in runs}) < len(runs):
        raise ConfigError("DIR: two run folders have the same name. Cure: rename one, so that a row can be told.")
    rows = [row for run in runs for row in compare.rows(run)]
    checks = [check for run in runs for check in compare.learned(run)]
    output = arguments.output or RunFolder(arguments.directories[0]).report
    if arguments.output is not None:  # a run's own folder is made anew, whatever of it has been removed
        check_replaced(output, ("report.md", "runs.csv"), "--output", also=(text.CURVES,))
    with publish(output) as aside:
        aside.mkdir()
        if not arguments.no_curves:
            curves.draw(runs, checks, aside / text.CURVES)
        (aside / "runs.csv").write_text(text.csv_text(rows), encoding="utf-8")
        report = text.markdown(runs, rows, checks, curves=not arguments.no_curves)
        (aside / "report.md").write_text(report, encoding="utf-8")
    several = len(runs) > 1
    print(text.runs_table(rows, several))
    if checks:
        print("\n" + text.checks_table(checks, several))
    print(f"\nwritten: {output / 'report.md'}")
    print("\n".join(text.last_lines(runs, rows)))
    return 0
