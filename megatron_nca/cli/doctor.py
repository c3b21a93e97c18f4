"""`megatron-nca doctor`: what this machine can do, what is wrong with it, and the cure."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  megatron-nca doctor
  megatron-nca doctor --folder runs/demo     the disk that a run would write to
  megatron-nca doctor --json                 all that was found, for a program or an issue

Each line is ok, a note (it works, and you may want to know) or a problem, with its cure.
Ends with 0 if there is no problem, with 1 if there is one. Nothing is changed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, default=Path("runs"), metavar="DIR", help="where runs are written (default runs)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object: machine, findings, problems")


def run(arguments: argparse.Namespace) -> int:
    import dataclasses
    import json

    from megatron_nca.doctor import software, system
    from megatron_nca.doctor.probe import probe

    machine = probe(arguments.folder)
    findings = [check(machine) for check in (*software.CHECKS, *system.CHECKS)]
    problems = sum(finding.level == "problem" for finding in findings)
    if arguments.json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"machine": dataclasses.asdict(machine), "findings": listed, "problems": problems}, indent=2))
    else:
        print("\n".join(_in_words(findings)))
        notes = sum(finding.level == "note" for finding in findings)
        print(f"\n{problems} problem{'s' * (problems != 1)}, {notes} note{'s' * (notes != 1)}")
    return 1 if problems else 0


def _in_words(findings: list) -> list[str]:
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<8} {finding.subject:<{width}}  {finding.says}")
        if finding.cure is not None:
            lines.append(f"{'':<8} {'':<{width}}  Cure: {finding.cure}")
    return lines
