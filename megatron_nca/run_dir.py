"""Every file of a run folder is a property here; nobody else joins its paths.

    RUN/recipe.yaml                 the resolved recipe
    RUN/recipe.<n>.yaml             what it was before its nth change
    RUN/source.txt                  commit and difference of the code
    RUN/.lock                       held by the one `megatron-nca run` at work here
    RUN/data/<dataset>/train.{bin,idx,json}, validation.{bin,idx,json}           (generated)
    RUN/data/<dataset>/{train,validation}.jsonl, tokenizer.{model,vocab},
        {train,validation}_text_document.{bin,idx,json}                          (source: corpus)
    RUN/arms/<arm>/seed<k>/<phase>/initial/          the checkpoint the phase starts from (convert transfer)
    RUN/arms/<arm>/seed<k>/<phase>/checkpoints/      latest_checkpointed_iteration.txt, iter_0000100/
    RUN/arms/<arm>/seed<k>/<phase>/{metrics.jsonl, tensorboard/, wandb/, wandb_id.txt, train.log,
        done.json or stopped.json or failed.json}
    RUN/arms/<arm>/seed<k>/<phase>/attempts/<n>      one file for each training that was begun
    RUN/report/{report.md, runs.csv, curves.png}
    RUN/slurm/{cluster.yaml, jobs.json, ids.jsonl, progress.txt, queue.json, scripts/<job>.sh, logs/<job>-<id>.log,
        attempts/<job>.<element>/<n>, ends/<job>.<element>.json}                 (submit)
A phase that several arms share is run in the first of them; the others hold a symbolic link to its folder.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

from megatron_nca.config.recipe import Dataset


@dataclass(frozen=True)
class CheckpointFolder:
    """A series of checkpoints in Megatron's layout."""

    path: Path

    @property
    def tracker(self) -> Path:
        return self.path / "latest_checkpointed_iteration.txt"

    def iteration(self, iteration: int) -> Path:
        return self.path / f"iter_{iteration:07d}"


@dataclass(frozen=True)
class PhaseFolder:
    path: Path

    @property
    def initial(self) -> Path:
        """The checkpoint the phase starts from (one checkpoint, not a series)."""
        return self.path / "initial"

    @property
    def checkpoints(self) -> CheckpointFolder:
        return CheckpointFolder(self.path / "checkpoints")

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        """Under which Weights & Biases knows the phase; its files are in `wandb`, a name that the package chose."""
        return self.path / "wandb_id.txt"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def lock(self) -> Path:
        """Held by the one training at work here."""
        return self.path / ".lock"

    @property
    def attempts(self) -> Path:
        """One numbered file for each training that was begun; the highest number alone may publish."""
        return self.path / "attempts"

    @property
    def done(self) -> Path:
        """Written last by `train`: the phase is whole."""
        return self.path / "done.json"

    @property
    def failed(self) -> Path:
        """Why the last `train` failed; the next one removes it."""
        return self.path / "failed.json"

    @property
    def stopped(self) -> Path:
        """Written last by a `train` that stopped in good order before the end; the next one removes it."""
        return self.path / "stopped.json"


@dataclass(frozen=True)
class DatasetFolder:
    path: Path

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.model"

    def jsonl(self, part: str) -> Path:
        """`part` is 'train' or 'validation'."""
        return self.path / f"{part}.jsonl"

    def prefix(self, part: str, dataset: Dataset) -> Path:
        """Path of the indexed dataset without its ending."""
        if dataset.source == "indexed":
            return Path(dataset.train_prefix if part == "train" else dataset.validation_prefix)
        return self.path / (f"{part}_text_document" if dataset.source == "corpus" else part)


@dataclass(frozen=True)
class SlurmFolder:
    """What a plan on Slurm writes beside what it makes. `element` counts the elements of an array, else it is 0."""

    path: Path

    @property
    def cluster(self) -> Path:
        """The cluster file as resolved at submission."""
        return self.path / "cluster.yaml"

    @property
    def jobs(self) -> Path:
        """The jobs of the last submission and their ids."""
        return self.path / "jobs.json"

    @property
    def ids(self) -> Path:
        """The numbers that Slurm gave the jobs of all submissions."""
        return self.path / "ids.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the one submission at work here."""
        return self.path / ".lock"

    @property
    def progress(self) -> Path:
        """One line an event."""
        return self.path / "progress.txt"

    @property
    def queue(self) -> Path:
        """What the controller last said."""
        return self.path / "queue.json"

    def script(self, job: str) -> Path:
        return self.path / "scripts" / f"{job}.sh"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def attempts(self, job: str, element: int) -> Path:
        return self.path / "attempts" / f"{job}.{element}"

    def end(self, job: str, element: int) -> Path:
        """How the job ended, once it is over."""
        return self.path / "ends" / f"{job}.{element}.json"


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    def former_recipe(self, number: int) -> Path:
        """What `recipe.yaml` was before it was changed for the `number`th time."""
        return self.path / f"recipe.{number}.yaml"

    def former_recipes(self) -> list[Path]:
        """Those that are there, the oldest first."""
        numbers = itertools.takewhile(lambda number: self.former_recipe(number).is_file(), itertools.count(1))
        return [self.former_recipe(number) for number in numbers]

    @property
    def source(self) -> Path:
        return self.path / "source.txt"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def slurm(self) -> SlurmFolder:
        return SlurmFolder(self.path / "slurm")

    def linked_as_initial(self) -> set[Path]:
        """Checkpoints that phases of this run start from through a symbolic link to them."""
        return {link.resolve() for link in self.path.glob("arms/*/seed*/*/initial") if link.is_symlink()}

    def dataset(self, name: str) -> DatasetFolder:
        return DatasetFolder(self.path / "data" / name)

    def phase(self, arm: str, seed: int, phase: str) -> PhaseFolder:
        return PhaseFolder(self.path / "arms" / arm / f"seed{seed}" / phase)
