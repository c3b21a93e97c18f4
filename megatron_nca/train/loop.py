"""One phase from where it stands to its end: what is opened before the iterations, and the record after them.

Nothing here knows whether the tokens are automata or text.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from megatron_nca import files
from megatron_nca.account import devices, flops
from megatron_nca.config.recipe import Recipe
from megatron_nca.config.run_config import RunConfig
from megatron_nca.errors import LaunchError, MegatronNcaError
from megatron_nca.mcore.engine import Engine, Ranks, agree, agreed, build_engine
from megatron_nca.run_dir import PhaseFolder, RunFolder
from megatron_nca.train import boards, checkpoints, provenance, reading
from megatron_nca.train.clock import Clock
from megatron_nca.train.fence import Fence
from megatron_nca.train.metrics import Machine, Metrics
from megatron_nca.train.stopping import Pace, Stop
from megatron_nca.train.supply import Beforehand, Copied, OnNode, OnNodeData
from megatron_nca.train.training import Training

logger = logging.getLogger("megatron_nca.train")

LOCK_SECONDS = 180.0
"""For the attempt before to end, which looks for a newer one every second; a server that holds a dead node's lock takes
longer."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One phase of one arm at one seed."""

    recipe: Recipe
    phase: str
    arm: str
    seed: int
    run: RunFolder
    on_node: Callable[[], OnNodeData] | None = None
    """For a dataset that each node makes for itself; asked on the node, where it may raise ConfigError."""
    copy_data_to: str | None = None
    """A folder on each node's own disk, its variables not yet filled in, from which the data are read; None: they are
    read where they lie. Of no meaning for `on_node`."""
    attempt: int | None = None
    """That was taken for it in the phase's folder (files.take_number); None: the training takes one itself."""


def train(job: Job, ranks: Ranks, stop: Stop | None = None, at: Callable = lambda *_: None) -> bool:
    """Train the phase from where it stands to its last iteration, and write its done record.

    Returns False, on all ranks alike, if it ended before because `stop` said so on any rank: what was trained is
    saved, and the next call goes on from there. `at(what, limited)` is told what this rank does, and whether that must
    not take long. Raises MegatronNcaError, the same on all ranks.
    """
    clock, phase = Clock(), job.recipe.phases[job.phase]
    folder = job.run.phase(job.arm, job.seed, job.phase)
    if folder.done.exists():
        if ranks.is_first:
            logger.info("%s: is whole, nothing to do", folder.path)
        return True
    with contextlib.ExitStack() as at_the_end:
        at("building the model")
        engine = build_engine(job.recipe.model_config(job.phase), phase, ranks, job.seed)
        at_the_end.callback(engine.close)
        fence = agreed(lambda: at_the_end.enter_context(_begin(folder, job.attempt)) if ranks.is_first else None)
        at("loading the checkpoint")
        start = checkpoints.starting_point(folder, ranks, phase.verify_checkpoints)
        began = time.perf_counter()
        loaded = agreed(lambda: engine.load(start))
        pace = Pace(time.perf_counter() - began)
        resumed = start != folder.initial
        if resumed:
            checkpoints.check_same_course(loaded, start, phase)
        at("opening the data")
        supply = _supply(job, ranks, loaded.consumed_sequences if resumed else 0)
        at_the_end.callback(supply.close)
        with clock.waiting:
            data = _open_data(job, supply)
        if resumed:
            checkpoints.check_same_data(loaded, start, supply.sha256, supply.digest)
        run_config = _run_config(job, supply, loaded if resumed else None)
        if ranks.is_first:
            _say_what_begins(job, engine, run_config)
        beside = partial(provenance.beside, job.recipe, job.run, supply)
        saver = checkpoints.Saver(engine, folder.checkpoints, beside, job.run.linked_as_initial, fence and fence.check)
        at_the_end.callback(saver.close)
        metrics = at_the_end.enter_context(agreed(lambda: _metrics(job, folder, engine, clock, run_config.iteration)))
        training = Training(engine, data, supply, metrics, saver, run_config, stop or Stop(), pace, at)
        stopped_by = training.run()
        agree(_write_record(job, engine, metrics, training.run_config, stopped_by, fence))
        return stopped_by is None


def _run_config(job: Job, supply: Beforehand | OnNode, resumed: RunConfig | None) -> RunConfig:
    """Of the training's beginning: a new one, or what the checkpoint that it goes on from has reached."""
    reached = {} if resumed is None else {
        "iteration": resumed.iteration, "consumed_sequences": resumed.consumed_sequences, "losses": resumed.losses,
        "optimizer": True}
    return RunConfig(model=job.recipe.model_config(job.phase), recipe=job.recipe.name, phase=job.phase, arm=job.arm,
                     seed=job.seed, data_sha256=supply.sha256, data_digest=supply.digest,
                     freeze=job.recipe.phases[job.phase].freeze, **reached)


