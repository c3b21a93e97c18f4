"""`megatron-nca train` with a rank that comes to harm, or whose loss is no number, in micro-batch 2 of iteration 3.

    megatron-nca torchrun --nproc-per-node N faulty.py FAULT RANK train RECIPE ...
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable

from megatron_nca.__main__ import main
from megatron_nca.mcore import engine, watchdog


def raises() -> None:
    raise ValueError("a number that no one expected")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stopped() -> None:
    time.sleep(1.5)  # one more sign of life
    os.kill(os.getpid(), signal.SIGSTOP)


def hangs() -> None:
    time.sleep(3600)


def harmed(forward: Callable, fault: Callable[[], None]) -> Callable:
    """Megatron's forward step; an iteration has two micro-batches."""
    calls = 0

    def step(*arguments: object, by_position: bool, **named: object) -> tuple:
        nonlocal calls
        calls += not by_position  # only training
        losses = forward(*arguments, by_position=by_position, **named)
        if calls == 6:
            fault()
        return losses

    return step


def spoilt(loss: Callable) -> Callable:
    """Our loss function, on a last stage."""
    calls = 0

    def step(*arguments: object, positions: object) -> tuple:
        nonlocal calls
        calls += positions is None  # only training
        factor = math.nan if calls == 6 and positions is None else 1.0
        total, tokens, logged = loss(*arguments, positions=positions)
        return total * factor, tokens, logged * factor

    return step


if __name__ == "__main__":
    fault, rank = sys.argv[1:3]
    if os.environ["RANK"] == rank and fault == "spoilt":
        engine._loss = spoilt(engine._loss)
    elif os.environ["RANK"] == rank:
        engine.forward_step = harmed(engine.forward_step, globals()[fault])
    if fault == "hangs":
        watchdog.STUCK_SECONDS = 4
    sys.exit(main(sys.argv[3:]))
