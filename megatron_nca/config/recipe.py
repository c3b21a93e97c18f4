"""A recipe is the whole experiment: datasets, the model, phases, arms that chain phases, and seeds."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_nca.config.automata import CLASSIC, ClassicGrid, ClassicLaw
from megatron_nca.config.batch_size import BatchSizes
from megatron_nca.config.controls import BASES, DyckLaw
from megatron_nca.config.dataset import Dataset
from megatron_nca.config.law import NcaLaw, domain_band, preset
from megatron_nca.config.model import ModelConfig, ModelShape, resolve_preset
from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.config.schema import apply_overrides, build, named, read_yaml, suggest, to_dict
from megatron_nca.config.start import Freeze, Start
from megatron_nca.config.tracking import Wandb
from megatron_nca.errors import ConfigError, explain


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam(W) with linear warm-up and a cosine to min_lr."""

    lr: float
    min_lr: float = 0.0
    warmup_iterations: int = 0
    decay_iterations: int | None = None
    """Length of the schedule; None: the phase's iterations. The released NCA phase stops at 5,000 of 50,000 (D02)."""
    decay_style: Literal["cosine", "linear", "constant"] = "cosine"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    decay_norms: bool = False
    """Weight decay on the norms too, as the released code does."""
    clip_grad: float = 0.0
    """Largest norm of the mean gradient, 0: no clipping. The released text phases amount to 1/32 (E2)."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(explain("optimizer.lr", self.lr, "must be positive.", "for example 1e-4."))
        for name in ("min_lr", "warmup_iterations", "weight_decay", "clip_grad"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    explain(f"optimizer.{name}", getattr(self, name), "must not be negative.", "0 turns it off.")
                )
        if self.min_lr > self.lr:
            raise ConfigError(explain("optimizer.min_lr", self.min_lr, f"exceeds lr = {self.lr}.", "lower it."))
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(explain(f"optimizer.{name}", value, "must lie in [0, 1).", "for example 0.9."))
        if not self.epsilon > 0:
            reason = "must be positive: what had no gradient yet would be divided by zero."
            raise ConfigError(explain("optimizer.epsilon", self.epsilon, reason, "for example 1e-8."))


@dataclass(frozen=True, kw_only=True)
class BadLoss:
    """What is done about a loss, or with clip_grad a gradient norm, that is not finite, or a loss that leaps.

    No update is made with it, in either case; learning rate and data go on as if it had been.
    """

    action: Literal["stop", "skip"] = "stop"
    """End with an error, or leave out the update and go on."""
    in_a_row: int | None = None
    """With skip: so many are tolerated one after the other, and the next one ends training; None: any number."""
    spike: float | None = None
    """A loss above so many times its running level (the mean of about 50 good ones) is bad too; None: none is."""

    def __post_init__(self) -> None:
        if self.spike is not None and not self.spike > 1:
            reason = "would call a loss bad that is at its running level."
            raise ConfigError(explain("on_bad_loss.spike", self.spike, reason, "give a factor above 1, such as 1.5."))
        if self.in_a_row is not None and (self.in_a_row < 1 or self.action != "skip"):
            cure = "give a positive number beside action: skip, or leave it out."
            reason = "counts bad losses that are skipped."
            raise ConfigError(explain("on_bad_loss.in_a_row", self.in_a_row, reason, cure))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Training on one dataset, from an initial checkpoint to a last one."""

    dataset: str
    iterations: int
    global_batch_size: int
    rampup_batch_size: tuple[int, int, int] | None = None
    """[start, increment, sequences]: reach global_batch_size in equal steps over the first so many sequences, as
    Megatron does. The schedule of the learning rate still names iterations."""
    micro_batch_size: int
    optimizer: OptimizerConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    fp8: Literal["e4m3", "hybrid"] | None = None
    """Matrix products of the layers in fp8, over bf16; needs Transformer Engine."""
    attention_dropout: float = 0.0
    attention_dropout_iterations: int | None = None
    """Dropout is on for so many iterations, None: for all. The released text phases lose it at their first
    validation (E1)."""
    freeze: Freeze | None = None
    """Parts of the model that are not trained, at first or at all; None: all are."""
    num_layers: int | None = None
    """Depth of this phase's model; None: that of the recipe's."""
    on_bad_loss: BadLoss = field(default_factory=BadLoss)
    validation_interval: int = 100
    validation_sequences: int = 256
    """Sequences of each validation; always the same ones, from the front of the held-out set."""
    save_interval: int = 100
    keep_checkpoints: int = 2
    """Newest checkpoints kept; the last iteration's always is."""
    keep_every: int | None = None
    """Checkpoints of multiples of so many iterations are kept for ever; None: none are."""
    async_save: bool = False
    """Write checkpoints in a forked process of each rank while training goes on; on a GPU host memory holds a copy of
    the state meanwhile, on a CPU what training changes of it."""
    fully_parallel_checkpoints: bool = True
    """Data- and context-parallel ranks write and read a share of a checkpoint each, instead of one of them all."""
    verify_checkpoints: bool = True
    """Hash all files of a checkpoint before it is loaded; sizes are always compared."""
    log_interval: int = 10
    """Iterations that a line of the log speaks of; metrics.jsonl has every one."""

    def __post_init__(self) -> None:
        for name in (
            "iterations",
            "global_batch_size",
            "micro_batch_size",
            "validation_interval",
            "validation_sequences",
            "save_interval",
            "keep_checkpoints",
            "log_interval",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(explain(name, getattr(self, name), "must be at least 1.", "give a positive number."))
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.save_interval):
            reason = f"is not a multiple of save_interval = {self.save_interval}, so nothing is saved there."
            raise ConfigError(explain("keep_every", self.keep_every, reason, "change one of the two."))
        if not 0 <= self.attention_dropout < 1:
            raise ConfigError(
                explain(
                    "attention_dropout",
                    self.attention_dropout,
                    "is not a probability below 1.",
                    "use a value in [0, 1).",
                )
            )
        if self.fp8 and self.precision != "bf16":
            reason = f"stands over bf16, not {self.precision}."
            raise ConfigError(explain("fp8", self.fp8, reason, "set precision bf16."))
        self.parallel.check_precision(self.precision, self.fp8)
        sizes = {f"rampup_batch_size, a batch of {size}": size for size in self.batch_sizes.sizes[:-1]}
        sizes |= {name: getattr(self, name) for name in ("global_batch_size", "validation_sequences")}
        self.parallel.check_batches(sizes, self.micro_batch_size)
        decay = self.optimizer.decay_iterations
        if decay is not None and decay < self.iterations:
            raise ConfigError(
                explain(
                    "optimizer.decay_iterations",
                    decay,
                    f"is below iterations = {self.iterations}.",
                    "make the schedule at least as long as the phase.",
                )
            )
        if self.optimizer.warmup_iterations >= (decay or self.iterations):
            raise ConfigError(
                explain(
                    "optimizer.warmup_iterations",
                    self.optimizer.warmup_iterations,
                    "is as long as the whole schedule.",
                    "shorten it, or lengthen the schedule with decay_iterations.",
                )
            )

    def check_freeze(self, name: str, model: ModelConfig) -> None:
        """Raise ConfigError if what is to be frozen is no set of this model's tensors, or the engine cannot do it."""
        where = f"phases.{name}.freeze"
        try:
            self.freeze.kinds(model.num_layers, model.tied_embeddings)
        except ConfigError as error:
            raise ConfigError(f"phases.{name}.{error}") from error
        if (self.freeze.iterations or 1) > self.iterations:
            reason = f"is more than the phase's {self.iterations}."
            raise ConfigError(explain(f"{where}.iterations", self.freeze.iterations, reason, "leave it out for all."))
        if self.parallel.engine != "megatron":
            reason = "keeps its updates to itself, so that nothing can be left out of them."
            raise ConfigError(explain(f"{where} with parallel.engine", self.parallel.engine, reason,
                                      "set parallel.engine: megatron."))

    @property
    def batch_sizes(self) -> BatchSizes:
        return BatchSizes(self.global_batch_size, self.rampup_batch_size)

    @property
    def train_sequences(self) -> int:
        """Sequences of all iterations."""
        return self.batch_sizes.consumed_after(self.iterations)

    def dropout_at(self, iteration: int) -> float:
        """Attention dropout of an iteration, counted from 0."""
        limit = self.attention_dropout_iterations
        return self.attention_dropout if limit is None or iteration < limit else 0.0


