"""The spokes of the hub by name: what tells a format by its files, and where it is read and written.

A spoke is a module of this room with

    read(path: Path, **options) -> CanonicalCheckpoint          tensors read when asked for, checked
    write(folder: Path, checkpoint: CanonicalCheckpoint, last: Callable[[Path], None], **options) -> None

where `write` publishes `folder` whole or not at all, and calls `last(aside)` once all its own files are there under the
passing name, before they are made durable. It is imported when it is used. Either function may be missing or have
another name.
"""

import dataclasses
import importlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_nca import files
from megatron_nca.config.schema import suggest, to_dict
from megatron_nca.convert.canonical import CanonicalCheckpoint, check_free
from megatron_nca.errors import CheckpointError, ConfigError, explain
from megatron_nca.initialise import tensor_table

ACCOUNT_FILE = "account.json"
_INITIAL_LAWS = {"init_std", "scaled_residual_init", "embedding_init_std", "head_init"}
"""Settings of a model that its weights do not depend on once they are there; other formats have no place for them."""


@dataclass(frozen=True)
class Format:
    """`tells(path)` is what of the files at `path` marks them as this format, None if nothing does."""

    name: str
    what: str
    module: str
    """Within this room."""
    tells: Callable[[Path], str | None]
    reader: str | None = "read"
    writer: str | None = "write"
    read_options: tuple[str, ...] = ()
    """Names of the keyword arguments that `read` takes, and of those that `write` does."""
    write_options: tuple[str, ...] = ()
    keeps_padding: bool = True
    """Whether rows of padding are in its files; where they are not, they are zero when they are read."""

    def read(self, path: Path, **options: object) -> CanonicalCheckpoint:
        return self._function(self.reader)(path, **options)

    def write(self, folder: Path, checkpoint: CanonicalCheckpoint, last: Callable[[Path], None],
              **options: object) -> None:
        self._function(self.writer)(folder, checkpoint, last=last, **options)

    def _function(self, name: str) -> Callable:
        return getattr(importlib.import_module(f"megatron_nca.convert.{self.module}"), name)


def _tells_ours(path: Path) -> str | None:
    if (path / "run_config.yaml").is_file():
        return "run_config.yaml"
    inside = (child for child in _folders(path) if re.fullmatch(r"iter_\d+", child.name))
    of_a_series = any((child / "run_config.yaml").is_file() for child in inside)
    return "iter_*/run_config.yaml" if of_a_series else None  # which of them is taken, `read` says


def _tells_hf(path: Path) -> str | None:
    weights = next((child.name for child in sorted(path.glob("*.safetensors*"))), None) if path.is_dir() else None
    return f"config.json beside {weights}" if weights and (path / "config.json").is_file() else None


def _tells_released(path: Path) -> str | None:
    files = [path] if path.is_file() else sorted(path.glob("*.pth")) if path.is_dir() else []
    return next((file.name for file in files if file.suffix == ".pth"), None)


def _tells_deepspeed(path: Path) -> str | None:
    if not path.is_dir():
        return None
    name = "*mp_rank_00_optim_states.pt"
    inside = next(path.glob(name), None) or next(path.glob(f"*/{name}"), None)
    return inside and str(inside.relative_to(path))


def _tells_megatron_lm(path: Path) -> str | None:
    """`common.pt` is in ours too; its `run_config.yaml` is not in theirs."""
    for folder in (path, *_folders(path)):
        if (folder / ".metadata").is_file() and (folder / "common.pt").is_file() and not _tells_ours(folder):
            return str((folder / "common.pt").relative_to(path))
    return None


def _folders(path: Path) -> Iterator[Path]:
    return (child for child in sorted(path.iterdir()) if child.is_dir()) if path.is_dir() else iter(())


