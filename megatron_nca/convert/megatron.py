"""Spoke: this project's checkpoints in Megatron's torch_dist format (docs/architecture.md, "Checkpoint")."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from megatron_nca import file_list
from megatron_nca.config.run_config import FILE_NAME, RunConfig, load_run_config
from megatron_nca.config.schema import to_yaml
from megatron_nca.convert.canonical import DTYPES, CanonicalCheckpoint, CanonicalTensor, Ignored
from megatron_nca.errors import CheckpointError
from megatron_nca.files import publish
from megatron_nca.mcore import torch_dist
from megatron_nca.mcore.torch_dist import (
    METADATA_FILE,
    Chunk,
    StoredTensor,
    StoredValues,
    TorchDistReader,
    write_checkpoint,
)

LAYER_KEYS = {
    "attention_norm.weight": "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
    "attention.qkv.weight": "decoder.layers.self_attention.linear_qkv.weight",
    "attention.proj.weight": "decoder.layers.self_attention.linear_proj.weight",
    "mlp_norm.weight": "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    "mlp.fc1.weight": "decoder.layers.mlp.linear_fc1.weight",
    "mlp.fc2.weight": "decoder.layers.mlp.linear_fc2.weight",
}
"""Canonical name within a layer -> Megatron's key, stacked over the layers on a leading axis."""
OTHER_KEYS = {
    "embedding.weight": "embedding.word_embeddings.weight",
    "final_norm.weight": "decoder.final_layernorm.weight",
    "head.weight": "output_layer.weight",
}
_MAIN_WEIGHTS = ("optimizer.state.fp32_param.", "optimizer.state.param.")
"""Before a weight's key: its fp32 main copy, which training in bf16 or fp16 keeps in the optimizer."""
CONTENT = {"distrib_optim_sharding_type": "fully_reshardable", "singleton_local_shards": False,
            "chained_optim_avoid_prefix": True}
_SERIES_FILE = "latest_checkpointed_iteration.txt"


def find_checkpoint(path: Path) -> tuple[Path, str | None]:
    """The checkpoint meant by `path`: itself, or the newest whole iteration if it is a series.

    Returns the folder and, for a series, a sentence saying which was chosen. Raises CheckpointError if there is none.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file, of no format that is known" if path.exists() else "is not there"
        raise CheckpointError(f"{path}: {what}. Cure: give the folder of a checkpoint or of a series of them.")
    if (path / METADATA_FILE).is_file():
        return path, None
    folders = {int(match[1]): child for child in path.iterdir() if (match := re.fullmatch(r"iter_(\d+)", child.name))}
    if not folders and not (path / _SERIES_FILE).is_file():
        raise CheckpointError(f"{path}: is not a whole checkpoint ({METADATA_FILE} is missing), nor a series "
                              f"({_SERIES_FILE} is missing). Cure: give the folder of one iteration.")
    whole = [n for n, folder in folders.items() if not file_list.flaws(folder)]
    if not whole:
        raise CheckpointError(f"{path}: none of its {len(folders)} iterations is a whole checkpoint. "
                              "Cure: resume the training that writes it.")
    chosen = max(whole)
    broken = sorted(n for n in folders if n > chosen)
    note = f"{path}: takes iteration {chosen}, the newest whole one"
    return folders[chosen], note + (f"; not whole: {', '.join(map(str, broken))}." if broken else ".")


def read(folder: Path) -> CanonicalCheckpoint:
    """Open the checkpoint in `folder`; its tensors are read when asked for.

    Where weights are stored in bf16 or fp16 and the optimizer's fp32 main weights are there, those are taken.
    Raises CheckpointError if it is not whole, holds keys that nothing explains, or not the model it describes.
    """
    run_config = load_run_config(folder)
    tensors, ignored = weights(TorchDistReader(folder))
    checkpoint = CanonicalCheckpoint(str(folder), run_config.model, tensors, ignored, run_config.iteration)
    checkpoint.check()
    return checkpoint


def weights(reader: TorchDistReader) -> tuple[tuple[CanonicalTensor, ...], tuple[Ignored, ...]]:
    """The tensors of a model in Megatron's format, and all else. Raises CheckpointError for keys that are neither."""
    table, model_keys = reader.table, {*LAYER_KEYS.values(), *OTHER_KEYS.values()}
    unexplained = [key for key in (*table, *reader.objects) if key not in model_keys and not _reason_to_ignore(key)]
    if unexplained:
        raise CheckpointError(f"{reader.folder}: holds {len(unexplained)} keys that are no part of this model: "
                              f"{', '.join(unexplained[:8])}. "
                              "Cure: only models of the shape of this project's can be converted.")
    for key in table.keys() & model_keys:
        reader.check_covered(key)
    tensors = [_tensor(reader, table, name, key, None) for name, key in OTHER_KEYS.items() if key in table]
    for kind, key in LAYER_KEYS.items():
        if key in table:
            num_layers = (table[key][0] or (0,))[0]
            tensors += [_tensor(reader, table, f"layers.{n}.{kind}", key, n) for n in range(num_layers)]
    ignored = [Ignored(key, _reason_to_ignore(key), table[key][0]) for key in table if key not in model_keys]
    ignored += [Ignored(key, _reason_to_ignore(key)) for key in reader.objects]
    return tuple(tensors), tuple(ignored)


