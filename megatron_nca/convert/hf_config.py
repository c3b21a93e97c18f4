"""The `config.json` of a Hugging Face Llama model and the model it describes, both ways.

Keys are those of `transformers.LlamaConfig` 4.57, with `rope_parameters` and `dtype` of version 5.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from megatron_nca.config.model import ModelConfig, RopeScaling
from megatron_nca.errors import CheckpointError, ConfigError

FILE_NAME = "config.json"
_MUST_BE = {"hidden_act": ("silu",), "attention_bias": (False, None), "mlp_bias": (False, None),
            "partial_rotary_factor": (1, None), "quantization_config": (None,), "is_encoder_decoder": (False, None)}
"""What these models have no other way of; key -> values that are right. A missing key is right."""
_CURE = "Cure: only models of the plain Llama shape can be converted."


def read_model(folder: Path) -> ModelConfig:
    """The model that `config.json` describes. Raises CheckpointError, also for one that is not of our shape."""
    path = folder / FILE_NAME
    values = read_json(path)
    if values.get("model_type") != "llama":
        raise CheckpointError(f"{path}: model_type = {values.get('model_type')!r}: only 'llama' is read. {_CURE}")
    for key, right in _MUST_BE.items():
        if key in values and values[key] not in right:
            raise CheckpointError(f"{path}: {key} = {values[key]!r}: these models have {right[0]!r} only. {_CURE}")
    number = _Numbers(path, values)
    heads, hidden = number.whole("num_attention_heads"), number.whole("hidden_size")
    groups = number.whole("num_key_value_heads", heads)
    head_size = number.whole("head_dim", hidden // heads)
    if head_size * heads != hidden:
        raise CheckpointError(f"{path}: head_dim = {head_size}: {heads} heads of it do not make up "
                              f"hidden_size {hidden}. {_CURE}")
    tied = values.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise CheckpointError(f"{path}: tie_word_embeddings = {tied!r}: is neither true nor false. Cure: correct it.")
    base, scaling = _rope(path, values)
    std = number.positive("initializer_range", 0.02)
    try:
        return ModelConfig(
            num_layers=number.whole("num_hidden_layers"), hidden_size=hidden, num_heads=heads,
            num_query_groups=None if groups == heads else groups, ffn_hidden_size=number.whole("intermediate_size"),
            sequence_length=number.whole("max_position_embeddings", 2048), rope_base=base, rope_scaling=scaling,
            tied_embeddings=tied, norm_epsilon=number.positive("rms_norm_eps", 1e-6), init_std=std,
            embedding_init_std=std, head_init="normal", vocab_size=number.whole("vocab_size"))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _rope(path: Path, values: dict) -> tuple[int, RopeScaling | None]:
    """Base and scaling of the rotary frequencies; version 5 has both under `rope_parameters`."""
    old, new = values.get("rope_scaling"), values.get("rope_parameters")
    for key, given in (("rope_scaling", old), ("rope_parameters", new)):
        if given is not None and not isinstance(given, dict):
            raise CheckpointError(f"{path}: {key} = {given!r}: is no mapping. Cure: correct it, or take it out.")
    bases = {_Numbers(path, each).positive("rope_theta") for each in (values, new or {}) if "rope_theta" in each}
    if len(bases) > 1:
        raise CheckpointError(f"{path}: rope_theta is {' and '.join(map(str, sorted(bases)))}. "
                              "Cure: leave one of them.")
    base = bases.pop() if bases else 10_000.0
    if base != int(base):
        raise CheckpointError(f"{path}: rope_theta = {base}: only whole numbers are kept exactly. {_CURE}")
    given = [each for each in (old, new) if each and _kind(each) != "default"]
    scalings = [_scaling(path, each) for each in given]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        raise CheckpointError(f"{path}: rope_scaling and rope_parameters disagree. Cure: leave one of them.")
    return int(base), scalings[0] if scalings else None


def _kind(scaling: dict) -> object:
    """`type` is the key of old configurations."""
    return scaling.get("rope_type", scaling.get("type", "default"))


def _scaling(path: Path, values: dict) -> RopeScaling:
    number, kind = _Numbers(path, values, "rope_scaling."), _kind(values)
    try:
        if kind == "linear":
            return RopeScaling(kind="linear", factor=number.positive("factor"))
        if kind == "llama3":
            return RopeScaling(kind="llama3", factor=number.positive("factor"),
                               low_frequency_factor=number.positive("low_freq_factor"),
                               high_frequency_factor=number.positive("high_freq_factor"),
                               original_length=number.whole("original_max_position_embeddings"))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    raise CheckpointError(f"{path}: rope_scaling.rope_type = {kind!r}: only 'linear' and 'llama3' are known. {_CURE}")


class _Numbers:
    """Numbers of a mapping of the file; a required one has no `default`. Raises CheckpointError naming the key."""

    def __init__(self, path: Path, values: dict, prefix: str = "") -> None:
        self.path, self.values, self.prefix = path, values, prefix

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if type(value) is not int or value < 1:
            raise self._wrong(key, value, "a positive whole number")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def _value(self, key: str, default: float | None) -> object:
        value = self.values.get(key)
        if value is None and default is None:
            raise CheckpointError(f"{self.path}: {self.prefix}{key} is missing. Cure: give a whole copy of the folder.")
        return default if value is None else value

    def _wrong(self, key: str, value: object, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.prefix}{key} = {value!r}: is not {what}. Cure: correct it.")


def read_json(path: Path) -> dict:
    """A JSON object. Raises CheckpointError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no mapping")
        return values
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}). "
                              "Cure: give a whole copy of the folder.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON object: {str(error)[:200]}. "
                              "Cure: give a whole copy of the folder.") from error


def config_values(model: ModelConfig, dtype: str, special: Mapping[str, int | None]) -> dict:
    """What `config.json` says of `model`; `special`: bos_token_id and its like, which have defaults there."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size, "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers, "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.query_groups, "head_dim": model.head_size, "hidden_act": "silu",
        "max_position_embeddings": model.sequence_length, "rms_norm_eps": model.norm_epsilon,
        "rope_theta": float(model.rope_base), "rope_scaling": _scaling_values(model.rope_scaling),
        "tie_word_embeddings": model.tied_embeddings, "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "initializer_range": model.init_std, "use_cache": True, "torch_dtype": dtype,
        **{key: special.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}}


def _scaling_values(scaling: RopeScaling | None) -> dict | None:
    if scaling is None:
        return None
    values: dict = {"rope_type": scaling.kind, "factor": float(scaling.factor)}
    if scaling.kind == "llama3":
        values |= {"low_freq_factor": scaling.low_frequency_factor, "high_freq_factor": scaling.high_frequency_factor,
                   "original_max_position_embeddings": scaling.original_length}
    return values