FORMATS = {each.name: each for each in (
    Format("megatron-nca", "checkpoints of this project, a folder or a series", "megatron", _tells_ours,
           reader="read_found", writer="write_weights"),
    Format("hf", "Hugging Face folders of Llama models", "hf", _tells_hf, write_options=("tokenizer", "shard_bytes"),
           keeps_padding=False),
    Format("released", "a .pth file of the paper's released code", "released", _tells_released,
           read_options=("num_heads", "rope_base", "norm_epsilon", "sequence_length", "drop_head_bias"),
           keeps_padding=False),
    Format("deepspeed", "a folder of DeepSpeed's ZeRO with a Llama of Hugging Face's names", "deepspeed",
           _tells_deepspeed, writer=None,
           read_options=("num_heads", "rope_base", "norm_epsilon", "sequence_length")),
    Format("megatron-lm", "a folder that Megatron-LM's --save named, format torch_dist", "megatron_lm",
           _tells_megatron_lm, read_options=("vocab_size",)),
)}


def by_name(name: str, setting: str) -> Format:
    """The format called `name`. Raises ConfigError naming `setting` and the nearest name."""
    if name not in FORMATS:
        raise ConfigError(f"{setting} {name}: is no format.{suggest(name, list(FORMATS))}")
    return FORMATS[name]


def recognise(path: Path) -> tuple[Format, str]:
    """The format of what lies at `path`, and what told it. Raises CheckpointError unless exactly one format fits."""
    if not path.exists():
        raise CheckpointError(f"{path}: is not there. Cure: give the folder or file of a checkpoint.")
    found = [(each, mark) for each in FORMATS.values() if each.reader and (mark := each.tells(path))]
    if not found:
        known = "; ".join(f"{each.name}: {each.what}" for each in FORMATS.values() if each.reader)
        raise CheckpointError(f"{path}: is of no known format ({known}). Cure: give the folder or file of a "
                              "checkpoint, or name its format with --from-format.")
    if len(found) > 1:
        marks = ", ".join(f"{each.name} ({mark})" for each, mark in found)
        raise CheckpointError(f"{path}: can be read as {marks}. Cure: say which with --from-format.")
    return found[0]


def outline(source: Format, target: Format, checkpoint: CanonicalCheckpoint, verified: str | None) -> dict:
    """The account of a conversion, fit for JSON: every tensor of the target, and all that was left aside."""
    tensors = [{"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype, "note": tensor.note}
               for tensor in checkpoint.tensors]
    notes, vocabulary = list(checkpoint.notes), (checkpoint.model.vocab_size, checkpoint.model.padded_vocab_size)
    if not target.keeps_padding and vocabulary[0] < vocabulary[1]:
        notes.append(f"rows {vocabulary[0]} to {vocabulary[1] - 1} of the vocabulary are padding and are not written")
    ignored = [{"key": item.key, "shape": item.shape and list(item.shape), "reason": item.reason}
               for item in checkpoint.ignored]
    return {"format": "megatron_nca conversion", "version": 1,
            "source": {"checkpoint": checkpoint.origin, "format": source.name, "iteration": checkpoint.iteration},
            "target format": target.name, "model": to_dict(checkpoint.model), "notes": notes,
            "verified": verified, "tensors": tensors, "left aside": ignored}


def format_account(account: dict) -> str:
    """The account in a few lines: sums, by type, and each note and reason with its count."""
    sizes = Counter()
    for tensor in account["tensors"]:
        sizes[tensor["dtype"]] += math.prod(tensor["shape"])
    width = {"float32": 4}
    number_of_bytes = sum(width.get(dtype, 2) * count for dtype, count in sizes.items())
    types = ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(sizes.items()))
    model = {key: value for key, value in account["model"].items() if value is not None and key not in _INITIAL_LAWS}
    lines = [f"model: {', '.join(f'{key} {value}' for key, value in model.items())}",
             f"tensors: {len(account['tensors'])}; parameters: {types}; bytes: {number_of_bytes:,}"]
    lines += [f"note: {note}" for note in account["notes"]]
    notes = Counter(tensor["note"] for tensor in account["tensors"] if tensor["note"])
    lines += [f"note: {note}: {_tensors(count)}" for note, count in sorted(notes.items())]
    reasons = Counter(item["reason"] for item in account["left aside"])
    lines += [f"left aside: {reason}: {count} {'entry' if count == 1 else 'entries'}"
              for reason, count in sorted(reasons.items())]
    return "\n".join(lines)


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' if count > 1 else ''}"


