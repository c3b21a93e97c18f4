"""The files of a checkpoint that explain it to whoever finds it alone: the recipe as resolved, and what made it."""

import json
import re

from megatron_nca import __version__
from megatron_nca.config.recipe import Recipe
from megatron_nca.config.run_config import RunConfig
from megatron_nca.config.schema import to_dict, to_yaml
from megatron_nca.errors import DataError
from megatron_nca.mcore.engine import versions
from megatron_nca.run_dir import RunFolder
from megatron_nca.train.supply import Beforehand, OnNode

RECIPE_NAME = "recipe.yaml"
PROVENANCE_NAME = "provenance.json"


def beside(recipe: Recipe, run: RunFolder, supply: Beforehand | OnNode, run_config: RunConfig) -> dict[str, str]:
    """Name -> text of both files."""
    phase = recipe.phases[run_config.phase]
    values = {
        "format": "megatron_nca provenance",
        "version": 1,
        "software": {"megatron_nca": __version__, "commit": _commit(run), **versions(phase.parallel.engine)},
        "parallel": to_dict(phase.parallel),
        "data": {
            "dataset": phase.dataset,
            "train": {"sha256": run_config.data_sha256, "settings digest": run_config.data_digest},
            "validation": {"sha256": _sha256(supply)},
        },
    }
    return {RECIPE_NAME: to_yaml(recipe), PROVENANCE_NAME: json.dumps(values, indent=2) + "\n"}


def _commit(run: RunFolder) -> str | None:
    """The last one that `megatron-nca run` noted in this run folder; None if none is known."""
    if not run.source.exists():
        return None
    found = re.findall(r"^commit ([0-9a-f]{40})$", run.source.read_text(encoding="utf-8"), re.MULTILINE)
    return found[-1] if found else None


def _sha256(supply: Beforehand | OnNode) -> str | None:
    """Of the validation .bin; None where a node has not finished it."""
    try:
        return supply.validation.content_sha256(supply.validation.manifests())
    except DataError:
        return None
