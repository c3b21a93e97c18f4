"""Spoke, read only: checkpoint folders of DeepSpeed's ZeRO, stages 1 to 3, of a Llama with Hugging Face's names.

`engine.save_checkpoint` writes a folder with `latest`, which names a folder of model states (`*_model_states.pt`) and
of one share of the optimizer's for each rank (`*_optim_states.pt`). Read are the fp32 main weights in those shares.
Stages 1 and 2 keep the weights of a parameter group one after the other in a vector, of which each rank has a
piece; stage 3 cuts every weight into as many pieces as there are ranks, and each rank keeps its pieces of all weights
one after the other, in sub-groups. Trainings of one rank of tensor parallelism only.
"""

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.convert import llama
from megatron_nca.convert.canonical import CanonicalCheckpoint, Ignored
from megatron_nca.convert.torch_file import TorchFile
from megatron_nca.errors import CheckpointError

LATEST_FILE = "latest"
_FILE_NAME = r"(?:(?:bf16_|fp16_)?zero_pp_rank_(\d+)_)?mp_rank_(\d+)_(model|optim)_states\.pt"
"""With the ranks of data and of tensor parallelism."""
_CURE = "Cure: give the whole folder that DeepSpeed's save_checkpoint wrote."
_SETTINGS = ("num_heads", "rope_base", "norm_epsilon", "sequence_length")


class _Aside:
    """Stands for an object of DeepSpeed that decides nothing here."""

    def __init__(self, *args: object) -> None:
        pass


