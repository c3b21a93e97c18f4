"""The shape of a Llama-like model."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from megatron_nca.config.schema import suggest, to_dict
from megatron_nca.errors import ConfigError, explain

VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to this, never by the layout, so that one checkpoint serves every layout."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How the rotary frequencies of a model were stretched to sequences longer than it began with.

    linear: all divided by `factor`. llama3: those whose wavelength exceeds original_length / low_frequency_factor are
    divided by `factor`, those shorter than original_length / high_frequency_factor stay, between them it is blended
    (Llama 3.1; the key `rope_scaling` of Hugging Face's configurations).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise ConfigError(explain("model.rope_scaling.factor", self.factor, "must be at least 1.",
                                      "leave rope_scaling out for none."))
        if not 0 < self.low_frequency_factor < self.high_frequency_factor or self.original_length < 1:
            raise ConfigError(explain(
                "model.rope_scaling", f"{self.low_frequency_factor}, {self.high_frequency_factor}, "
                f"{self.original_length}", "needs 0 < low_frequency_factor < high_frequency_factor and a positive "
                "original_length.", "take them from the model's own configuration."))


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A Llama-shaped decoder without its vocabulary: RMSNorm, RoPE, SwiGLU, no biases."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_query_groups: int | None = None
    """Key/value heads; None: as many as heads (multi-head attention)."""
    ffn_hidden_size: int
    sequence_length: int = 1024
    rope_base: int = 10_000
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    """The head is the embedding's weight; the model then has no tensor of its own for it."""
    norm_epsilon: float = 1e-6
    init_std: float = 0.02
    """Standard deviation of every matrix of the layers."""
    scaled_residual_init: bool = False
    """Divide the std of the output projections by sqrt(2 num_layers), as Megatron does; the released code does not."""
    embedding_init_std: float = 1.0
    """The released code leaves torch's nn.Embedding default of 1.0 (parity E3); 0.02 is the usual choice."""
    head_init: Literal["kaiming_uniform", "normal"] = "kaiming_uniform"
    """kaiming_uniform: bound 1/sqrt(hidden_size), as released (parity E3). normal: init_std."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "num_heads", "ffn_hidden_size", "sequence_length"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    explain(f"model.{name}", getattr(self, name), "must be at least 1.", "give a positive number.")
                )
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ConfigError(
                explain(
                    "model.num_heads",
                    self.num_heads,
                    f"hidden_size {self.hidden_size} does not split into heads of an even size, which RoPE needs.",
                    "choose a divisor of hidden_size.",
                )
            )
        if self.num_heads % self.query_groups:
            raise ConfigError(
                explain(
                    "model.num_query_groups",
                    self.num_query_groups,
                    f"does not divide num_heads = {self.num_heads}.",
                    "choose a divisor of num_heads.",
                )
            )
        for name in ("init_std", "embedding_init_std", "norm_epsilon"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    explain(f"model.{name}", getattr(self, name), "must be positive.", "leave it out for the default.")
                )

    @property
    def query_groups(self) -> int:
        return self.num_query_groups or self.num_heads

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    def with_vocabulary(self, vocab_size: int) -> "ModelConfig":
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(ModelShape)}
        return ModelConfig(vocab_size=vocab_size, **values)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelShape):
    """A ModelShape with its vocabulary: all that a checkpoint's tensors depend on."""

    vocab_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.vocab_size <= 2**20:
            raise ConfigError(
                explain(
                    "vocab_size",
                    self.vocab_size,
                    "must lie in 2..2^20.",
                    "give the size of the tokenizer or of the automata's alphabet.",
                )
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the head: vocab_size up to the next multiple of 128."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


PRESETS = {
    "paper": ModelShape(num_layers=24, hidden_size=2048, num_heads=32, ffn_hidden_size=8192),
    "400m": ModelShape(num_layers=24, hidden_size=1024, num_heads=16, ffn_hidden_size=4096),
    "110m": ModelShape(num_layers=12, hidden_size=768, num_heads=12, ffn_hidden_size=3072),
    "30m": ModelShape(num_layers=8, hidden_size=512, num_heads=8, ffn_hidden_size=2048),
}
"""The paper's 1.6B model, and smaller ones of its proportions: heads of 64, an MLP of 4 x hidden. The paper's own shape
at 400M is not published. Sizes count the layers and the final norm, without vocabularies."""


def resolve_preset(values: dict) -> dict:
    """`preset: NAME` in the settings of a model becomes that shape with the other keys on top. Raises ConfigError."""
    if "preset" not in values:
        return values
    name = values["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"model.preset = {name!r}: unknown.{suggest(name, list(PRESETS))}")
    return {**to_dict(PRESETS[name]), **{key: value for key, value in values.items() if key != "preset"}}
