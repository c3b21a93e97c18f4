"""Parts of the model that are left as they are for a while, in Megatron's own optimizer and at any layout.

Frozen parameters stay in the gradient buffers and in the optimizer, so that layouts, checkpoints and the switch need
nothing of their own. Before an update their gradients become zero, so that neither norm nor loss scaling sees them, and
their groups' rate and decay do: Adam then changes no bit of weights and moments. Their bias correction counts from the
switch on, as the moments do; that is a count of a group's own beside Megatron's, which insists on one for all groups.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.run_config import RunConfig
from megatron_nca.config.start import Freeze
from megatron_nca.errors import CheckpointError

MARK = "is_decoupled_lr"
"""By this, among others, Megatron tells groups of parameters apart when it loads; it has no other effect there."""
_LATE = "steps_while_frozen"

_ENDINGS = {
    "linear_qkv.layer_norm_weight": "attention_norm.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "linear_qkv.weight": "attention.qkv.weight",
    "linear_proj.weight": "attention.proj.weight",
    "linear_fc1.layer_norm_weight": "mlp_norm.weight",
    "pre_mlp_layernorm.weight": "mlp_norm.weight",
    "linear_fc1.weight": "mlp.fc1.weight",
    "linear_fc2.weight": "mlp.fc2.weight",
    "word_embeddings.weight": "embedding.weight",
    "final_layernorm.weight": "final_norm.weight",
    "output_layer.weight": "head.weight",
}
"""How Megatron's name of a parameter ends -> the canonical name within its layer."""


def parameters(chunks: list[torch.nn.Module], model: ModelConfig, freeze: Freeze | None) -> list[torch.nn.Parameter]:
    """Those of this rank that `freeze` names; the last stage's copy of a tied embedding with it."""
    if freeze is None:
        return []
    kinds = freeze.kinds(model.num_layers, model.tied_embeddings)
    return [parameter for chunk in chunks for parameter, place in _places(chunk, model.tied_embeddings)
            if place in kinds]


def _places(chunk: torch.nn.Module, tied: bool) -> Iterator[tuple[torch.nn.Parameter, tuple[str, int | None]]]:
    layers = {f"{name}.": module.layer_number - 1 for name, module in chunk.named_modules()
              if isinstance(module, TransformerLayer)}
    for name, parameter in chunk.named_parameters():
        (kind,) = (kind for ending, kind in _ENDINGS.items() if name.endswith(f".{ending}"))
        kind = "embedding.weight" if tied and kind == "head.weight" else kind
        yield parameter, (kind, next((layer for prefix, layer in layers.items() if name.startswith(prefix)), None))


def own_groups(frozen: list[torch.nn.Parameter]) -> dict:
    """Overrides that give these parameters groups of their own in Megatron's optimizer."""
    ids = {id(parameter) for parameter in frozen}
    return {ParamKey(predicate=ParamPredicate(name="frozen", fn=lambda parameter: id(parameter) in ids)): {MARK: True}}


@contextlib.contextmanager
def update(optimizer: object, frozen: list[torch.nn.Parameter], now: bool) -> Iterator[None]:
    """Around an update of `optimizer`: the frozen parameters stay if `now`, else they are at their own step."""
    groups = [group for group in optimizer.param_groups if group[MARK]]
    if now:
        for parameter in frozen:
            parameter.main_grad.zero_()
        for group in groups:
            group["lr"] = group["weight_decay"] = 0.0  # until the schedule sets them again
    for group in groups:
        group["step"] = group.get("step", 0) - group.get(_LATE, 0)
    yield
    for group in groups:
        group["step"] += group.get(_LATE, 0)
    # Of all groups, for some optimizers count no step of those that are empty on this rank, and the first rank's
    # numbers are what a checkpoint has.
    steps = max(group.get("step", 0) for group in optimizer.param_groups)
    for group in groups:
        group["step"] = steps
        if now:
            group[_LATE] = steps


def check_same(folder: Path, saved: RunConfig, freeze: Freeze | None) -> None:
    """Raise CheckpointError if a training that would go on from a checkpoint has other settings of freezing."""
    if saved.optimizer and saved.freeze != freeze:
        raise CheckpointError(f"{folder}: was trained with freeze = {saved.freeze}, the phase has {freeze}. "
                              "Cure: restore the setting, or start the phase over in another run folder.")