_KNOWN = [(int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
          (_Aside, "deepspeed.utils.tensor_fragment.fragment_address"),
          (_Aside, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
          (_Aside, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler")]


@dataclass(frozen=True)
class Piece:
    """`count` elements from `first` on of a flat tensor of one rank's file."""

    file: TorchFile
    flat: torch.Tensor
    first: int
    count: int


def read(path: Path, num_heads: int | None = None, rope_base: int | None = None, norm_epsilon: float | None = None,
         sequence_length: int | None = None) -> CanonicalCheckpoint:
    """Open the checkpoint that `latest` names, or the folder of one; its weights are read when asked for.

    The four settings are not in such a folder and have no defaults. The sums of all files are checked here. Raises
    CheckpointError if a share is missing or damaged, or if it is no such model.
    """
    folder = _find(Path(path))
    given = dict(zip(_SETTINGS, (num_heads, rope_base, norm_epsilon, sequence_length), strict=True))
    if missing := [name for name, value in given.items() if value is None]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise CheckpointError(f"{folder}: DeepSpeed does not write down {', '.join(missing)}. Cure: give {options}.")
    states, shares = _files(folder)
    zero = [_part(share, "optimizer_state_dict") for share in shares]
    stage = zero[0].get("zero_stage")
    if stage not in (1, 2, 3):
        raise CheckpointError(f"{folder}: zero_stage = {stage!r}: 1, 2 and 3 are read. {_CURE}")
    counts = zero[0].get("partition_count")
    ranks = max(counts) if isinstance(counts, list) else counts
    if ranks != len(shares):
        raise CheckpointError(f"{folder}: has the shares of {len(shares)} ranks of {ranks}. {_CURE}")
    groups = _shapes(states, folder)
    pieces = _pieces_of_3(shares, zero, groups) if stage == 3 else _pieces_of_1_and_2(shares, zero, groups)
    shapes = {name: shape for group in groups for name, shape in group.items()}
    tied = _tied(states, folder)
    parts = {name: llama.Part(shape, "float32", partial(_assemble, tuple(pieces[name]), shape))
             for name, shape in shapes.items()}
    for share in shares:
        share.check_sums()
    model = _model(str(folder), parts, given)
    tensors = llama.gather(str(folder), parts, llama.HUGGING_FACE, model)
    ignored = [Ignored("optimizer_state_dict", "optimizer state"), *tied]
    steps = states.content.get("global_steps")
    notes = (f"fp32 main weights of ZeRO-{stage} from {ranks} ranks",)
    checkpoint = CanonicalCheckpoint(str(folder), model, tensors, tuple(ignored),
                                     steps if isinstance(steps, int) else 0, notes, "options")
    checkpoint.check()
    return checkpoint


def _find(path: Path) -> Path:
    latest = path / LATEST_FILE
    if not latest.is_file():
        return path
    name = latest.read_text(encoding="utf-8", errors="replace").strip()
    if not name or Path(name).name != name or not (path / name).is_dir():
        raise CheckpointError(f"{latest}: names {name!r}, which is no folder beside it. {_CURE}")
    return path / name


def _files(folder: Path) -> tuple[TorchFile, list[TorchFile]]:
    """The model states of the first rank, and the shares of all ranks in their order."""
    states, shares = {}, {}
    for path in folder.glob("*_states.pt"):
        match = re.fullmatch(_FILE_NAME, path.name)
        if match and int(match[2]):
            raise CheckpointError(f"{path}: is of a training with tensor parallelism, which is not read. "
                                  "Cure: save it from a training without.")
        if match:
            (states if match[3] == "model" else shares)[int(match[1] or 0)] = path
    if 0 not in states or sorted(shares) != list(range(len(shares))) or not shares:
        raise CheckpointError(f"{folder}: has no *mp_rank_00_model_states.pt of the first rank, or not the "
                              f"*_optim_states.pt of all ranks in a row. {_CURE}")
    return TorchFile(states[0], _KNOWN), [TorchFile(shares[rank], _KNOWN) for rank in range(len(shares))]


def _part(file: TorchFile, key: str) -> dict:
    value = file.content.get(key) if isinstance(file.content, dict) else None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file.path}: holds no {key}. {_CURE}")
    return value


def _shapes(states: TorchFile, folder: Path) -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes of the trained weights, by parameter group."""
    groups = states.content.get("param_shapes") if isinstance(states.content, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise CheckpointError(f"{states.path}: holds no param_shapes. {_CURE}")
    if states.content.get("frozen_param_shapes"):
        raise CheckpointError(f"{states.path}: has frozen weights, which are not read. "
                              "Cure: save it from a training of all weights.")
    named = [{re.sub(r"^((module|_orig_mod)\.)+", "", name): tuple(shape) for name, shape in group.items()}
             for group in groups]
    if len(set().union(*named)) != sum(map(len, named)):
        raise CheckpointError(f"{states.path}: names a weight twice in param_shapes. {_CURE}")
    return named


def _flat(share: TorchFile, zero: dict, key: str) -> list[torch.Tensor]:
    value = zero.get(key)
    if not isinstance(value, list) or not all(
            isinstance(flat, torch.Tensor) and flat.ndim == 1 and flat.dtype == torch.float32 for flat in value):
        raise CheckpointError(f"{share.path}: holds no {key} in fp32. {_CURE}")
    return value


def _pieces_of_1_and_2(shares: list[TorchFile], zero: list[dict], groups: list[dict]) -> dict[str, list[Piece]]:
    flats = [_flat(share, each, "single_partition_of_fp32_groups") for share, each in zip(shares, zero, strict=True)]
    paddings = zero[0].get("param_alignment_paddings") or [[0] * len(group) for group in groups]
    pieces = {}
    for number, (group, padding) in enumerate(zip(groups, paddings, strict=True)):
        vector = [(share, flat[number]) for share, flat in zip(shares, flats, strict=True)]
        first = 0
        for (name, shape), after in zip(group.items(), padding, strict=True):
            pieces[name] = list(_cut(vector, first, math.prod(shape)))
            first += math.prod(shape) + after
    return pieces


def _pieces_of_3(shares: list[TorchFile], zero: list[dict], groups: list[dict]) -> dict[str, list[Piece]]:
    pieces = {name: [] for group in groups for name in group}
    for rank, (share, each) in enumerate(zip(shares, zero, strict=True)):
        vector = [(share, flat) for flat in _flat(share, each, "fp32_flat_groups")]
        first = 0
        for name, shape in itertools.chain.from_iterable(group.items() for group in groups):
            numel = math.prod(shape)
            size = -(-numel // len(shares))
            held = max(0, min(size, numel - rank * size))  # the last pieces are padded to the same size
            pieces[name] += _cut(vector, first, held)
            first += size
    return pieces


def _cut(vector: list[tuple[TorchFile, torch.Tensor]], first: int, count: int) -> Iterable[Piece]:
    """The elements from `first` on of flat tensors laid one after the other."""
    if first + count > sum(flat.numel() for _, flat in vector):
        raise CheckpointError(f"{vector[0][0].path.parent}: its shares are too short for its weights. {_CURE}")
    start = 0
    for file, flat in vector:
        low, high = max(first, start), min(first + count, start + flat.numel())
        if low < high:
            yield Piece(file, flat, low - start, high - low)
        start += flat.numel()


def _assemble(pieces: tuple[Piece, ...], shape: tuple[int, ...]) -> torch.Tensor:
    values = [piece.file.read_part(piece.flat, piece.first, piece.count) for piece in pieces]
    return (values[0] if len(values) == 1 else torch.cat(values)).view(shape)


def _tied(states: TorchFile, folder: Path) -> list[Ignored]:
    shared = states.content.get("shared_params") or {}
    for name, other in dict(shared).items():
        if (name, other) != (llama.HUGGING_FACE.head, llama.HUGGING_FACE.embedding):
            raise CheckpointError(f"{states.path}: {name} is the same weight as {other}; in these models only a tied "
                                  "head is. Cure: use another checkpoint.")
    return [Ignored(name, "tied: the embedding's own values") for name in shared]


def _model(origin: str, parts: dict[str, llama.Part], given: dict) -> ModelConfig:
    settings = {**given, **llama.shape_of(origin, parts, llama.HUGGING_FACE, given["num_heads"])}
    return llama.build_model(origin, settings)
