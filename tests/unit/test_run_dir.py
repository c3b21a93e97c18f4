"""Paths of a run, against the tree in docs/run_folder.md's and run_dir.py's words."""

from pathlib import Path

from megatron_nca.config.recipe import recipe_from_dict
from megatron_nca.run_dir import CheckpointFolder, RunFolder

RUN = RunFolder(Path("r"))


def test_paths_of_a_run():
    assert [str(path) for path in (RUN.recipe, RUN.source, RUN.report)] == ["r/recipe.yaml", "r/source.txt", "r/report"]
    phase = RUN.phase("nca", 3, "text")
    assert phase.path == Path("r/arms/nca/seed3/text")
    names = [phase.initial, phase.metrics, phase.tensorboard, phase.log, phase.done]
    assert [path.name for path in names] == ["initial", "metrics.jsonl", "tensorboard", "train.log", "done.json"]


def test_checkpoints_have_megatrons_layout():
    folder = CheckpointFolder(Path("c"))
    assert folder.iteration(100) == Path("c/iter_0000100")
    assert folder.tracker == Path("c/latest_checkpointed_iteration.txt")


def test_prefixes_of_datasets(recipe_values):
    recipe_values["datasets"]["own"] = {
        "source": "indexed",
        "vocab_size": 9,
        "train_prefix": "a/train",
        "validation_prefix": "b/held_out",
    }
    datasets = recipe_from_dict(recipe_values).datasets

    def prefix(name: str, part: str) -> str:
        return str(RUN.dataset(name).prefix(part, datasets[name]))

    assert prefix("automata", "train") == "r/data/automata/train"
    assert prefix("text", "validation") == "r/data/text/validation_text_document"
    assert (prefix("own", "train"), prefix("own", "validation")) == ("a/train", "b/held_out")
    assert RUN.dataset("text").jsonl("train") == Path("r/data/text/train.jsonl")
