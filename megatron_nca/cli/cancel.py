"""`megatron-nca cancel`: end a run's jobs on Slurm."""

import argparse
from pathlib import Path

from megatron_nca.cluster import attempts, queue, record
from megatron_nca.errors import ConfigError, explain
from megatron_nca.run_dir import RunFolder

EXAMPLES = """examples:
  megatron-nca cancel runs/demo

A training at work is given the time that Slurm leaves it (KillWait, 30 seconds by default) to save. What was made
stays; `megatron-nca resubmit RUN` and `megatron-nca run` go on from there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run's folder")


def run(arguments: argparse.Namespace) -> int:
    folder = RunFolder(arguments.run_dir).slurm
    submission = record.read(folder)
    if submission is None:
        reason = "nothing was submitted from it."
        raise ConfigError(explain("RUN", str(arguments.run_dir), reason, "stop a run elsewhere by Ctrl-C."))
    numbers = record.ids(folder, submission)
    left = {job.name for job in record.unfinished(folder, submission)}
    found = record.in_queue(queue.ask_entries(), numbers)
    live = sorted({entry.job for entries in found.values() for entry in entries if not entry.is_over}, key=int)
    if live:
        queue.cancel(live)
    for job in submission.jobs:
        for element in set(job.numbers) - set(record.ends(folder, submission, job)) if job.name in left else ():
            end = {"submission": submission.name, "action": "cancelled", "reason": "by megatron-nca cancel"}
            attempts.record_end(folder.end(job.name, element), end)
    attempts.say(folder.progress, "plan", f"cancelled {len(live)} jobs: {', '.join(live) or 'none was left'}")
    return 0
