"""When to save and what to load: written aside, renamed when whole, the newest whole one found again."""

import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_nca import file_list, files
from megatron_nca.config.recipe import Phase
from megatron_nca.config.run_config import FILE_NAME, LossRecord, RunConfig
from megatron_nca.config.schema import to_yaml
from megatron_nca.convert.account import check_account
from megatron_nca.errors import CheckpointError, DataError, MegatronNcaError
from megatron_nca.mcore.engine import Engine, Ranks, agree, gather
from megatron_nca.run_dir import CheckpointFolder, PhaseFolder

logger = logging.getLogger("megatron_nca.train")


def starting_point(folder: PhaseFolder, ranks: Ranks, hashes: bool) -> Path:
    """Collective: the checkpoint to start from, the newest whole one of the phase, else its initial one.

    Raises CheckpointError, on all ranks, if there is neither: a phase never starts from scratch unasked.
    """
    newest = newest_whole(folder.checkpoints, ranks, hashes)
    if newest is not None:
        return newest
    found = flaws(folder.initial, ranks, hashes)
    if not gather(folder.initial.is_dir())[0]:
        agree(CheckpointError(
            f"{folder.initial}: there is no initial checkpoint to start this phase from. "
            "Cure: make it with `megatron-nca convert transfer` (`megatron-nca run` does), also to train from scratch."
        ))
    if found:
        agree(CheckpointError(
            f"{folder.initial}: the initial checkpoint is not whole: {'; '.join(found)}. "
            "Cure: remove it and make it again with `megatron-nca convert transfer` (`megatron-nca run` does)."
        ))
    if hashes:
        _check_account(folder.initial, ranks)
    return folder.initial


def _check_account(initial: Path, ranks: Ranks) -> None:
    """Collective: raise CheckpointError if what the converter says it carried is not what is there."""
    faults = [fault for found in gather(check_account(initial, (ranks.rank, ranks.world_size))) for fault in found]
    if faults:
        agree(CheckpointError(
            f"{initial}: is not what its account says: {'; '.join(dict.fromkeys(faults))}. "
            "Cure: remove it and make it again with `megatron-nca convert transfer` (`megatron-nca run` does)."
        ))


def newest_whole(series: CheckpointFolder, ranks: Ranks, hashes: bool) -> Path | None:
    """Collective: the newest whole checkpoint of a series, None if it is empty; broken ones are named loudly.

    Raises CheckpointError if there are only broken ones: starting over would not be what was asked.
    """
    # One rank looks, for on a shared file system two may see different things.
    found = gather(_newest_first(series) if ranks.is_first else None)[0]
    for path in found:
        broken = flaws(path, ranks, hashes)
        if not broken:
            return path
        if ranks.is_first:
            logger.warning("checkpoint %s is broken and is passed over: %s", path, "; ".join(broken))
    if found:
        agree(CheckpointError(
            f"{series.path}: none of its {len(found)} checkpoints is whole. "
            "Cure: restore one, or remove them all to start the phase over."
        ))
    return None


def flaws(checkpoint: Path, ranks: Ranks, hashes: bool) -> list[str]:
    """Collective: what is wrong with a checkpoint's files; with `hashes` each rank reads its share of them."""
    mine = file_list.flaws(checkpoint, (ranks.rank, ranks.world_size) if hashes else None)
    return sorted({flaw for part in gather(mine) for flaw in part})


def _newest_first(series: CheckpointFolder) -> list[Path]:
    return sorted((path for path in series.path.glob("iter_*") if path.is_dir()), reverse=True)


@dataclass
class _UnderWay:
    writing: object
    run_config: RunConfig
    aside: Path
    path: Path
    began: float


