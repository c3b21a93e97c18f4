"""Where a phase's data come from: the run folder, copies on each node, or each node makes them, at times meanwhile.

On each node the first local rank starts `megatron-nca stage` as a child and reads its reports. What all nodes have is
agreed on by all ranks, but only when training needs more than was agreed before: while the generators are ahead, an
iteration costs no collective, and while they are behind, no rank waits inside one.
"""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_nca import files
from megatron_nca.data import copies
from megatron_nca.data.blend import Blend
from megatron_nca.data.manifest import part
from megatron_nca.data.placed import unfinished
from megatron_nca.errors import DataError
from megatron_nca.mcore.engine import Ranks, agree, agreed, gather

logger = logging.getLogger("megatron_nca.train")

LOOK_SECONDS = 0.05
"""Between two looks at the generators while training waits for them."""
REPORT_SECONDS = 10
GRACE_SECONDS = 10
"""For a generator to end before it is killed."""


class Beforehand:
    """Data that lie in the run folder: nothing to wait for."""

    in_the_making = False
    digest = None

    def __init__(self, train: Blend, validation: Blend) -> None:
        self.train, self.validation = train, validation
        self.sha256: str | None = None

    def prepare(self) -> None:
        """Collective. Raises DataError."""
        self.sha256 = agreed(lambda: self.train.content_sha256(self.train.manifests()))

    def opened(self) -> None: ...

    def wait(self, consumed: int) -> None: ...

    def look(self) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class Copied(Beforehand):
    """The same, read from copies on each node's own disk, which its first local rank makes."""

    def __init__(self, train: Blend, validation: Blend, folder: str, ranks: Ranks) -> None:
        super().__init__(train, validation)
        self._folder, self._ranks = folder, ranks

    def prepare(self) -> None:
        """Collective. Raises ConfigError, DataError."""
        super().prepare()
        began = time.monotonic()
        with ThreadPoolExecutor(1) as thread:
            bringing = thread.submit(self._bring)
            while not all(gather(bringing.done())):  # one collective may not last as long as a copy
                time.sleep(LOOK_SECONDS)
        self.train, self.validation = agreed(bringing.result)
        if self._ranks.is_first:
            seconds = time.monotonic() - began
            folder = self.train.prefixes[0].parent.parent
            logger.info("data: read from copies in %s of each node (%.1f s)", folder, seconds)

    def _bring(self) -> list[Blend]:
        folder = copies.folder_here(self._folder)
        bring = copies.copy if self._ranks.local_rank == 0 else copies.place
        return [replace(blend, prefixes=tuple(bring(prefix, folder) for prefix in blend.prefixes))
                for blend in (self.train, self.validation)]


@dataclass(frozen=True, kw_only=True)
class OnNodeData:
    """A dataset that each node makes for itself."""

    command: tuple[str, ...]
    """`megatron-nca stage …`, to be followed by the number of sequences that training has consumed."""
    train_prefix: Path
    validation_prefix: Path
    sequences: int
    """Of the training part."""
    digest: str
    """Of the settings that decide its bytes."""
    background: bool
    """Whether training begins before all is there."""
    record: Path
    """Folder where the manifests are kept for a report, and for trainings to come on other nodes."""


@dataclass
class Node:
    """What the first local rank of a node knows of its generator."""

    validation: str | None = None
    """sha256 of the .bin when whole."""
    train: str | None = None
    can_open: bool = False
    made: int = 0
    candidates: int = 0
    state: str = "starting"
    processor_seconds: float = 0.0
    error: str | None = None

    def take(self, line: dict) -> None:
        """One report of the generator."""
        if "error" in line:
            self.error = line["error"]
            return
        self.processor_seconds, self.state = line["processor seconds"], f"{line['part']} {line['state']}"
        if line["part"] == "validation":
            self.validation = line["sha256"]
            return
        self.train, self.made, self.candidates = line["sha256"], line["made"], line["candidates"] or self.candidates
        self.can_open = line["state"] != "waiting"


