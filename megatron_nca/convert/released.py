"""Spoke: the files of the paper's released code (https://github.com/danihyunlee/nca-pre-pretraining), `NAME.pth`.

torch.save of {"model": state of the modules, "optimizer", "scheduler", "metrics", ...}. The modules are those of
Hugging Face's LlamaModel (24 layers of them in the paper) between an `input_proj` and an `output_proj`. Heads, rotary
base, epsilon and length are not in them; files written here say them under the key "megatron_nca", which the released
code does not read.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.schema import build, to_dict
from megatron_nca.convert import llama
from megatron_nca.convert.canonical import CanonicalCheckpoint, Ignored
from megatron_nca.convert.torch_file import TorchFile
from megatron_nca.errors import CheckpointError, ConfigError, explain
from megatron_nca.files import publish

NAMES = llama.Names("layers.", "input_proj.weight", "norm.weight", "output_proj.weight")
HEAD_BIAS = "output_proj.bias"
DEFAULTS = {"rope_base": 10_000, "norm_epsilon": 1e-6, "sequence_length": 1024}
"""What the released code builds every model with: create_llama_model, LlamaConfig's own, its launch scripts."""
_HEADS = {2048: 32}
"""hidden_size -> num_heads of its launch scripts."""
_OURS = "megatron_nca"


def _empty_dict(factory: type) -> dict:
    return {}


_KNOWN = [(_empty_dict, "collections.defaultdict"), list]
"""The metrics are a defaultdict of lists, which torch fills only where it comes as a dict."""
_REASONS = {"optimizer": "optimizer state", "scheduler": "state of the learning rate's schedule",
            "metrics": "losses of the training"}


def read(path: Path, num_heads: int | None = None, rope_base: int | None = None, norm_epsilon: float | None = None,
         sequence_length: int | None = None, drop_head_bias: bool | None = None) -> CanonicalCheckpoint:
    """Open one file, or the one file of a folder; its tensors are read when asked for.

    Settings that are given replace the released code's; those used in their absence are said in the notes. Raises
    CheckpointError for a file that holds something else, and for a head with a bias unless it is to be dropped.
    """
    file = TorchFile(_find(Path(path)), _KNOWN)
    origin, content = str(file.path), file.content
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointError(f"{origin}: holds no tensors under the key 'model', as the released code's files do. "
                              "Cure: use another file.")
    state = {re.sub(r"^((module|_orig_mod)\.)+", "", name): tensor for name, tensor in state.items()}
    ignored = [Ignored(key, _REASONS.get(key, "state of the training"))
               for key in content if key not in ("model", _OURS)]
    ignored += _take_bias(file, state, bool(drop_head_bias))
    ignored += _take_tied_head(state)
    parts = {name: llama.Part(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), partial(file.read, tensor))
             for name, tensor in state.items()}
    given = {"num_heads": num_heads, "rope_base": rope_base, "norm_epsilon": norm_epsilon,
             "sequence_length": sequence_length}
    model, notes = _model(origin, content.get(_OURS), parts, {k: v for k, v in given.items() if v is not None})
    iteration = content.get("total_iterations", 0)
    checkpoint = CanonicalCheckpoint(origin, model, llama.gather(origin, parts, NAMES, model), tuple(ignored),
                                     iteration if isinstance(iteration, int) else 0, notes, "options")
    checkpoint.check()
    return checkpoint