def read_found(path: Path) -> CanonicalCheckpoint:
    """What `read` opens of what `find_checkpoint` finds; a note says what of its list of files is not as it says."""
    folder, note = find_checkpoint(path)
    checkpoint, flaws = read(folder), file_list.flaws(folder)
    notes = (note,) if note else ()
    if flaws:
        notes += (f"{folder}: is not whole ({'; '.join(flaws)}), and no training would take it; its weights are read",)
    return dataclasses.replace(checkpoint, notes=notes)


def write_weights(folder: Path, checkpoint: CanonicalCheckpoint, last: Callable[[Path], None]) -> None:
    """`write`, with nothing to say of the checkpoint but its model and its iteration."""
    write(folder, checkpoint, RunConfig(model=checkpoint.model, iteration=checkpoint.iteration), last)


def write(folder: Path, checkpoint: CanonicalCheckpoint, run_config: RunConfig,
          last: Callable[[Path], None] = lambda aside: None) -> None:
    """Write `checkpoint` under `folder` whole or not at all, weights in their types; in memory are one block
    or tensor of its source and the next.

    `last(aside)` may put further files into the folder before it gets its name; all tensors are written by then.
    Raises CheckpointError, and DataError when the disk fills up.
    """
    with publish(folder, new=True) as aside:
        records = write_checkpoint(aside, stored_tensors(checkpoint), CONTENT)
        _explain(aside, run_config, last, records)


def writing(aside: Path, checkpoint: CanonicalCheckpoint, run_config: RunConfig,
            last: Callable[[Path], None] = lambda aside: None) -> Iterator[str]:
    """What `write` does under a passing name, step by step: yields the name of each tensor before it is read, and reads
    none ahead.

    Kinds of tensors come in the order of the tables above, layers of a kind in the order of `checkpoint.tensors`.
    """
    kinds = {key: kind for kind, key in {**LAYER_KEYS, **OTHER_KEYS}.items()}
    stored, records = stored_tensors(checkpoint), {}
    for key, offsets in torch_dist.writing(aside, stored, torch_dist.in_step(stored), CONTENT, records):
        yield f"layers.{offsets[0]}.{kinds[key]}" if kinds[key] in LAYER_KEYS else kinds[key]
    _explain(aside, run_config, last, records)


def _explain(aside: Path, run_config: RunConfig, last: Callable[[Path], None], records: dict[str, dict]) -> None:
    (aside / FILE_NAME).write_text(to_yaml(run_config), encoding="utf-8")
    last(aside)
    file_list.write(aside, records)


def stored_tensors(checkpoint: CanonicalCheckpoint) -> list[StoredTensor]:
    """The tensors of a model as they stand in Megatron's format. Raises CheckpointError for layers of several types."""
    by_name = {tensor.name: tensor for tensor in checkpoint.tensors}
    stored = []
    for name, key in OTHER_KEYS.items():
        if name in by_name:  # a tied head is not
            tensor = by_name[name]
            whole = Chunk((0,) * len(tensor.shape), tensor.shape, tensor.in_blocks)
            stored.append(StoredTensor(key, tensor.shape, DTYPES[tensor.dtype], (whole,)))
    for kind, key in LAYER_KEYS.items():
        tensors = [tensor for tensor in checkpoint.tensors if tensor.name.endswith(f".{kind}")]
        chunks = tuple(_layer_chunk(tensor, int(tensor.name.split(".")[1])) for tensor in tensors)
        stored.append(StoredTensor(key, (len(tensors), *tensors[0].shape), _common_dtype(key, tensors), chunks))
    return stored


def _common_dtype(key: str, tensors: list[CanonicalTensor]) -> torch.dtype:
    """Layers are stacked into one tensor of the file, which has one type."""
    dtypes = sorted({tensor.dtype for tensor in tensors})
    if len(dtypes) > 1:
        raise CheckpointError(f"{key}: its layers are stored as {' and '.join(dtypes)}, one type is needed. "
                              "Cure: convert to one type with --dtype.")
    return DTYPES[dtypes[0]]


def _layer_chunk(tensor: CanonicalTensor, layer: int) -> Chunk:
    return Chunk((layer,) + (0,) * len(tensor.shape), (1, *tensor.shape), tensor.in_blocks)


def _tensor(reader: TorchDistReader, table: dict, name: str, key: str, layer: int | None) -> CanonicalTensor:
    shape, dtype = table[key]
    source, note = key, None
    main = next((prefix + key for prefix in _MAIN_WEIGHTS if table.get(prefix + key) == (shape, "float32")), None)
    if dtype != "float32" and main:
        source, note = main, f"stored as {dtype}; its fp32 main weight was taken from the optimizer state"
    elif dtype != "float32":
        note = f"stored as {dtype}, without an fp32 main weight"

    return CanonicalTensor(name, shape if layer is None else shape[1:], table[source][1],
                           StoredValues(reader, source, layer), note)


def _reason_to_ignore(key: str) -> str | None:
    """Why a key of a checkpoint is no weight; None for a key that nothing explains."""
    if key.startswith(("optimizer.", "optimizer/")):
        return "optimizer state"
    if key == "rng_state" or key.startswith(("rng_state/", "rng_state.")):
        return "random states"
    if key.startswith("common_state/"):
        return "what common.pt holds in older checkpoints"
    return "extra state" if "_extra_state" in key else None