class OnNode:
    """The generators of all nodes, as training sees them. Building it is collective; so is every method but `close`.

    Methods raise DataError on all ranks alike if any node's generator has failed or was killed.
    """

    def __init__(self, data: OnNodeData, ranks: Ranks, consumed: int) -> None:
        self.data, self.consumed, self.digest = data, consumed, data.digest
        self.train = Blend.of((1.0, data.train_prefix))
        self.validation = Blend.of((1.0, data.validation_prefix))
        self.in_the_making = False
        self.sha256: str | None = None
        """Of the training .bin, once it is whole on all nodes."""
        self._is_first = ranks.is_first
        self._horizon: float = consumed
        """Sequences, counted as consumed ones are, that all nodes can read."""
        self._nodes: list[Node] = []
        self._mine = Node() if ranks.local_rank == 0 else None
        self._child, self._rest = None, b""
        self._said = time.monotonic()
        if self._mine is not None:
            self._start()

    def _start(self) -> None:
        command = (*self.data.command, str(self.consumed))
        try:
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            self._mine.error = f"{command[0]}: could not be started ({error.strerror}). Cure: check the installation."
            return
        os.set_blocking(self._child.stdout.fileno(), False)
        if not self.data.background:
            self._child.stdin.close()  # nobody opens unfinished files, so none need wait for it

    def prepare(self) -> None:
        """Wait for the validation part, and for the training part: all of it, or that it can be opened."""
        self.look()
        while not all(node.validation and (node.train or self._may_open(node)) for node in self._nodes):
            self._pause()
        if self.sha256 is None and not part(self.data.train_prefix, "json").exists():
            self.in_the_making, self.train = True, Blend.of((1.0, unfinished(self.data.train_prefix)))
        shas = {node.validation for node in self._nodes}
        agree(self._record("validation", self.data.validation_prefix, shas))

    def _may_open(self, node: Node) -> bool:
        return self.data.background and node.can_open

    def opened(self) -> None:
        """This rank, and by an agreement since every other, has opened the data: they may get their final names."""
        if self._child is not None and not self._child.stdin.closed:
            self._child.stdin.close()

    def wait(self, consumed: int) -> None:
        """Return when all nodes have what training reads until it has consumed so many sequences."""
        if self._mine is not None:
            self._poll()
        while consumed > self._horizon:
            self.look()
            if consumed > self._horizon:
                self._pause(look=False)

    def look(self) -> None:
        """Agree on how far all nodes are."""
        if self._mine is not None:
            self._poll()
        agree(DataError(self._mine.error) if self._mine is not None and self._mine.error else None)
        self._nodes = [node for node in gather(self._mine) if node is not None]
        self._horizon = min(self._reach(node) for node in self._nodes)
        if self.sha256 is None and all(node.train for node in self._nodes):
            shas = {node.train for node in self._nodes}
            agree(self._record("train", self.data.train_prefix, shas))
            self.sha256 = min(shas)
            if self._is_first and self._mine.made and self.in_the_making:
                seconds = self._mine.processor_seconds
                logger.info("data: all %s sequences are made (%.1f processor seconds a node)",
                            f"{self.data.sequences:,}", seconds)

    def _reach(self, node: Node) -> float:
        count = self.data.sequences
        if node.train or node.made == count:
            return math.inf
        return min(self.consumed + node.made, (self.consumed // count + 1) * count)

    def finish(self) -> None:
        """At the end of the phase: let generators that need only publish do so. Others are ended by `close`."""
        self.look()
        while self.sha256 is None and all(node.train or node.made == self.data.sequences for node in self._nodes):
            self._pause()
        if self.sha256 is None and self._is_first:
            made, count = min(node.made for node in self._nodes), self.data.sequences
            logger.warning("data: training ended when %s of %s sequences were made; they are not kept. "
                           "The next training makes them again.", f"{made:,}", f"{count:,}")

    def close(self) -> None:
        """End the generator of this node, if it is still at work."""
        if self._child is None:
            return
        if self._mine.train is None:
            self._child.send_signal(signal.SIGHUP)  # it does not hear those that stop training
        self._child.stdin.close()
        self._child.stdout.close()
        try:
            self._child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _pause(self, look: bool = True) -> None:
        if self._is_first and time.monotonic() - self._said >= REPORT_SECONDS:
            self._said = time.monotonic()
            slowest = min(self._nodes, key=lambda node: (node.made, node.candidates))
            logger.info("waiting for data on %d node(s); the slowest: %s, %s of %s sequences, %s candidates",
                        len(self._nodes), slowest.state, f"{slowest.made:,}", f"{self.data.sequences:,}",
                        f"{slowest.candidates:,}")
        time.sleep(LOOK_SECONDS)
        if look:
            self.look()

    def _poll(self) -> None:
        """Read the generator's reports; a generator that ended without a whole dataset is an error."""
        if self._child is None or self._mine.error or self._mine.train:
            return
        status = self._child.poll()  # before the pipe is read: what it wrote last is then in it
        while block := self._child.stdout.read(1 << 16):
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                self._mine.take(json.loads(line))
        if status is not None and not self._mine.train and not self._mine.error:
            how = f"exit code {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
            self._mine.error = (
                f"{self.data.train_prefix}: the process that makes it on {socket.gethostname()} ended with {how}, "
                f"{self._mine.state}, {self._mine.made:,} of {self.data.sequences:,} sequences made. "
                "Cure: see what it says above, or who killed it (memory?), then start this training again."
            )

    def _record(self, name: str, prefix: Path, shas: set[str]) -> DataError | None:
        """First rank: keep the manifest in the run folder; all nodes, and trainings before, must have these data."""
        if not self._is_first:
            return None
        if len(shas) > 1:
            return DataError(f"{prefix}: nodes made different data (sha256 {', '.join(sorted(shas))}), which must not "
                             "be. Cure: `data_tools/verify_dataset.py` on each node tells which was damaged.")
        record = self.data.record / f"{name}.json"
        try:
            text = part(prefix, "json").read_text(encoding="utf-8")
            if not record.exists():
                files.write_text(record, text)
            elif record.read_text(encoding="utf-8") != text:
                return DataError(f"{record}: this run was trained on other data than {prefix} has now. "
                                 "Cure: go back to the settings it began with, or start in another run folder.")
        except OSError as error:
            return files.translate(error, record)
        except DataError as error:
            return error
        return None
