"""What `submit` and `resubmit` do alike."""

import shlex

from megatron_nca.cluster import submission
from megatron_nca.cluster.submission import Planned


def send(planned: Planned) -> int:
    """Submit what is left of a plan."""
    if not planned.to_do:
        print(f"{planned.run.path}: all is whole, nothing to submit")
        return 0
    _check_boards(planned)
    submission.submit(planned, lambda line: print(line, flush=True))
    look = shlex.join(["megatron-nca", "status", str(planned.run.path)])
    print(f"{len(planned.to_do)} submissions; look with: {look}", flush=True)
    return 0


def _check_boards(planned: Planned) -> None:
    if planned.recipe.wandb is not None:
        from megatron_nca.train import boards

        boards.check(planned.recipe)
