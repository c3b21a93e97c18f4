"""How one model is laid out over ranks, and every layout that is refused before a process group exists.

Megatron accepts some of these without a word and then computes something else, or fails on one rank while the others
wait. So all rules stand here, each with one message; what depends on the machine is in `mcore/stack.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from megatron_nca.config.model import ModelConfig
from megatron_nca.errors import ConfigError, explain


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """Activations that are computed again in the backward pass instead of kept: the same numbers, less memory."""

    granularity: Literal["full", "selective"]
    """full: whole layers, of which only the input is kept. selective: parts of every layer."""
    method: Literal["uniform", "block"] | None = None
    """Of full. uniform (None means it): keep the input of every `layers`-th layer. block: recompute only the first
    `layers` layers of each stage."""
    layers: int | None = None
    """Of full; None: 1."""
    modules: tuple[str, ...] | None = None
    """Of selective: core_attn, mlp or both; None: core_attn."""

    def __post_init__(self) -> None:
        foreign = ("modules",) if self.granularity == "full" else ("method", "layers")
        for name in foreign:
            if getattr(self, name) is not None:
                reason = f"means nothing under granularity '{self.granularity}'."
                _refuse(f"recompute.{name}", getattr(self, name), reason, "leave it out.")
        if self.layers is not None and self.layers < 1:
            _refuse("recompute.layers", self.layers, "must be at least 1.", "leave it out for 1.")
        for module in self.modules or ():
            if module not in ("core_attn", "mlp"):
                reason = (
                    f"'{module}' cannot be recomputed here: Megatron ignores it in this model, "
                    "or fails in the middle of a forward pass without Transformer Engine."
                )
                _refuse("recompute.modules", list(self.modules), reason, "choose core_attn, mlp or both.")
        if self.modules == ():
            _refuse("recompute.modules", [], "names nothing to recompute.", "leave recompute out.")

    @property
    def megatron(self) -> dict[str, object]:
        """The settings of Megatron's TransformerConfig."""
        if self.granularity == "selective":
            modules = list(self.modules or ("core_attn",))
            return {"recompute_granularity": "selective", "recompute_modules": modules}
        return {
            "recompute_granularity": "full",
            "recompute_method": self.method or "uniform",
            "recompute_num_layers": self.layers or 1,
        }


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How one model is split (tensor, pipeline, context) and copied (data) over ranks."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    """Model chunks of each pipeline rank. Above 1 the schedule is interleaved: smaller bubbles, more messages."""
    context: int = 1
    """Ranks over which each sequence is split, activations with it."""
    data: int = 1
    engine: Literal["megatron", "deepspeed"] = "megatron"
    """What reduces gradients, updates weights and divides the optimizer's states among copies of the model."""
    zero_stage: Literal[1, 2, 3] | None = None
    """Of deepspeed, None: 1. What copies share out: 1 the optimizer's states, 2 gradients too, 3 weights too."""
    sequence_parallel: bool = False
    """Split norms and dropout along the sequence over the tensor-parallel ranks."""
    overlap_grad_reduce: bool | None = None
    """Reduce gradients while the backward pass goes on; None: on GPUs, not on CPUs."""
    overlap_param_gather: bool | None = None
    """Gather updated weights while the next forward pass goes on; None: as overlap_grad_reduce."""
    recompute: Recompute | None = None

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "virtual_pipeline", "context", "data"):
            if getattr(self, name) < 1:
                cure = "give the number of ranks along that axis." if name != "virtual_pipeline" else "1 turns it off."
                _refuse(name, getattr(self, name), "must be at least 1.", cure)
        if self.sequence_parallel and self.tensor == 1:
            _refuse("sequence_parallel", True, "needs tensor > 1.", "set parallel.tensor or turn it off.")
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            reason = "chunks of a pipeline rank need a pipeline, and pipeline is 1."
            _refuse("virtual_pipeline", self.virtual_pipeline, reason, "set parallel.pipeline or leave it out.")
        if self.overlap_param_gather and not self.overlap_grad_reduce:
            reason = f"needs overlap_grad_reduce, which is {self.overlap_grad_reduce}."
            _refuse("overlap_param_gather", True, reason, "set both to true.")
        self._check_engine()

    def _check_engine(self) -> None:
        """Refuse what only one of the two engines has."""
        if self.engine == "megatron":
            if self.zero_stage is not None:
                reason = "means nothing under engine 'megatron', which always divides the optimizer's states."
                _refuse("zero_stage", self.zero_stage, reason, "leave it out, or set parallel.engine: deepspeed.")
            return
        cure = "leave it out, or set parallel.engine: megatron."
        for name, idle, reason in (
            ("pipeline", 1, "engine 'deepspeed' runs no schedule of pipeline stages."),
            ("context", 1, "engine 'deepspeed' splits no sequences."),
            ("sequence_parallel", False, "engine 'deepspeed' sums no norms' gradients over tensor-parallel ranks."),
            ("overlap_param_gather", None, "engine 'deepspeed' gathers updated weights in its own way."),
        ):
            if getattr(self, name) != idle:
                _refuse(name, getattr(self, name), reason, cure)

    def check_precision(self, precision: str, fp8: str | None) -> None:
        """Raise ConfigError if the engine cannot train in it."""
        if self.engine == "deepspeed":
            if precision == "fp16":
                reason = "under parallel.engine 'deepspeed' a resume would lose its loss scale."
                raise ConfigError(explain("precision", precision, reason, "set bf16 or fp32, or engine: megatron."))
            if fp8:
                reason = "is not offered with parallel.engine 'deepspeed'."
                raise ConfigError(explain("fp8", fp8, reason, "leave fp8 out, or set engine: megatron."))

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data

    def overlaps(self, on_gpu: bool) -> tuple[bool, bool]:
        """Whether gradient reduction and weight gathering overlap computation on such a device."""
        reduce = on_gpu if self.overlap_grad_reduce is None else self.overlap_grad_reduce
        return reduce, reduce if self.overlap_param_gather is None else self.overlap_param_gather

    def check_model(self, model: ModelConfig) -> None:
        """Raise ConfigError if `model` cannot be split so."""
        for what, size in [
            ("num_heads", model.num_heads),
            ("num_query_groups", model.query_groups),
            ("ffn_hidden_size", model.ffn_hidden_size),
            ("hidden_size", model.hidden_size),
            ("padded vocabulary", model.padded_vocab_size),
        ]:
            if size % self.tensor:
                reason = f"does not divide the model's {what} = {size}."
                _refuse("tensor", self.tensor, reason, "choose a common divisor of heads, query groups and sizes.")
        if model.num_layers % self.pipeline:
            reason = f"does not divide num_layers = {model.num_layers}."
            _refuse("pipeline", self.pipeline, reason, "choose a divisor of num_layers.")
        if model.num_layers % (self.pipeline * self.virtual_pipeline):
            reason = f"times pipeline = {self.pipeline} does not divide num_layers = {model.num_layers}."
            _refuse("virtual_pipeline", self.virtual_pipeline, reason, "choose a divisor of the layers of a rank.")
        self._check_sequence(model.sequence_length)
        self._check_recompute(model.num_layers // (self.pipeline * self.virtual_pipeline))

    def _check_sequence(self, length: int) -> None:
        if self.context > 1 and length % (2 * self.context):
            reason = f"a sequence is split into 2 x context parts, which do not divide sequence_length = {length}."
            _refuse("context", self.context, reason, "choose another size, or a length that is a multiple of 2 x it.")
        if self.sequence_parallel and length // self.context % self.tensor:
            of_a_rank = "" if self.context == 1 else f" / context = {length // self.context}"
            reason = f"does not divide sequence_length = {length}{of_a_rank} under sequence parallelism."
            _refuse("tensor", self.tensor, reason, "choose a divisor, or turn sequence_parallel off.")

    def _check_recompute(self, layers_of_a_chunk: int) -> None:
        if self.recompute is None or self.recompute.layers is None:
            return
        layers, where = self.recompute.layers, f"a stage of {layers_of_a_chunk} layers"
        if self.recompute.method == "block" and layers > layers_of_a_chunk:
            _refuse("recompute.layers", layers, f"is more than {where}.", f"at most {layers_of_a_chunk}.")
        if self.recompute.method != "block" and layers_of_a_chunk % layers:
            _refuse("recompute.layers", layers, f"does not divide {where}.", "choose a divisor.")

    def check_batches(self, batches: Mapping[str, int], micro_batch_size: int) -> None:
        """Raise ConfigError unless every batch, keyed by the setting it comes from, splits into micro-batches."""
        step = micro_batch_size * self.data
        for setting, sequences in batches.items():
            if sequences % step:
                reason = f"is not a multiple of micro_batch_size x parallel.data = {step}."
                raise ConfigError(explain(setting, sequences, reason, "change one of the three."))
            if self.virtual_pipeline > 1 and sequences // step % self.pipeline:
                reason = (
                    f"makes {sequences // step} micro-batches, which the interleaved schedule needs to be "
                    f"a multiple of parallel.pipeline = {self.pipeline}."
                )
                cure = f"choose a multiple of {step * self.pipeline}, or virtual_pipeline 1."
                raise ConfigError(explain(setting, sequences, reason, cure))


def _refuse(setting: str, value: object, reason: str, cure: str) -> None:
    raise ConfigError(explain(f"parallel.{setting}", value, reason, cure))
