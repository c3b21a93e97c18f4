"""A recipe and a cluster in, jobs in the queue out: what can be known beforehand is checked before the first one."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_nca import files, plan
from megatron_nca.account.devices import DEVICES
from megatron_nca.account.memory import memory
from megatron_nca.cluster import attempts, queue, record, script
from megatron_nca.cluster.jobs import Job, jobs
from megatron_nca.cluster.profile import Cluster
from megatron_nca.cluster.record import Submission
from megatron_nca.cluster.script import Place
from megatron_nca.config.recipe import Recipe
from megatron_nca.config.schema import suggest, to_yaml
from megatron_nca.errors import ConfigError, LaunchError, explain
from megatron_nca.run_dir import RunFolder, SlurmFolder


@dataclass(frozen=True)
class Planned:
    """What a submission would do."""

    recipe: Recipe
    cluster: Cluster
    run: RunFolder
    place: Place
    jobs: tuple[Job, ...]

    @property
    def to_do(self) -> list[Job]:
        return [job for job in self.jobs if job.numbers]

    def scripts(self, job: Job) -> dict[str, str]:
        """Name -> text; a training of a series has one script for each of its jobs."""
        if not self.is_series(job):
            return {job.name: script.text(job, self.cluster, self.place)}
        numbers = range(1, self.cluster.series + 1)
        return {f"{job.name}-{number}": script.text(job, self.cluster, self.place, number) for number in numbers}

    def is_series(self, job: Job) -> bool:
        return job.trains and self.cluster.resume_by == "series"


def planned(recipe: Recipe, cluster: Cluster, run: RunFolder, place: Place) -> Planned:
    """Raises ConfigError where the recipe does not fit the cluster."""
    check_fit(recipe, cluster)
    return Planned(recipe, cluster, run, place, jobs(recipe, plan.steps(recipe, run), cluster))


def check_fit(recipe: Recipe, cluster: Cluster) -> None:
    """Raise ConfigError for a layout that fills no nodes, too little memory, or a bank of no dataset here."""
    for name in cluster.generation.banks:
        if name not in recipe.datasets or recipe.datasets[name].source != "nca":
            generated = [key for key, dataset in recipe.datasets.items() if dataset.source == "nca"]
            raise ConfigError(f"generation.banks.{name}: no automata of this recipe.{suggest(name, generated)}")
    limit = DEVICES[cluster.node.device].memory_bytes
    for name, phase in recipe.phases.items():
        try:
            cluster.nodes(phase.parallel.world_size)
        except ConfigError as error:
            raise ConfigError(f"phases.{name}: {error}") from error
        if limit is None:
            continue
        batches = phase.global_batch_size // (phase.micro_batch_size * phase.parallel.data)
        model = recipe.model_config(name)
        stages = memory(model, phase.parallel, phase.precision, phase.micro_batch_size, batches)
        need = max(stage.total for stage in stages)
        if need > limit:
            reason = f"a rank needs {need / 1e9:.1f} GB, and {DEVICES[cluster.node.device].name} has {limit / 1e9:.0f}."
            cure = "split the model further, recompute, or lower micro_batch_size (megatron-nca estimate)."
            raise ConfigError(explain(f"phases.{name}.parallel", _layout(phase.parallel), reason, cure))


def _layout(parallel: object) -> str:
    return f"TP{parallel.tensor} PP{parallel.pipeline} CP{parallel.context} DP{parallel.data}"


def submit(
    plan_: Planned, say: Callable[[str], None], begin: Callable[[], None] = lambda: None
) -> Submission:
    """Check, freeze and submit. Either all jobs are in the queue or none is.

    `begin` is called when nothing can be known to be wrong any more, before the run folder is written. Raises
    ConfigError, DataError, LaunchError.
    """
    run, folder = plan_.run, plan_.run.slurm
    for warning in plan.check(plan_.recipe):
        if "cores" not in warning:  # of this machine
            say(f"warning: {warning}")
    _check_disk(plan_)
    record.check_free(run)
    _check_arrays(plan_)
    begin()
    lock = files.try_lock(run.lock, shared=True)
    if lock is None:
        cure = "wait for it, stop it, or choose another folder."
        raise ConfigError(explain("--run-dir", str(run.path), "another `megatron-nca run` is at work there.", cure))
    plan.freeze(plan_.recipe, run)
    plan.record_source(run)
    plan.link_shared_phases(plan_.recipe, run)
    submission = Submission.new(plan_.jobs)
    files.write_text(folder.cluster, to_yaml(plan_.cluster))
    folder.logs.mkdir(parents=True, exist_ok=True)
    texts = {job.name: plan_.scripts(job) for job in plan_.to_do}
    for name, text in ((name, text) for of_job in texts.values() for name, text in of_job.items()):
        files.write_text(folder.script(name), text)
    _let_slurm_check(plan_, folder)
    submission.write(folder)
    numbers: dict[str, str] = {}
    try:
        for job in plan_.to_do:
            after = dependency(job, numbers)
            for name in texts[job.name]:
                turn = "singleton" if plan_.is_series(job) else ""
                numbers[job.name] = queue.submit(folder.script(name), ",".join(filter(None, (turn, after))))
                record.note_id(folder, submission, job.name, numbers[job.name])
            attempts.say(folder.progress, job.name, f"submitted as job {numbers[job.name]}")
    except BaseException:
        if numbers:
            queue.cancel([number for of_job in record.ids(folder, submission).values() for number in of_job])
        files.remove(folder.jobs)
        raise
    return submission


def dependency(job: Job, numbers: dict[str, str]) -> str:
    """What sbatch is told; jobs that were whole have no number and are not waited for."""
    kinds = {"afterok": job.after, "aftercorr": job.pairwise}
    found = {kind: [numbers[name] for name in names if name in numbers] for kind, names in kinds.items()}
    return ",".join(f"{kind}:{':'.join(of_kind)}" for kind, of_kind in found.items() if of_kind)


def _check_disk(plan_: Planned) -> None:
    """The estimate of the whole run against what is free there; a quota is known to Slurm's users alone."""
    there = plan_.run.path.resolve()
    while not there.exists():
        there = there.parent
    data, checkpoints = plan.estimate_bytes(plan_.recipe)
    free = shutil.disk_usage(there).free
    if free < data + checkpoints and not plan_.run.recipe.exists():
        reason = f"the run takes up to {(data + checkpoints) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there."
        cure = "free some space or choose another folder."
        raise ConfigError(explain("--run-dir", str(plan_.run.path), reason, cure))
    for name, bank in plan_.cluster.generation.banks.items():
        if not Path(bank, "zarr.json").is_file():
            cure = "begin one with `megatron-nca bank fill` (docs/bank.md)."
            raise ConfigError(explain(f"generation.banks.{name}", bank, "there is no bank.", cure))


def _check_arrays(plan_: Planned) -> None:
    largest = max((len(job.elements) for job in plan_.to_do), default=1)
    limit = queue.configured("MaxArraySize")
    if largest > 1 and limit is not None and largest > int(limit):
        cure = f"set array_limit: {limit} in the cluster file."
        raise ConfigError(explain("array_limit", plan_.cluster.array_limit, f"this cluster takes {limit}.", cure))


def _let_slurm_check(plan_: Planned, folder: SlurmFolder) -> None:
    """One script of each shape: the controller knows its accounts, partitions and limits best."""
    shapes: dict[tuple, str] = {}
    for job in plan_.to_do:
        shapes.setdefault((job.ranks, job.trains), next(iter(plan_.scripts(job))))
    for (ranks, _), name in shapes.items():
        try:
            queue.test(folder.script(name))
        except LaunchError as error:
            cure = f"change the cluster file, or look at {folder.script(name)}."
            raise LaunchError(f"Slurm refuses jobs of {ranks} ranks: {error} Cure: {cure}") from error
