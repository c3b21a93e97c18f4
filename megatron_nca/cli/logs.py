"""`megatron-nca logs`: the end of a run's logs on Slurm."""

import argparse
from pathlib import Path

from megatron_nca.cluster import record
from megatron_nca.errors import ConfigError, explain
from megatron_nca.run_dir import RunFolder

EXAMPLES = """examples:
  the newest log
    megatron-nca logs runs/demo
  of one job, more of it
    megatron-nca logs runs/demo 004-scratch.text --lines 200"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("name", nargs="?", metavar="JOB", help="as `status` names it (default: the newest log)")
    parser.add_argument("--lines", type=int, default=40, metavar="N", help="from the end of each (default %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.lines < 1:
        raise ConfigError(explain("--lines", arguments.lines, "must be at least 1.", "give a positive number."))
    folder = RunFolder(arguments.run_dir).slurm
    submission = record.read(folder)
    if submission is None:
        cure = "a run here logs to its terminal and to train.log of each phase."
        raise ConfigError(explain("RUN", str(arguments.run_dir), "nothing was submitted from it.", cure))
    if arguments.name is not None:
        submission.job(arguments.name)
    pattern = "*.log" if arguments.name is None else f"{arguments.name}-*.log"
    found = sorted(folder.logs.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(explain("logs", str(folder.logs / pattern), "no job has written one yet.", "wait."))
    for path in found[-1:] if arguments.name is None else found:
        print(f"==== {path}")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(lines[-arguments.lines :]))
    return 0
