"""Spoke: Hugging Face folders of Llama models (config.json, safetensors in one file or several with an index).

Weights are those of `transformers.LlamaForCausalLM`. Our qkv has for each group its queries, its key, its value, and
fc1 the gate and then the up projection; both sides turn the same halves of a head (no permutation). Our embedding and
head are padded to a multiple of 128 rows, which Hugging Face's are not.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.convert import hf_config, hf_tokenizer, llama, safetensors_file
from megatron_nca.convert.canonical import DTYPES, CanonicalCheckpoint, CanonicalTensor, Ignored
from megatron_nca.convert.llama import Box, boxes, there_of
from megatron_nca.convert.safetensors_file import Entry
from megatron_nca.errors import CheckpointError
from megatron_nca.files import ahead, publish
from megatron_nca.initialise import tensor_table

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_BLOCK = 1 << 19
"""Numbers read at once: so many that they stay in a processor's cache until they are written."""
SHARD_BYTES = 5_000_000_000
"""A file ends before it would become larger, as those of Hugging Face do; a tensor that is larger has its own."""


def read(path: Path) -> CanonicalCheckpoint:
    """Open the folder `path`; its tensors are read when asked for.

    Raises CheckpointError if a file is missing or damaged, or if the tensors are not those of the model it describes.
    """
    model = hf_config.read_model(path)
    entries = _entries(path)
    table = tensor_table(model)
    expected = {there: shape for spec in table for there, shape in there_of(spec.name, spec.shape, model)}
    ignored = _left_aside(entries, model, expected)
    _check_table(path, entries, expected, {item.key for item in ignored})
    tensors = [_tensor(spec.name, spec.shape, [entries[there] for there in llama.HUGGING_FACE.of(spec.name)], model)
               for spec in table]
    checkpoint = CanonicalCheckpoint(str(path), model, tuple(tensors), tuple(ignored),
                                     notes=tuple(hf_tokenizer.notes(path)), described_by=hf_config.FILE_NAME)
    checkpoint.check()
    return checkpoint


def _entries(path: Path) -> dict[str, Entry]:
    """All tensors of the folder's files, held against the index if there is one."""
    index = path / INDEX_FILE
    if not index.is_file():
        if not (path / SINGLE_FILE).is_file():
            raise CheckpointError(f"{path}: has neither {SINGLE_FILE} nor {INDEX_FILE}. "
                                  "Cure: give a folder with safetensors; pickles are not read.")
        return safetensors_file.read_header(path / SINGLE_FILE)
    if (path / SINGLE_FILE).exists():
        raise CheckpointError(f"{path}: has both {SINGLE_FILE} and {INDEX_FILE}. "
                              "Cure: remove the one that is not meant.")
    weight_map = hf_config.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: has no weight_map of tensors to files. Cure: give a whole copy of the folder.")
    entries, files = {}, sorted(set(weight_map.values()))
    outside = [file for file in files if Path(file).name != file or not file.endswith(".safetensors")]
    if outside:
        raise CheckpointError(f"{index}: names {outside[0]!r}, which is no safetensors file inside the folder. "
                              "Cure: give a whole copy of the folder.")
    for file in files:
        for name, entry in safetensors_file.read_header(path / file).items():
            if weight_map.get(name) != file:
                raise CheckpointError(f"{path / file}: holds {name}, which the index does not look for there. "
                                      "Cure: give a whole copy of the folder.")
            entries[name] = entry
    missing = sorted(weight_map.keys() - entries.keys())
    if missing:
        raise CheckpointError(f"{path / weight_map[missing[0]]}: lacks {missing[0]}, which the index says is there. "
                              "Cure: give a whole copy of the folder.")
    return entries


