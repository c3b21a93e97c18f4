"""When to save and what to load: written aside, renamed when whole, the newest whole one found again."""

import dataclasses
import logging
import shutil
from pathlib import Path

from megatron_nca import files
from megatron_nca.config.run_config import FILE_NAME, RunConfig, is_whole
from megatron_nca.config.schema import to_yaml
from megatron_nca.errors import CheckpointError, DataError
from megatron_nca.mcore.engine import Engine, agree
from megatron_nca.run_dir import CheckpointFolder, PhaseFolder

logger = logging.getLogger("megatron_nca.train")


def starting_point(folder: PhaseFolder) -> Path:
    """The checkpoint to start from: the newest whole one of the phase, else its initial one.

    Raises CheckpointError if there is neither: a phase never starts from scratch unasked.
    """
    newest = newest_whole(folder.checkpoints)
    if newest is not None:
        return newest
    if not is_whole(folder.initial):
        raise CheckpointError(
            f"{folder.initial}: there is no initial checkpoint to start this phase from. "
            "Cure: make it with `megatron-nca convert transfer` (`megatron-nca run` does), also to train from scratch."
        )
    return folder.initial


def newest_whole(series: CheckpointFolder) -> Path | None:
    """The newest whole checkpoint of a series, None if the series is empty; broken ones are named loudly.

    Raises CheckpointError if there are only broken ones: starting over would not be what was asked.
    """
    found = sorted((path for path in series.path.glob("iter_*") if path.is_dir()), reverse=True)
    for path in found:
        if is_whole(path):
            return path
        logger.warning("checkpoint %s is not whole and is passed over", path)
    if found:
        raise CheckpointError(
            f"{series.path}: none of its {len(found)} checkpoints is whole. "
            "Cure: restore one, or remove them all to start the phase over."
        )
    return None


def save(engine: Engine, series: CheckpointFolder, run_config: RunConfig, keep: int) -> Path:
    """Collective: publish `iter_<iteration>`, point the tracker at it, drop all but the newest `keep`."""
    path = series.iteration(run_config.iteration)
    aside = path.with_name(f".{path.name}.tmp")
    agree(_prepare(engine, series, aside))
    error = None
    try:
        engine.save(aside)
    except CheckpointError as failure:
        error = _failed(run_config.iteration, path, failure)
    except OSError as failure:
        # This rank alone: the others wait inside Megatron, and the launcher ends them when this one has ended.
        raise _failed(run_config.iteration, path, failure) from failure
    agree(error)
    agree(_publish(engine, series, run_config, aside, path, keep))
    return path


def _failed(iteration: int, path: Path, failure: Exception) -> DataError:
    return DataError(
        f"saving iteration {iteration} failed: {failure} Nothing was left under {path.name}. "
        "Cure: check the free space and the permissions, then start again; it resumes from the last whole one."
    )


def _prepare(engine: Engine, series: CheckpointFolder, aside: Path) -> DataError | None:
    """First rank: an empty folder aside, and room for the checkpoint."""
    if not engine.ranks.is_first:
        return None
    try:
        files.remove(aside)
        aside.mkdir(parents=True)
        free, needed = shutil.disk_usage(aside).free, engine.checkpoint_bytes
        if free < needed:
            aside.rmdir()
            return DataError(
                f"{series.path}: a checkpoint needs about {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free. "
                "Cure: free some space."
            )
    except OSError as error:
        return files.translate(error, aside)
    return None


def _publish(
    engine: Engine, series: CheckpointFolder, run_config: RunConfig, aside: Path, path: Path, keep: int
) -> DataError | None:
    if not engine.ranks.is_first:
        return None
    try:
        (aside / FILE_NAME).write_text(to_yaml(run_config), encoding="utf-8")
        files.sync(aside)
        files.remove(path)
        aside.rename(path)
        files.write_text(series.tracker, str(run_config.iteration))
        for old in sorted(series.path.glob("iter_*"))[:-keep]:
            files.remove(old)
    except OSError as error:
        return files.translate(error, path)
    except DataError as error:
        return error
    return None


def check_same_data(run_config: RunConfig, checkpoint: Path, sha256: str | None, digest: str | None) -> None:
    """A resume on other data would continue another experiment. Raises CheckpointError.

    Data in the making have no `sha256` yet, and only those made on nodes a `digest`.
    """
    for what, then, now in (("data with sha256", run_config.data_sha256, sha256),
                            ("data whose settings have the digest", run_config.data_digest, digest)):
        if None not in (then, now) and then != now:
            raise CheckpointError(
                f"{checkpoint}: was trained on {what} {then[:16]}…, now it is {now[:16]}…. "
                "Cure: restore that data, or start in another run folder."
            )


def at_iteration(run_config: RunConfig, iteration: int, consumed: int, data_sha256: str | None) -> RunConfig:
    return dataclasses.replace(
        run_config, iteration=iteration, consumed_sequences=consumed, data_sha256=data_sha256, optimizer=True
    )