@dataclass(frozen=True, kw_only=True)
class ArmStep:
    phase: str
    start: Start = field(default_factory=Start)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the comparison: phases in order."""

    steps: tuple[ArmStep, ...]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    description: str = ""
    model: ModelShape
    datasets: dict[str, Dataset]
    phases: dict[str, Phase]
    arms: dict[str, Arm]
    control: str
    """The arm that the others are compared with."""
    seeds: tuple[int, ...] = (0,)
    wandb: Wandb | None = None
    """Phases report to Weights & Biases too; None: they do not."""

    def __post_init__(self) -> None:
        _check_known("control", self.control, self.arms)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or not all(0 <= s < 2**32 for s in self.seeds):
            reason = "must be at least one, distinct, in 0..2^32-1."
            raise ConfigError(explain("seeds", list(self.seeds), reason, "give for example [0, 1, 2]."))
        for name, dataset in self.datasets.items():
            dataset.check_numbers(f"datasets.{name}")
            self._check_base(name)
            self._check_blend(name)
        for name, phase in self.phases.items():
            _check_known(f"phases.{name}.dataset", phase.dataset, self.datasets)
            model = self.model_config(name)
            try:
                phase.parallel.check_model(model)
            except ConfigError as error:
                raise ConfigError(f"phases.{name}.{error}") from error
            if phase.freeze is not None:
                phase.check_freeze(name, model)
            held_out, asked = self.part_sequences(phase.dataset, "validation"), phase.validation_sequences
            if held_out is not None and asked > held_out:  # else it shows only when the phase before has been trained
                reason, cure = f"'{phase.dataset}' holds only {held_out} of them.", "lower it, or hold out more."
                raise ConfigError(explain(f"phases.{name}.validation_sequences", asked, reason, cure))
            law = self.law_of(phase.dataset)
            if law is not None and law.sequence_length != self.model.sequence_length:
                where = f"datasets.{phase.dataset}.law.sequence_length"
                reason = f"differs from model.sequence_length = {self.model.sequence_length}."
                raise ConfigError(explain(where, law.sequence_length, reason, "make them equal."))
        for name, arm in self.arms.items():
            self._check_arm(name, arm)

    def _check_base(self, name: str) -> None:
        dataset = self.datasets[name]
        if dataset.base is None:
            return
        where = f"datasets.{name}.base"
        _check_known(where, dataset.base, self.datasets)
        base = self.datasets[dataset.base]
        if base.source not in BASES[dataset.source]:
            cure = f"name a dataset of one of {', '.join(BASES[dataset.source])}"
            cure += ", such as a corpus_copy of it." if base.source in BASES["corpus_copy"] else "."
            reason = f"its source is {base.source}, of which {dataset.source} makes nothing."
            raise ConfigError(explain(where, dataset.base, reason, cure))
        if base.on_node is not None:
            cure = f"leave out datasets.{dataset.base}.on_node, or base it on a dataset made beforehand."
            reason = "it is made on the nodes of its training, so nothing can be made of it beforehand."
            raise ConfigError(explain(where, dataset.base, reason, cure))
        for part in ("train", "validation"):
            asked, there = (self.part_sequences(which, part) for which in (name, dataset.base))
            if dataset.source == "shuffled" and asked > there:
                setting = f"datasets.{name}.{'sequences' if part == 'train' else 'validation_sequences'}"
                cure = "lower it, or leave it out for all of them."
                raise ConfigError(explain(setting, asked, f"'{dataset.base}' holds only {there}.", cure))

    def _check_blend(self, name: str) -> None:
        where = f"datasets.{name}.blend"
        for _, part in self.datasets[name].blend or ():
            _check_known(where, part, self.datasets)
            if self.datasets[part].source != "indexed":
                reason = f"its source is {self.datasets[part].source}, and a blend is of indexed datasets."
                raise ConfigError(explain(where, part, reason, "preprocess it beforehand, with the same tokenizer."))
            sizes = [self.vocab_size(which) for which in (name, part)]
            if sizes[0] != sizes[1]:
                reason = f"its vocab_size is {sizes[1]}, that of the first is {sizes[0]}."
                raise ConfigError(explain(where, part, reason, "make all of them with one tokenizer."))

    def _check_arm(self, name: str, arm: Arm) -> None:
        if not arm.steps:
            raise ConfigError(f"arms.{name}: has no steps. Cure: name at least one phase.")
        if len({step.phase for step in arm.steps}) != len(arm.steps):
            raise ConfigError(f"arms.{name}: names a phase twice. Cure: define a second phase under another name.")
        for step in arm.steps:
            _check_known(f"arms.{name}.steps.phase", step.phase, self.phases)
        before = None
        for step in arm.steps:
            if before is None and step.start.needs_source:
                reason = f"its first step carries {[*step.start.carry, *step.start.laws]}, but nothing precedes it."
                raise ConfigError(f"arms.{name}: {reason} Cure: drop it.")
            model = self.model_config(step.phase)
            try:
                step.start.resolve(model.num_layers, before and before.num_layers, model.tied_embeddings)
            except ConfigError as error:
                raise ConfigError(f"arms.{name}, phase {step.phase}: start.{error}") from error
            before = model

    def model_config(self, phase: str) -> ModelConfig:
        """The model of a phase: the recipe's shape with the vocabulary of the phase's dataset and the phase's depth."""
        settings = self.phases[phase]
        model = self.model.with_vocabulary(self.vocab_size(settings.dataset))
        return dataclasses.replace(model, num_layers=settings.num_layers or model.num_layers)

    def vocab_size(self, dataset: str) -> int:
        """Vocabulary rows of a dataset's model; a control has its base's."""
        values = self.datasets[dataset]
        if values.base is not None:
            return self.vocab_size(values.base)
        if values.blend is not None:
            return self.datasets[values.blend[0][1]].vocab_size or 0
        if values.law is not None:
            return values.law.vocab_size
        if values.source in CLASSIC:
            law = values.automaton or ClassicLaw()
            return ClassicGrid.of(values.source, law, self.model.sequence_length).num_tokens
        return values.vocab_size or (values.dyck or DyckLaw()).num_tokens

    def law_of(self, dataset: str) -> NcaLaw | None:
        """The law whose frames a dataset's documents are laid out in, a control's own base included."""
        values = self.datasets[dataset]
        return values.law if values.base is None else self.law_of(values.base)

    def part_sequences(self, dataset: str, part: str) -> int | None:
        """Sequences of the train or validation part of a generated dataset; None for text that is not copied."""
        values = self.datasets[dataset]
        if part == "train" and values.tokens is not None:
            return -(-values.tokens // self.model.sequence_length)
        own = values.sequences if part == "train" else values.validation_sequences
        return self.part_sequences(values.base, part) if own is None and values.base is not None else own

    def home_arm(self, arm: str, position: int) -> str:
        """The first arm whose steps up to `position` equal those of `arm`: there the phase is run once for all."""
        chain = self.arms[arm].steps[: position + 1]
        return next(name for name, other in self.arms.items() if other.steps[: position + 1] == chain)


def _check_known(where: str, name: str, known: dict) -> None:
    if name not in known:
        raise ConfigError(f"{where} = {name!r}: not defined in this recipe.{suggest(name, list(known))}")


def _resolve_law(values: dict, where: str) -> dict:
    """`preset: NAME` inside a law becomes that preset with the other keys on top, `domain: NAME` that domain's band."""
    if "domain" in values and "band" in values:
        reason = "names a band, and 'band' does too."
        raise ConfigError(explain(f"{where}.domain", values["domain"], reason, "drop one of the two."))
    rest = {key: value for key, value in values.items() if key not in ("preset", "domain")}
    build(NcaLaw, rest, where)  # report a misspelt key before it is merged
    try:
        if "domain" in values:
            rest["band"] = list(domain_band(values["domain"]))
        return {**to_dict(preset(values["preset"])), **rest} if "preset" in values else rest
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from error


def recipe_from_dict(values: dict) -> Recipe:
    """Build and check a recipe. Raises ConfigError."""
    if isinstance(values, dict) and isinstance(values.get("model"), dict):
        values = {**values, "model": resolve_preset(values["model"])}
    if isinstance(values, dict) and isinstance(values.get("datasets"), dict):
        values = {**values, "datasets": dict(values["datasets"])}
        for name, dataset in values["datasets"].items():
            if isinstance(dataset, dict) and isinstance(dataset.get("law"), dict):
                law = _resolve_law(dataset["law"], f"datasets.{name}.law")
                values["datasets"][name] = {**dataset, "law": law}
    return build(Recipe, values)


def load_recipe(path: Path, overrides: list[str] = ()) -> Recipe:
    """A recipe from a YAML file with ``a.b=value`` overrides. Raises ConfigError naming the file."""
    with named(path):
        return recipe_from_dict(apply_overrides(read_yaml(path), list(overrides)))