def _say_what_begins(job: Job, engine: Engine, run_config: RunConfig) -> None:
    logger.info("phase %s, arm %s, seed %d: %s at iteration %d, on %s, %s, %s", job.phase, job.arm, job.seed,
                "resumed" if run_config.optimizer else "started", run_config.iteration, engine.device, engine.layers,
                engine.adam)
    if engine.environment_note is not None:
        logger.info("%s", engine.environment_note)
    for difference in reading.differences(job.recipe, job.run, job.recipe.phases[job.phase].dataset):
        logger.warning("warning: %s", difference)
    freeze = engine.phase.freeze
    if freeze is not None:
        limit = freeze.iterations
        until = "in the whole phase" if limit is None else f"until iteration {limit} has been made"
        logger.info("not trained %s: %s", until, " ".join(freeze.components))


def _metrics(job: Job, folder: PhaseFolder, engine: Engine, clock: Clock, resumed_at: int) -> Metrics:
    model, phase, ranks = engine.model_config, engine.phase, engine.ranks
    peak = devices.peak_of(engine.device_name, phase.precision, fp8=phase.fp8 is not None)
    if peak is None and ranks.is_first:
        with_fp8 = " in fp8" if phase.fp8 else ""
        logger.info("MFU is unknown: account/devices.py has no peak rate of '%s'%s", engine.device_name, with_fp8)
    machine = Machine(flops_per_token=flops.flops_per_token(model), devices=ranks.world_size, peak_flops=peak,
                      memory=engine.memory)
    name = f"{job.arm}/seed{job.seed}/{job.phase}"
    return Metrics(folder, phase, model.sequence_length, machine, resumed_at=resumed_at, writes=ranks.is_first,
                   boards=lambda: boards.open_boards(job.recipe, folder, name, resumed_at), clock=clock)


@contextlib.contextmanager
def _begin(folder: PhaseFolder, attempt: int | None) -> Iterator[Fence]:
    """Hold the folder's lock, for two trainings would mix their checkpoints, behind a fence against those to come.

    Raises LaunchError if another is at work. An attempt that has its number waits: the one before it is on its way out.
    """
    deadline = time.monotonic() + (0 if attempt is None else LOCK_SECONDS)
    while (lock := files.try_lock(folder.lock)) is None:
        if time.monotonic() >= deadline:
            raise LaunchError(f"{folder.path}: another process is training here. Cure: wait for it, or end it.")
        time.sleep(0.2)
    try:
        fence = Fence(folder.attempts, files.take_number(folder.attempts, "") if attempt is None else attempt)
        fence.check()
        files.remove(folder.stopped)
        files.remove(folder.failed)
        fence.watch()
        yield fence
        fence.close()
    finally:
        os.close(lock)


def _write_record(
    job: Job, engine: Engine, metrics: Metrics, reached: RunConfig, stopped_by: str | None, fence: Fence | None
) -> MegatronNcaError | None:
    """First rank: the record that the phase is whole, or that it has stopped before, and why."""
    if not engine.ranks.is_first:
        return None
    folder = job.run.phase(job.arm, job.seed, job.phase)
    checkpoint = folder.checkpoints.iteration(reached.iteration) if reached.optimizer else folder.initial
    values = {
        "iterations": job.recipe.phases[job.phase].iterations,
        "checkpoint": str(checkpoint.relative_to(folder.path)),
        "consumed tokens": reached.consumed_sequences * engine.model_config.sequence_length,
        "lm loss validation": metrics.last_validation_loss,
        "skipped updates": reached.losses.skipped,
        **metrics.clock.record(),
    }
    if stopped_by:
        values = {"stopped by": stopped_by, "iteration": reached.iteration, **values}
        logger.info("stopped by %s after iteration %d, all is saved; start again to go on from there",
                    stopped_by, reached.iteration)
    try:
        fence.check()
        files.write_text(folder.stopped if stopped_by else folder.done, json.dumps(values, indent=2) + "\n")
    except MegatronNcaError as error:
        return error
    return None


def _supply(job: Job, ranks: Ranks, consumed: int) -> Beforehand | OnNode:
    """Collective: where the phase's data come from. Generators on nodes are started."""
    if job.on_node is not None:
        return OnNode(agreed(job.on_node), ranks, consumed)
    parts = reading.blends(job.recipe, job.run, job.recipe.phases[job.phase].dataset)
    return Beforehand(*parts) if job.copy_data_to is None else Copied(*parts, job.copy_data_to, ranks)


def _open_data(job: Job, supply: Beforehand | OnNode) -> object:
    """The phase's datasets; a bad file on any rank ends all ranks with one message."""
    supply.prepare()
    parts, cache = (supply.train, supply.validation), reading.index_cache(job.recipe, job.run, job.phase)
    opened = agreed(lambda: reading.open_data(job.recipe, job.phase, job.seed, parts, cache, supply.in_the_making))
    supply.opened()
    return opened