def _left_aside(entries: dict[str, Entry], model: ModelConfig, expected: dict) -> list[Ignored]:
    """Tensors that some folders have beside the weights; a copy of a tied head must be the embedding's."""
    found = [Ignored(name, "rotary frequencies, which follow from the configuration", entry.shape)
             for name, entry in entries.items() if name.endswith(".rotary_emb.inv_freq")]
    head, embedding = entries.get("lm_head.weight"), entries.get("model.embed_tokens.weight")
    if model.tied_embeddings and head and embedding:
        if (head.dtype, head.shape) != (embedding.dtype, embedding.shape) or not _same(head, embedding):
            raise CheckpointError(f"{head.path}: lm_head.weight is not model.embed_tokens.weight, although "
                                  "tie_word_embeddings is true. Cure: set it to false if the head is meant.")
        found.append(Ignored("lm_head.weight", "copy of the embedding, which is the tied head", head.shape))
    return found


def _same(one: Entry, other: Entry) -> bool:
    """Compared by a megabyte or so at a time."""
    step = max(1, (1 << 20) // max(1, one.nbytes // max(1, math.prod(one.shape))))
    numbers = math.prod(one.shape)
    for first in range(0, numbers, step):
        pair = [torch.empty(min(step, numbers - first), dtype=getattr(torch, one.dtype)) for _ in range(2)]
        one.read_into(pair[0], first)
        other.read_into(pair[1], first)
        if not torch.equal(pair[0].view(torch.uint8), pair[1].view(torch.uint8)):
            return False
    return True


def _check_table(path: Path, entries: dict[str, Entry], expected: dict, aside: set[str]) -> None:
    """Raise CheckpointError naming each tensor that is missing, too many, of another shape or of no readable type."""
    faults = [f"{name} is missing" for name in expected if name not in entries]
    for name, entry in entries.items():
        if name in aside:
            continue
        if name not in expected:
            faults.append(f"{name} is not a tensor of this model")
        elif entry.shape != expected[name]:
            faults.append(f"{name} has shape {entry.shape}, expected {expected[name]}")
        elif entry.dtype not in DTYPES:
            faults.append(f"{name} is stored as {entry.dtype}, expected one of {', '.join(DTYPES)}")
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise CheckpointError(f"{path}: its tensors are not those of the model in {hf_config.FILE_NAME}: "
                              f"{'; '.join(faults[:8])}{more}. Cure: give a folder whose configuration is its own.")


def _tensor(name: str, shape: tuple[int, ...], parts: list[Entry], model: ModelConfig) -> CanonicalTensor:
    dtypes = {entry.dtype for entry in parts}
    if len(dtypes) > 1:
        stored = ", ".join(f"{entry.name} as {entry.dtype}" for entry in parts)
        raise CheckpointError(f"{parts[0].path.parent}: {stored} become one tensor, and one type is needed. "
                              "Cure: store them alike.")
    placed = list(boxes(name, shape, model))
    filled = sum(box.rows for box in placed)
    note = f"rows {filled} to {shape[0] - 1} are padding and zero" if filled < shape[0] else None
    return CanonicalTensor(name, shape, parts[0].dtype, _Rows(shape, tuple(parts), tuple(placed)), note)


@dataclass(frozen=True)
class _Rows:
    """A tensor here whose rows lie in `parts`; those in no box are zero and the last ones."""

    shape: tuple[int, ...]
    parts: tuple[Entry, ...]
    placed: tuple[Box, ...]
    """In the order in which they lie here."""

    def __call__(self) -> torch.Tensor:
        return self._read(0, math.prod(self.shape)).view(self.shape)

    def in_blocks(self) -> Iterator[torch.Tensor]:
        numbers = math.prod(self.shape)
        return (self._read(first, min(_BLOCK, numbers - first)) for first in range(0, numbers, _BLOCK))

    def _read(self, first: int, count: int) -> torch.Tensor:
        """`count` numbers from the `first`-th on of the flat tensor, straight from the files."""
        result, done, width = torch.empty(count, dtype=DTYPES[self.parts[0].dtype]), 0, math.prod(self.shape[1:])
        for box in self.placed:
            begin, end = max(first, box.here * width), min(first + count, (box.here + box.rows) * width)
            if begin < end:
                there = begin + (box.there - box.here) * width
                self.parts[box.part].read_into(result[begin - first:end - first], there)
                done = end - first
        result[done:] = 0
        return result


def write(folder: Path, checkpoint: CanonicalCheckpoint, last: Callable[[Path], None] = lambda aside: None,
          tokenizer: Path | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `checkpoint` under `folder` whole or not at all; in memory are one block and the next.

    `tokenizer`: what `hf_tokenizer.write` takes. `last(aside)` may put further files into the folder before it gets
    its name. Raises CheckpointError, and DataError when the disk fills up.
    """
    tokenizer_files = hf_tokenizer.collect(tokenizer, checkpoint.model) if tokenizer else hf_tokenizer.NONE
    by_name = {tensor.name: tensor for tensor in checkpoint.tensors}
    checkpoint = dataclasses.replace(checkpoint, tensors=tuple(by_name[t.name] for t in tensor_table(checkpoint.model)))
    shards = _shards(checkpoint, shard_bytes)
    with publish(folder, new=True) as aside:
        aside.mkdir(parents=True)
        weight_map = {}
        for number, tensors in enumerate(shards, 1):
            several = f"model-{number:05}-of-{len(shards):05}.safetensors"
            file = several if len(shards) > 1 else SINGLE_FILE
            table = {name: (shape, tensor.dtype) for tensor in tensors for name, shape in _there(tensor, checkpoint)}
            with contextlib.closing(ahead(_blocks(tensors))) as blocks:
                pieces = (piece for block in blocks for piece in _pieces(*block, checkpoint.model))
                safetensors_file.write(aside / file, table, pieces)
            weight_map |= dict.fromkeys(table, file)
        if len(shards) > 1:
            total = sum(_nbytes(tensor, checkpoint) for tensor in checkpoint.tensors)
            _write_json(aside / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
        values = hf_config.config_values(checkpoint.model, _widest(checkpoint), tokenizer_files.special)
        _write_json(aside / hf_config.FILE_NAME, values)
        for name, content in tokenizer_files.contents.items():
            (aside / name).write_bytes(content)
        last(aside)


def _there(tensor: CanonicalTensor, checkpoint: CanonicalCheckpoint) -> list[tuple[str, tuple[int, ...]]]:
    return there_of(tensor.name, tensor.shape, checkpoint.model)


def _blocks(tensors: Iterable[CanonicalTensor]) -> Iterator[tuple[CanonicalTensor, int, torch.Tensor]]:
    """All numbers, and which of their tensor is a block's first."""
    for tensor in tensors:
        first = 0
        for block in tensor.in_blocks():
            first += block.numel()
            yield tensor, first - block.numel(), block
            del block  # before the next is read


def _pieces(tensor: CanonicalTensor, first: int, block: torch.Tensor,
            model: ModelConfig) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Which numbers of which tensors there are those of a block here, from the `first`-th on."""
    names, width = llama.HUGGING_FACE.of(tensor.name), math.prod(tensor.shape[1:])
    for box in boxes(tensor.name, tensor.shape, model):
        begin, end = max(first, box.here * width), min(first + block.numel(), (box.here + box.rows) * width)
        if begin < end:
            yield names[box.part], begin + (box.there - box.here) * width, block[begin - first:end - first]


def _nbytes(tensor: CanonicalTensor, checkpoint: CanonicalCheckpoint) -> int:
    return sum(math.prod(shape) for _, shape in _there(tensor, checkpoint)) * DTYPES[tensor.dtype].itemsize


def _shards(checkpoint: CanonicalCheckpoint, limit: int) -> list[list[CanonicalTensor]]:
    """Tensors in their order, in files of at most `limit` bytes."""
    shards, size = [[]], 0
    for tensor in checkpoint.tensors:
        nbytes = _nbytes(tensor, checkpoint)
        if shards[-1] and size + nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += nbytes
    return shards


def _widest(checkpoint: CanonicalCheckpoint) -> str:
    """What `from_pretrained` may load all weights as without rounding one."""
    dtypes = {tensor.dtype for tensor in checkpoint.tensors}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
