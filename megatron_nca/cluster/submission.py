"""A recipe and a cluster in, jobs in the queue out: what can be known beforehand is checked before the first one."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_nca import files, plan
from megatron_nca.account.devices import DEVICES
from megatron_nca.account.memory import memory
from megatron_nca.cluster import attempts, launch, queue, record, script
from megatron_nca.cluster.jobs import Job, jobs
from megatron_nca.cluster.profile import Cluster
from megatron_nca.cluster.record import Submission
from megatron_nca.cluster.script import Place
from megatron_nca.config.recipe import Recipe
from megatron_nca.config.schema import suggest, to_yaml
from megatron_nca.errors import ConfigError, LaunchError, explain
from megatron_nca.run_dir import RunFolder


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
    """Raises ConfigError where the recipe or the run folder does not fit the cluster."""
    check_fit(recipe, cluster)
    if cluster.container is not None:
        launch.mounts(cluster.container, run.path)
    return Planned(recipe, cluster, run, place, jobs(recipe, plan.steps(recipe, run), cluster))


def check_fit(recipe: Recipe, cluster: Cluster) -> None:
    """Raise ConfigError for a layout that fills no nodes, too little memory or storage, or a bank of no dataset."""
    need, storage = sum(plan.estimate_bytes(recipe)), cluster.storage_gb
    if storage is not None and need > storage * 1e9:
        cure = "keep fewer checkpoints, or ask for a larger quota."
        raise ConfigError(explain("storage_gb", storage, f"the run takes up to {need / 1e9:.3g} GB.", cure))
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


def submit(wanted: Planned, say: Callable[[str], None]) -> Submission:
    """Check, freeze and submit. Either all jobs are in the queue or none is.

    Raises ConfigError, DataError, LaunchError.
    """
    run = wanted.run
    for warning in plan.check(wanted.recipe):
        if "cores" not in warning:  # of this machine
            say(f"warning: {warning}")
    for name in wanted.cluster.pass_environment:
        if name not in os.environ:
            say(f"warning: pass_environment: {name} is not set here, so jobs will not see it.")
    _check_disk(wanted)
    _check_arrays(wanted)
    with _held(run):
        for line in plan.announce(plan.freeze(wanted.recipe, run), run):
            say(line)
        plan.record_source(run)
        plan.link_shared_phases(wanted.recipe, run)
        files.write_text(run.slurm.cluster, to_yaml(wanted.cluster))
        run.slurm.logs.mkdir(parents=True, exist_ok=True)
        texts = {job.name: wanted.scripts(job) for job in wanted.to_do}
        for name, text in ((name, text) for of_job in texts.values() for name, text in of_job.items()):
            files.write_text(run.slurm.script(name), text)
        _let_slurm_check(wanted)
        return _send(wanted, {name: list(of_job) for name, of_job in texts.items()})


@contextlib.contextmanager
def _held(run: RunFolder) -> Iterator[None]:
    """No other `submit`, and no `run`. Raises ConfigError."""
    with contextlib.ExitStack() as at_the_end:
        for path, what in ((run.slurm.lock, "submit"), (run.lock, "run")):
            lock = files.try_lock(path, shared=path == run.lock)
            if lock is None:
                cure = "wait for it, stop it, or choose another folder."
                reason = f"another `megatron-nca {what}` is at work there."
                raise ConfigError(explain("--run-dir", str(run.path), reason, cure))
            at_the_end.callback(os.close, lock)
        record.check_free(run)
        yield


def _send(wanted: Planned, scripts: dict[str, list[str]]) -> Submission:
    """Job after job into the queue; none is left there if one is refused."""
    submission, folder = Submission.new(wanted.jobs), wanted.run.slurm
    submission.write(folder)
    numbers: dict[str, str] = {}
    in_queue: list[str] = []
    try:
        for job in wanted.to_do:
            turn, after = "singleton" if wanted.is_series(job) else "", dependency(job, numbers)
            for name in scripts[job.name]:
                numbers[job.name] = queue.submit(folder.script(name), ",".join(filter(None, (turn, after))))
                in_queue.append(numbers[job.name])
                record.note_id(folder, submission, job.name, numbers[job.name])
            attempts.say(folder.progress, job.name, f"submitted as job {numbers[job.name]}")
    except BaseException:
        if in_queue:
            queue.cancel(in_queue)
        files.remove(folder.jobs)
        raise
    return submission


def dependency(job: Job, numbers: dict[str, str]) -> str:
    """What sbatch is told; jobs that were whole have no number and are not waited for."""
    kinds = {"afterok": job.after, "aftercorr": job.pairwise}
    found = {kind: [numbers[name] for name in names if name in numbers] for kind, names in kinds.items()}
    return ",".join(f"{kind}:{':'.join(of_kind)}" for kind, of_kind in found.items() if of_kind)


def _check_disk(wanted: Planned) -> None:
    """The estimate of a new run against what is free there; a quota stands in the cluster file."""
    if not wanted.run.recipe.exists():
        need, cure = sum(plan.estimate_bytes(wanted.recipe)), "free some space or choose another folder."
        files.check_free(wanted.run.path, need, "--run-dir", str(wanted.run.path), cure)
    for name, bank in wanted.cluster.generation.banks.items():
        if not Path(bank, "zarr.json").is_file():
            cure = "begin one with `megatron-nca bank fill` (docs/bank.md)."
            raise ConfigError(explain(f"generation.banks.{name}", bank, "there is no bank.", cure))


def _check_arrays(wanted: Planned) -> None:
    largest = max((len(job.elements) for job in wanted.to_do), default=1)
    limit = queue.configured("MaxArraySize")
    if largest > 1 and limit is not None and largest > int(limit):
        cure = f"set array_limit: {limit} in the cluster file."
        raise ConfigError(explain("array_limit", wanted.cluster.array_limit, f"this cluster takes {limit}.", cure))


def _let_slurm_check(wanted: Planned) -> None:
    """One script of each shape: the controller knows its accounts, partitions and limits best."""
    shapes, folder = {}, wanted.run.slurm
    for job in wanted.to_do:
        shapes.setdefault((job.ranks, job.trains), next(iter(wanted.scripts(job))))
    for (ranks, _), name in shapes.items():
        try:
            queue.test(folder.script(name))
        except LaunchError as error:
            cure = f"change the cluster file, or look at {folder.script(name)}."
            raise LaunchError(f"Slurm refuses jobs of {ranks} ranks: {error} Cure: {cure}") from error