def write(folder: Path, checkpoint: CanonicalCheckpoint, last: Callable[[Path], None] = lambda aside: None) -> None:
    """Write `folder`/model_ITERATION.pth, which the released code finds by the folder; one tensor in memory at a time.

    Rows of padding are left out. Raises CheckpointError for a model that the released code cannot build.
    """
    _check_released(checkpoint)
    parts = dict(llama.divide(checkpoint, NAMES))
    with publish(folder, new=True) as aside:
        aside.mkdir(parents=True)
        path = aside / f"model_{checkpoint.iteration}.pth"
        content = {"total_iterations": checkpoint.iteration, _OURS: to_dict(checkpoint.model)}
        # First the whole file but the values.
        with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
            state = {name: torch.empty(part.shape, dtype=getattr(torch, part.dtype)) for name, part in parts.items()}
            if checkpoint.model.tied_embeddings:
                state[NAMES.head] = state[NAMES.embedding]
            torch.save({"model": state, **content}, path)
        places = TorchFile(path).content["model"]
        with open(path, "r+b") as file:
            for name, part in parts.items():
                file.seek(places[name].untyped_storage()._checkpoint_offset)
                file.write(memoryview(part.read().contiguous().view(torch.uint8).numpy()))
        last(aside)


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.pth"))
    if len(files) != 1:
        raise CheckpointError(f"{path}: holds {len(files)} files *.pth. Cure: give the path of one of them.")
    return files[0]


def _take_bias(file: TorchFile, state: dict, drop: bool) -> list[Ignored]:
    """Remove the head's bias, which models here have no place for, from `state`."""
    if HEAD_BIAS not in state:
        return []
    bias = state.pop(HEAD_BIAS)
    largest = float(file.read(bias).abs().max())
    if largest > 0 and not drop:
        raise CheckpointError(
            f"{file.path}: its head has a bias ({HEAD_BIAS}, up to {largest:.3g}), for which models here have no "
            "place. Cure: --drop-head-bias leaves it aside, as the released code does with the whole head when it "
            "goes on to language; logits then differ from its own by the bias.")
    return [Ignored(HEAD_BIAS, f"bias of the head, up to {largest:.3g}: dropped", tuple(bias.shape))]


def _take_tied_head(state: dict) -> list[Ignored]:
    """A tied head is stored as the embedding's own values; of two names for them one is kept."""
    pair = state.get(NAMES.embedding), state.get(NAMES.head)
    if None in pair or len({tensor.untyped_storage()._checkpoint_offset for tensor in pair}) > 1:
        return []
    return [Ignored(NAMES.head, "tied: the embedding's own values", tuple(state.pop(NAMES.head).shape))]


def _model(origin: str, said: object, parts: dict, given: dict) -> tuple[ModelConfig, tuple[str, ...]]:
    if isinstance(said, dict):
        if given:
            name, value = next(iter(given.items()))
            raise ConfigError(explain(f"--{name.replace('_', '-')}", value, f"{origin} says what its model is.",
                                      "leave it out."))
        try:
            return build(ModelConfig, said), ()
        except ConfigError as error:
            raise CheckpointError(f"{origin}: {error}") from error
    embedding = parts.get(NAMES.embedding)
    hidden = embedding.shape[-1] if embedding is not None else None
    defaults = {**DEFAULTS, "num_heads": _HEADS.get(hidden)}
    settings = {**defaults, **given}
    if settings["num_heads"] is None:
        raise CheckpointError(f"{origin}: does not say how many heads its model of hidden_size {hidden} has. "
                              "Cure: give --num-heads (n_head of the released code).")
    settings |= llama.shape_of(origin, parts, NAMES, settings["num_heads"])
    used = ", ".join(f"{name} {defaults[name]}" for name in defaults if name not in given)
    notes = (f"the file does not say {used}: taken from the released code",) if used else ()
    return llama.build_model(origin, settings), notes


def _check_released(checkpoint: CanonicalCheckpoint) -> None:
    model = checkpoint.model
    fixed = {"query_groups": model.num_heads, "ffn_hidden_size": 4 * model.hidden_size, "rope_scaling": None,
             "rope_base": DEFAULTS["rope_base"], "norm_epsilon": DEFAULTS["norm_epsilon"]}
    faults = [f"{name} is {getattr(model, name)}, there always {value}" for name, value in fixed.items()
              if getattr(model, name) != value]
    if faults:
        raise CheckpointError(f"{checkpoint.origin}: is of a shape that the released code cannot build: "
                              f"{'; '.join(faults)}. Cure: choose another format.")
