"""Several phase transitions from one source in one pass over it: each of its tensors is read once for all.

The transfers are written step by step side by side, always the one that comes first in the source's order; what each
writes has the bytes that it would have alone.
"""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.run_config import RunConfig
from megatron_nca.config.schema import build, named, read_yaml
from megatron_nca.config.start import Start
from megatron_nca.convert import megatron
from megatron_nca.convert.canonical import CanonicalCheckpoint, check_free
from megatron_nca.convert.transfer import Transfer
from megatron_nca.errors import ConfigError, explain
from megatron_nca.files import publish


@dataclass(frozen=True, kw_only=True)
class Entry(Start):
    """One transfer of a sweep: a start and, where they differ from the sweep's, seed and model."""

    seed: int | None = None
    vocab_size: int | None = None
    num_layers: int | None = None
    tied_embeddings: bool | None = None

    @property
    def start(self) -> Start:
        return Start(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Start)})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep: names of folders and what goes into each."""

    transfers: dict[str, Entry]
    seed: int
    vocab_size: int | None = None
    num_layers: int | None = None
    tied_embeddings: bool | None = None

    def __post_init__(self) -> None:
        if not self.transfers:
            raise ConfigError(explain("transfers", {}, "names no transfer.", "give one or more by name."))
        for name in self.transfers:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ConfigError(explain("transfers", name, "is no name of a folder.", "use letters, digits, . _ -"))

    def target(self, entry: Entry, model: ModelConfig) -> ModelConfig:
        """The model of one transfer: `model` with the entry's settings, else the sweep's."""
        layers = len(entry.layer_map.split(",")) if "," in (entry.layer_map or "") else None
        changes = {"num_layers": layers}
        for name in ("vocab_size", "num_layers", "tied_embeddings"):
            own, common = getattr(entry, name), getattr(self, name)
            changes[name] = next((each for each in (own, changes.get(name), common) if each is not None), None)
        return dataclasses.replace(model, **{name: value for name, value in changes.items() if value is not None})


def load_plan(path: Path) -> Plan:
    """Raises ConfigError naming the file."""
    with named(path):
        return build(Plan, read_yaml(path))


class Shared:
    """A source whose last tensor is kept for the next transfer that asks for it; `reads` counts what was read."""

    def __init__(self, source: CanonicalCheckpoint) -> None:
        self.reads: Counter = Counter()
        self._name, self._values = None, None
        tensors = tuple(dataclasses.replace(tensor, read=self._reader(tensor.name, tensor.read))
                        for tensor in source.tensors)
        self.checkpoint = dataclasses.replace(source, tensors=tensors)

    def _reader(self, name: str, read: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def shared() -> torch.Tensor:
            if self._name != name:
                self._name = self._values = None  # let go of one before the next is read
                self._values, self._name = read(), name
                self.reads[name] += 1
            return self._values

        return shared


def write_sweep(folders: dict[Path, Transfer], run_configs: dict[Path, RunConfig]) -> None:
    """Write all transfers, each whole or not at all; those of one `Shared` source read each tensor of it once.

    Raises CheckpointError, and DataError when the disk fills up; what is whole by then stays.
    """
    check_free(next(iter(folders)).parent, *(transfer.result() for transfer in folders.values()))
    with contextlib.ExitStack() as published:
        steps, coming = {}, {}
        for folder, transfer in folders.items():
            aside = published.enter_context(publish(folder, new=True))
            steps[folder] = megatron.writing(aside, transfer.result(), run_configs[folder], transfer.write_account)
            coming[folder] = next(steps[folder])
        while coming:
            first = min(coming, key=lambda folder: folders[folder].place(coming[folder]))
            following = next(steps[first], None)
            if following is None:
                del coming[first]
            else:
                coming[first] = following