class Saver:
    """The saves of one training, at most one of them under way. Building it is collective; so is all but `close`.

    `beside(run_config)` gives further files, name -> text, that explain a checkpoint; `needed()` the checkpoints that
    must stay although newer ones are there. Both are asked on the first rank.
    """

    def __init__(
        self,
        engine: Engine,
        series: CheckpointFolder,
        beside: Callable[[RunConfig], Mapping[str, str]],
        needed: Callable[[], Iterable[Path]] = tuple,
        check: Callable[[], None] | None = None,
    ) -> None:
        self._check = check or (lambda: None)
        self._engine, self._series, self._phase = engine, series, engine.phase
        self._beside, self._needed = beside, needed
        self._under_way: _UnderWay | None = None
        self.seconds: float | None = None
        """That the longest save took from its beginning to its final name, None before the first."""
        agree(self._on_first(self._clear, series.path))

    def save(self, run_config: RunConfig) -> None:
        """Save the state of now as `iter_<iteration>`; with async_save it is published later, by `look` or `finish`.

        Raises DataError.
        """
        self.finish()  # so that free space is counted when all of the one before is written and old ones are gone
        began = time.perf_counter()
        path = self._series.iteration(run_config.iteration)
        # A name of its own: a writer that has outlived its training elsewhere cannot write into this one.
        aside = path.with_name(f".{path.name}.{gather(secrets.token_hex(4))[0]}.tmp")
        agree(self._on_first(lambda: self._prepare(aside), aside))
        error = None
        try:
            self._under_way = _UnderWay(self._engine.start_save(aside), run_config, aside, path, began)
        except CheckpointError as failure:
            error = _failed(run_config, failure)
        except OSError as failure:
            # This rank alone: the others wait inside Megatron, and the launcher ends them when this one has ended.
            raise _failed(run_config, failure) from failure
        agree(error)
        if not self._phase.async_save:
            self.finish()

    def look(self) -> None:
        """Publish the save under way if all ranks have written their part; costs nothing when there is none."""
        if self._under_way is not None and all(gather(self._under_way.writing.is_written)):
            self.finish()

    def finish(self) -> None:
        """Wait for the save under way, if there is one, and publish it. Raises DataError."""
        if self._under_way is None:
            return
        save, self._under_way = self._under_way, None
        error, records = None, {}
        try:
            records = save.writing.finish()
        except CheckpointError as failure:
            error = _failed(save.run_config, failure)
            self._on_first(lambda: files.remove(save.aside), save.aside)
        except OSError as failure:
            raise _failed(save.run_config, failure) from failure
        agree(error)
        agree(self._on_first(lambda: self._publish(save, records), save.path))
        self.seconds = max(self.seconds or 0.0, time.perf_counter() - save.began)

    @property
    def is_under_way(self) -> bool:
        return self._under_way is not None

    def close(self) -> None:
        """Not collective: give up a save that is still under way, for training has failed."""
        if self._under_way is not None:
            save, self._under_way = self._under_way, None
            save.writing.abandon()
            if self._engine.ranks.is_first:
                logger.warning("the save of iteration %d under way was given up", save.run_config.iteration)
                files.remove(save.aside)

    def _on_first(self, action: Callable[[], None], path: Path) -> MegatronNcaError | None:
        """On the first rank do it; what the operating system has against it is returned."""
        if not self._engine.ranks.is_first:
            return None
        try:
            action()
        except OSError as error:
            return files.translate(error, path)
        except MegatronNcaError as error:
            return error
        return None

    def _clear(self) -> None:
        """Remove what killed trainings left under passing names."""
        for path in self._series.path.glob(".iter_*"):
            files.remove(path)

    def _prepare(self, aside: Path) -> None:
        """Room for the checkpoint, and an empty folder."""
        need, folder = self._engine.checkpoint_bytes, aside.parent
        files.check_free(folder, need, "checkpoints", str(folder), "free some space.")
        aside.mkdir(parents=True)

    def _publish(self, save: _UnderWay, records: Mapping[str, dict]) -> None:
        for name, text in {**self._beside(save.run_config), FILE_NAME: to_yaml(save.run_config)}.items():
            (save.aside / name).write_text(text, encoding="utf-8")
        file_list.write(save.aside, records)
        files.sync(save.aside)
        self._check()
        if save.path.exists():  # a broken one that was passed over
            self._discard(save.path)
        save.aside.rename(save.path)
        files.write_text(self._series.tracker, str(save.run_config.iteration))  # syncs the rename too
        self._prune()

    def _prune(self) -> None:
        """Drop what is older than the newest `keep_checkpoints` whole ones, but for milestones and what is needed."""
        found = _newest_first(self._series)
        whole = [path for path in found if not file_list.flaws(path)]
        oldest, needed = whole[: self._phase.keep_checkpoints][-1], {path.resolve() for path in self._needed()}
        for path in found[found.index(oldest) + 1 :]:
            number = path.name.removeprefix("iter_")
            milestone = self._phase.keep_every and number.isdecimal() and int(number) % self._phase.keep_every == 0
            if not milestone and path.resolve() not in needed:
                self._discard(path)

    def _discard(self, path: Path) -> None:
        """Away from its name first: a removal that is cut off leaves no broken checkpoint."""
        away = path.with_name(f".{path.name}.{secrets.token_hex(4)}.removed")
        path.rename(away)
        files.remove(away)


def _failed(run_config: RunConfig, failure: Exception) -> DataError:
    return DataError(
        f"saving iteration {run_config.iteration} failed: {failure} Nothing was left under its name. "
        "Cure: check the free space and the permissions, then start again; it resumes from the last whole one."
    )


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


def check_same_course(run_config: RunConfig, checkpoint: Path, phase: Phase) -> None:
    """Schedule and order of data count sequences: with other batches a resume would be on another course, unseen.

    Raises CheckpointError, also where the checkpoint lies behind the phase's last iteration.
    """
    iteration, consumed = run_config.iteration, run_config.consumed_sequences
    planned = phase.batch_sizes.consumed_after(iteration)
    if consumed != planned:
        raise CheckpointError(
            f"{checkpoint}: its {iteration} iterations took {consumed} sequences, and with global_batch_size = "
            f"{phase.global_batch_size} and rampup_batch_size = {phase.rampup_batch_size} they would take {planned}. "
            "Cure: restore both as they were, or start in another run folder."
        )
    if iteration > phase.iterations:
        raise CheckpointError(
            f"{checkpoint}: is of iteration {iteration}, and the phase ends at iterations = {phase.iterations}. "
            "Cure: give at least as many, or start in another run folder."
        )


def at_iteration(
    run_config: RunConfig, iteration: int, consumed: int, data_sha256: str | None, losses: LossRecord
) -> RunConfig:
    now = {"iteration": iteration, "consumed_sequences": consumed, "data_sha256": data_sha256, "losses": losses}
    return dataclasses.replace(run_config, optimizer=True, **now)
