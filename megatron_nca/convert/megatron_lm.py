"""Spoke: Megatron-LM's own checkpoints (--ckpt-format torch_dist) of models of this shape.

A folder with `latest_checkpointed_iteration.txt` and in it `iter_0000100/` or `release/`, whose `common.pt` has the
training's `args`. Written is a `release`: Megatron-LM starts from it at iteration 0 without asking for the optimizer's
and the random generators' states. Names of arguments are those of core_v0.16.1.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from megatron_nca import pickles
from megatron_nca.config.model import ModelConfig, RopeScaling
from megatron_nca.convert import llama, megatron
from megatron_nca.convert.canonical import DTYPES, CanonicalCheckpoint, CanonicalTensor
from megatron_nca.errors import CheckpointError
from megatron_nca.files import publish
from megatron_nca.mcore.torch_dist import METADATA_FILE, TorchDistReader, write_checkpoint

COMMON_FILE = "common.pt"
TRACKER_FILE = "latest_checkpointed_iteration.txt"
RELEASE = "release"
_NAMES = {"num_layers": "num_layers", "hidden_size": "hidden_size", "num_heads": "num_attention_heads",
          "ffn_hidden_size": "ffn_hidden_size", "sequence_length": "max_position_embeddings",
          "rope_base": "rotary_base", "norm_epsilon": "layernorm_epsilon"}
"""Settings of a model -> arguments of the same meaning."""
_MUST_BE = {"position_embedding_type": ("rope",), "normalization": ("RMSNorm",), "swiglu": (True,),
            "add_bias_linear": (False,), "add_qkv_bias": (False,), "rotary_percent": (1.0,),
            "rotary_interleaved": (False,), "rotary_seq_len_interpolation_factor": (None,), "num_experts": (None,),
            "multi_latent_attention": (False,), "qk_layernorm": (False,), "qk_l2_norm": (False,),
            "apply_layernorm_1p": (False,), "layernorm_zero_centered_gamma": (False,), "squared_relu": (False,),
            "quick_geglu": (False,), "apply_residual_connection_post_layernorm": (False,), "window_size": (None,),
            "softmax_type": ("vanilla",), "attention_output_gate": (False,), "mtp_num_layers": (None, 0),
            "experimental_attention_variant": (None,), "heterogeneous_layers_config_path": (None,),
            "hybrid_override_pattern": (None,), "is_hybrid_model": (False,), "no_rope_freq": (None,),
            "activation_func_clamp_value": (None,), "glu_linear_offset": (0.0,), "use_legacy_models": (False,),
            "spec": (None,)}
"""What these models have no other way of. An argument that an older version does not have is right."""
_LAYER_OBJECTS = ("self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention",
                  "mlp.linear_fc1", "mlp.linear_fc2")
"""Modules that with Transformer Engine, and some of them without, have an extra state, which Megatron-LM asks for."""
_VOCABULARY = "megatron_nca_vocab_size"
"""Our own among the arguments: its vocab_size counts no end token, its padded_vocab_size the padding too."""
_ROPE_SCALING = RopeScaling(kind="llama3", factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0,
                            original_length=8192)
"""All that --use-rope-scaling can mean: pretrain_gpt.py gives its model no other factor."""


class _Aside:
    """Stands for an object among the arguments that decides nothing here."""

    def __init__(self, *args: object) -> None:
        pass


_CORE = "megatron.core"
_KNOWN = [argparse.Namespace] + [(_Aside, name) for name in (
    f"{_CORE}.transformer.enums.AttnBackend", f"{_CORE}.transformer.enums.CudaGraphScope",
    f"{_CORE}.enums.ModelType", f"{_CORE}.optimizer.optimizer_config.OptimizerConfig",
    f"{_CORE}.rerun_state_machine.RerunMode", f"{_CORE}.rerun_state_machine.RerunState",
    f"{_CORE}.rerun_state_machine.RerunDiagnostic", "signal.Signals", "pathlib.PosixPath", "types.SimpleNamespace")]


def read(path: Path, vocab_size: int | None = None) -> CanonicalCheckpoint:
    """Open the iteration that the tracker names, or the folder of one; its tensors are read when asked for.

    `vocab_size`: how many rows of the embedding are the vocabulary's, which only our own say. Raises
    CheckpointError for a model of another shape, naming the argument, and for a checkpoint that is not whole.
    """
    folder = _find(Path(path))
    common = pickles.load(folder / COMMON_FILE, folder / COMMON_FILE, _KNOWN)
    args = common.get("args") if isinstance(common, dict) else None
    if not isinstance(args, argparse.Namespace):
        raise CheckpointError(f"{folder}: is neither a whole checkpoint of this project (run_config.yaml is missing) "
                              f"nor one of Megatron-LM's ({COMMON_FILE} holds no arguments of its training). "
                              "Cure: give one that is whole.")
    reader = TorchDistReader(folder)
    tensors, ignored = megatron.weights(reader)
    rows = next((tensor.shape[0] for tensor in tensors if tensor.name == "embedding.weight"), 0)
    model, notes = _model(str(folder / COMMON_FILE), args, rows, vocab_size)
    iteration = common.get("iteration")
    checkpoint = CanonicalCheckpoint(
        str(folder), model, tuple(_fit_rows(tensor, model) for tensor in tensors), ignored,
        iteration if isinstance(iteration, int) else 0, notes, COMMON_FILE)
    checkpoint.check()
    return checkpoint


def write(folder: Path, checkpoint: CanonicalCheckpoint, last: Callable[[Path], None] = lambda aside: None) -> None:
    """Write `folder`/release and its tracker, for --load `folder`; one tensor in memory at a time.

    Raises CheckpointError for a model that Megatron-LM cannot build, and DataError when the disk fills up.
    """
    common = {"args": _arguments(checkpoint), "iteration": checkpoint.iteration, "checkpoint_version": 3.0}
    with publish(folder, new=True) as aside:
        aside.mkdir(parents=True)
        write_checkpoint(aside / RELEASE, megatron.stored_tensors(checkpoint), megatron.CONTENT, common,
                         _empty_objects(checkpoint.model.num_layers))
        (aside / TRACKER_FILE).write_text(RELEASE, encoding="utf-8")
        last(aside)


def _find(path: Path) -> Path:
    """The folder of one iteration. Raises CheckpointError."""
    if (path / METADATA_FILE).is_file() and (path / COMMON_FILE).is_file():
        return path
    tracker = path / TRACKER_FILE
    word = tracker.read_text(encoding="utf-8", errors="replace").strip() if tracker.is_file() else ""
    if word != RELEASE and not re.fullmatch(r"\d+", word):
        raise CheckpointError(f"{path}: is neither an iteration in the format torch_dist ({METADATA_FILE} and "
                              f"{COMMON_FILE}) nor a folder whose {TRACKER_FILE} names one. "
                              "Cure: give the folder that Megatron-LM's --save named.")
    folder = path / (RELEASE if word == RELEASE else f"iter_{int(word):07}")
    if not (folder / METADATA_FILE).is_file() or not (folder / COMMON_FILE).is_file():
        raise CheckpointError(f"{folder}: is not a whole checkpoint in the format torch_dist ({METADATA_FILE} and "
                              f"{COMMON_FILE}), though {TRACKER_FILE} names it. Cure: give the folder of another "
                              "iteration; other formats Megatron-LM itself converts (--ckpt-convert-format).")
    return folder


def _model(origin: str, args: argparse.Namespace, rows: int, vocab_size: int | None) -> tuple[ModelConfig, tuple]:
    faults = [f"{name} = {getattr(args, name)!r}" for name, right in _MUST_BE.items()
              if getattr(args, name, right[0]) not in right]
    missing = [name for name in _NAMES.values() if getattr(args, name, None) is None]
    if faults or missing:
        reason = f"its model has {', '.join(faults)}" if faults else f"its args lack {', '.join(missing)}"
        raise CheckpointError(f"{origin}: {reason}, which models here have no way of. "
                              "Cure: only models of the plain Llama shape can be converted.")
    settings = {ours: getattr(args, theirs) for ours, theirs in _NAMES.items()}
    if getattr(args, "kv_channels", None) not in (None, settings["hidden_size"] // settings["num_heads"]):
        raise CheckpointError(f"{origin}: kv_channels = {args.kv_channels}: heads here are of hidden_size / num_heads. "
                              "Cure: only models of the plain Llama shape can be converted.")
    groups = getattr(args, "num_query_groups", None) if getattr(args, "group_query_attention", False) else None
    settings["num_query_groups"] = None if groups == settings["num_heads"] else groups
    settings["rope_scaling"] = _ROPE_SCALING if getattr(args, "use_rope_scaling", False) else None
    settings["tied_embeddings"] = not getattr(args, "untie_embeddings_and_output_weights", False)
    said = getattr(args, _VOCABULARY, None)
    settings["vocab_size"] = vocab_size or said or rows
    notes = () if vocab_size or said else (
        f"nothing says how many of the embedding's {rows} rows are the vocabulary's: all are taken (--vocab-size)",)
    return llama.build_model(origin, settings), notes


def _fit_rows(tensor: CanonicalTensor, model: ModelConfig) -> CanonicalTensor:
    """Megatron-LM pads the vocabulary by its layout: rows of padding are left out or added as zeros."""
    rows, wanted = tensor.shape[0], model.padded_vocab_size
    if tensor.name not in ("embedding.weight", "head.weight") or rows == wanted or rows < model.vocab_size:
        return tensor  # too few rows for the vocabulary are an error of the table
    note = f"{abs(rows - wanted)} rows of padding were {'left out' if rows > wanted else 'added'}"
    return dataclasses.replace(tensor, shape=(wanted, *tensor.shape[1:]), read=partial(_rows, tensor, wanted),
                               note=f"{tensor.note}; {note}" if tensor.note else note)


def _rows(tensor: CanonicalTensor, wanted: int) -> torch.Tensor:
    values = tensor.read()
    if len(values) > wanted:
        return values[:wanted].clone()
    return torch.cat((values, values.new_zeros(wanted - len(values), *values.shape[1:])))


def _empty_objects(num_layers: int) -> list[str]:
    keys = [f"decoder.layers.{module}._extra_state/shard_{layer}_{num_layers}"
            for layer in range(num_layers) for module in _LAYER_OBJECTS]
    return [*keys, "decoder.final_layernorm._extra_state/shard_0_1"]


def _arguments(checkpoint: CanonicalCheckpoint) -> argparse.Namespace:
    """What Megatron-LM compares on loading, and takes over with --use-checkpoint-args. Raises CheckpointError."""
    model = checkpoint.model
    if model.rope_scaling not in (None, _ROPE_SCALING):
        raise CheckpointError(f"{checkpoint.origin}: rope_scaling = {model.rope_scaling}: Megatron-LM has no other "
                              f"than {_ROPE_SCALING}. Cure: choose another format.")
    args = {theirs: getattr(model, ours) for ours, theirs in _NAMES.items()}
    args |= {name: right[0] for name, right in _MUST_BE.items()}
    grouped = model.query_groups != model.num_heads
    dtypes = {tensor.dtype for tensor in checkpoint.tensors}
    args |= {"seq_length": model.sequence_length, "kv_channels": model.head_size, "group_query_attention": grouped,
             "num_query_groups": model.query_groups if grouped else 1, _VOCABULARY: model.vocab_size,
             "padded_vocab_size": model.padded_vocab_size, "make_vocab_size_divisible_by": 128,
             "untie_embeddings_and_output_weights": not model.tied_embeddings,
             "use_rope_scaling": model.rope_scaling is not None, "use_rotary_position_embeddings": False,
             "ckpt_format": "torch_dist", "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1,
             "params_dtype": DTYPES[dtypes.pop()] if len(dtypes) == 1 else torch.float32,
             "no_save_optim": True, "no_save_rng": True, "consumed_train_samples": 0, "consumed_valid_samples": 0}
    return argparse.Namespace(**args)