def refuse_inside(folder: Path, source: Path | None) -> None:
    """Raise CheckpointError if `folder` is to lie in the source: a checkpoint, or a series of a training."""
    if source is not None and source.is_dir() and source.resolve() in folder.resolve().parents:
        raise CheckpointError(f"--to {folder}: lies in the source, which is never written. "
                              "Cure: choose another folder.")


def refuse_existing(folder: Path) -> None:
    """Raise CheckpointError if there is anything at `folder` but an empty folder."""
    if (folder.exists() or folder.is_symlink()) and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"--to {folder}: exists. Cure: choose another folder, or remove it.")


def tell_left(folder: Path) -> None:
    """A line on stderr for each conversion to `folder` that was killed, whose files would fill the disk in silence.

    They are not removed, since another machine that shares the disk may be at work.
    """
    for path in files.left_aside(folder):
        print(f"{path}: is left of a conversion that was killed, unless one is at work on another machine. "
              "Cure: remove it.", file=sys.stderr)


def convert(source: Format, target: Format, checkpoint: CanonicalCheckpoint, folder: Path, every_bit: bool,
            **options: object) -> dict:
    """Write `checkpoint` as `target` at `folder`, which is new, read it back, and only then give it its name.

    Returns the account. Compared are the model and the table of tensors, with `every_bit` every tensor too. Raises
    CheckpointError, and DataError where the disk fills up.
    """
    check_free(folder, checkpoint)
    account = outline(source, target, checkpoint, "every bit" if every_bit else "table")

    def last(aside: Path) -> None:
        compare(checkpoint, target.read(aside), every_bit, target.keeps_padding)
        (aside / ACCOUNT_FILE).write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8")

    target.write(folder, checkpoint, last, **options)
    return account


def compare(expected: CanonicalCheckpoint, found: CanonicalCheckpoint, every_bit: bool, padding: bool = True) -> None:
    """Raise CheckpointError naming what of `found`, read back, is not as in `expected`, `padding` included."""
    one, other = _lasting(expected.model), _lasting(found.model)
    faults = [f"model.{key} is {other[key]}, expected {one[key]}" for key in one if one[key] != other[key]]
    table = {tensor.name: (tensor.shape, tensor.dtype) for tensor in found.tensors}
    faults += [f"{tensor.name} is {table.pop(tensor.name, 'missing')}, expected {(tensor.shape, tensor.dtype)}"
               for tensor in expected.tensors if table.get(tensor.name) != (tensor.shape, tensor.dtype)]
    faults += [f"{name} is one too many" for name in table.keys() - {tensor.name for tensor in expected.tensors}]
    if every_bit and not faults:
        again = {tensor.name: tensor for tensor in found.tensors}
        rows = {spec.name: None if padding else spec.filled_rows for spec in tensor_table(expected.model)}
        faults = [f"{name} has other bits" for name in again
                  if not same_bits(expected.tensor(name).read()[:rows[name]], again[name].read()[:rows[name]])]
    if faults:
        raise CheckpointError(f"{expected.origin}: what was written is not what was read: {'; '.join(faults[:8])}. "
                              "Nothing was left under the name. Cure: check the disk; report it if it happens again.")


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Also where numbers are NaN, and minus zero is not zero."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _lasting(model: object) -> dict:
    return {field.name: getattr(model, field.name) for field in dataclasses.fields(model)
            if field.name not in _INITIAL_LAWS}


def check_options(chosen: Format, names: tuple[str, ...], given: dict[str, object]) -> dict[str, object]:
    """Of `given` (name -> value, None: not given) those that were. Raises ConfigError for one not in `names`."""
    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        if name not in names:
            raise ConfigError(explain(f"--{name.replace('_', '-')}", str(value), f"the format {chosen.name} has no use "
                                      "for it.", "leave it out."))
    return options
