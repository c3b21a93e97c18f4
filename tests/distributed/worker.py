"""Several phases in one launch: importing torch and Megatron costs more than training these models.

    torchrun --nproc-per-node N worker.py [--refused] RUN::PHASE... CHECKPOINT=>COPY...

With --refused each must end in an error of ours, on every rank; the messages are printed as JSON lines.
"""

import functools
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

from megatron_nca.config.recipe import load_recipe
from megatron_nca.errors import MegatronNcaError
from megatron_nca.mcore import async_save
from megatron_nca.mcore.parallel import gather, read_ranks
from megatron_nca.run_dir import RunFolder
from megatron_nca.train.loop import Job, train

read = functools.cache(load_recipe)
"""Each phase of a launch has the same recipe, and it is a long one."""


def job(argument: str) -> Job:
    run, phase = argument.split("::")
    recipe = read((Path(run) / "recipe.yaml").resolve())
    return Job(recipe=recipe, phase=phase, arm=phase, seed=0, run=RunFolder(Path(run)))


def refused(argument: str) -> None:
    """Train and print the error.

    A run folder named `full…` finds a disk that takes 20 kB a file; in `killed_writer` rank 1's writer kills itself.
    """
    name, write = Path(argument.split("::")[0]).name, async_save._write
    if name.startswith("full"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    if name == "killed_writer" and read_ranks().rank == 1:
        async_save._write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    try:
        train(job(argument), read_ranks())
    except MegatronNcaError as error:
        line = json.dumps({"case": argument, "rank": read_ranks().rank, "error": str(error)}) + "\n"
        os.write(1, line.encode())  # in one piece, for both ranks write here
    else:
        raise SystemExit(f"{argument} was not refused")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    async_save._write = write


def placed(argument: str) -> None:
    """Copy a checkpoint to where another run of this launch will find it: FROM=>TO."""
    if read_ranks().is_first:
        source, target = map(Path, argument.split("=>"))
        shutil.copytree(source, target)
    gather(None)


if __name__ == "__main__":  # Megatron's checkpoint writer starts a process that imports this file
    arguments = sys.argv[1:]
    if arguments[0] == "--refused":
        for argument in arguments[1:]:
            refused(argument)
    else:
        for argument in arguments:
            if "=>" in argument:
                placed(argument)
            else:
                train(job(argument), read_ranks())
