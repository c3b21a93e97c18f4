"""Which datasets a phase reads, and how they are opened for it; by its training, or ahead of it for their indices."""

import os
from pathlib import Path

from megatron_nca import files
from megatron_nca.config.recipe import Recipe
from megatron_nca.config.schema import to_dict
from megatron_nca.data.blend import Blend
from megatron_nca.data.manifest import Manifest
from megatron_nca.errors import explain
from megatron_nca.mcore.engine import datasets, lone_process
from megatron_nca.run_dir import RunFolder


def blends(recipe: Recipe, run: RunFolder, name: str) -> tuple[Blend, Blend]:
    """Training and validation part of the recipe's dataset `name`, made beforehand."""
    weights = recipe.datasets[name].blend or ((1.0, name),)

    def of(part: str) -> Blend:
        return Blend.of(*((weight, run.dataset(one).prefix(part, recipe.datasets[one])) for weight, one in weights))

    return of("train"), of("validation")


def differences(recipe: Recipe, run: RunFolder, name: str) -> list[str]:
    """What a recipe says of a generated dataset and is not so of the one in the run folder, which is what is read.

    Raises DataError.
    """
    dataset, found = recipe.datasets[name], []
    if not dataset.is_generated or dataset.on_node is not None:
        return []
    for part, sequences, seed in (("train", "sequences", "seed"),
                                  ("validation", "validation_sequences", "validation_seed")):  # fmt: skip
        prefix = run.dataset(name).prefix(part, dataset)
        manifest = Manifest.load(prefix)
        asked = {sequences: recipe.part_sequences(name, part), seed: getattr(dataset, seed)}
        there = {sequences: manifest.documents, seed: manifest.origin.get("seed")}
        if dataset.source == "nca":
            asked |= {f"law.{key}": value for key, value in to_dict(dataset.law).items()}
            there |= {f"law.{key}": value for key, value in manifest.origin.get("law", {}).items()}
        cure = "leave the setting as it was, or make the dataset anew in another run folder."
        found += [explain(f"datasets.{name}.{key}", value, f"{prefix}, which is read, has {there[key]!r}.", cure)
                  for key, value in asked.items() if key in there and value != there[key]]  # fmt: skip
    return found


def index_cache(recipe: Recipe, run: RunFolder, phase: str) -> Path:
    """Folder of the indices of a phase's text."""
    return run.dataset(recipe.phases[phase].dataset).path / "index_cache"


def open_data(recipe: Recipe, phase: str, seed: int, parts: tuple[Blend, Blend], cache: Path,
              in_the_making: bool = False) -> object:
    """`mcore.datasets.Datasets` of a phase; text needs indices, which are made in `cache` where they are not there.

    Collective. Raises DataError.
    """
    settings = recipe.phases[phase]
    return datasets(
        *parts,
        recipe.model.sequence_length,
        seed,
        settings.train_sequences,
        settings.validation_sequences,
        cache,
        recipe.model_config(phase).vocab_size,
        in_the_making,
    )


def prepare_indices(recipe: Recipe, run: RunFolder, phase: str, seed: int) -> int:
    """Make the indices of a phase's text that are not there, in this process alone; returns the number of files.

    Megatron writes in place, and takes a file that exists for whole. So they are made in a folder beside, where those
    that are there stand as links, and renamed into place. Raises DataError.
    """
    cache = index_cache(recipe, run, phase)
    parts = blends(recipe, run, recipe.phases[phase].dataset)
    aside = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
    try:
        for path in cache.glob("*/*"):
            link = aside / path.relative_to(cache)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        with lone_process():
            open_data(recipe, phase, seed, parts, aside)
        made = [path for path in aside.glob("*/*") if not path.is_symlink()]
        for path in made:
            place = cache / path.relative_to(aside)
            place.parent.mkdir(parents=True, exist_ok=True)
            files.sync(path)
            os.replace(path, place)
        return len(made)
    except OSError as error:
        raise files.translate(error, cache) from error
    finally:
        files.remove(aside)
