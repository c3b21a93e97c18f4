"""Several phases in one launch: importing torch and Megatron costs more than training these models.

    torchrun --nproc-per-node N worker.py RUN PHASE...
"""

import sys
from pathlib import Path

from megatron_nca.config.recipe import load_recipe
from megatron_nca.mcore.parallel import read_ranks
from megatron_nca.run_dir import RunFolder
from megatron_nca.train.loop import Job, train

if __name__ == "__main__":  # Megatron's checkpoint writer starts a process that imports this file
    run = Path(sys.argv[1])
    recipe = load_recipe(run / "recipe.yaml")
    for phase in sys.argv[2:]:
        train(Job(recipe=recipe, phase=phase, arm=phase, seed=0, run=RunFolder(run)), read_ranks())
