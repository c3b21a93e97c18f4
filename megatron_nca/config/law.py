"""The law of an automata dataset: how rules are drawn, run, turned into tokens and filtered.

Every field is a setting of the released code (danihyunlee/nca-pre-pretraining); where the paper's text
differs, the field names the discrepancy (D03 ...) of docs/parity.md.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from megatron_nca.config.schema import suggest
from megatron_nca.errors import ConfigError, explain

MAX_VOCABULARY = 2**20
LAW_VERSION = 2
"""Raised whenever the same settings would give other scores or tokens."""


@dataclass(frozen=True, kw_only=True)
class NcaLaw:
    """What a candidate's sequence is, given only (seed, candidate). Defaults: the released code."""

    num_states: int = 10
    """Values a cell can take."""
    height: int = 12
    width: int = 12
    patch: int = 2
    """Side of a square patch of cells that becomes one token."""
    sequence_length: int = 1024
    """Tokens that training takes as input; a document holds the whole frames that cover it and its target."""
    burn_in_steps: int = 10
    """Updates before the first frame."""
    steps_per_frame: int = 1
    """Updates from one frame to the next (dT)."""
    temperature: float = 1e-4
    """Of the categorical sampling of the next state; the paper's text says 1e-3 (D03)."""
    identity_bias: float = 0.0
    """Added to the logit of the present state."""
    initial_state: Literal["shared_categorical", "uniform"] = "shared_categorical"
    """One categorical with N(0, 1) logits shared by all cells of a rollout, or uniform states (D03)."""
    channel_padding: Literal["wrap", "none"] = "wrap"
    """The released code pads the state channels by wrap too; the paper describes the two spatial axes only (D10)."""
    allocated_vocab_size: int | None = None
    """Rows of the model's vocabulary; the released code allocates 64,000 (D04). None: the tokens in use."""
    scored_positions: Literal["after_first_frame", "all"] = "after_first_frame"
    """Which target tokens carry loss (D06)."""
    score_frames: int = 10
    """Frames of the rollout that the complexity filter compresses."""
    score_dtype: Literal["int32", "uint16", "uint8"] = "int32"
    """Little-endian layout of the token bytes that are compressed."""
    score_delimiters: bool = False
    """Whether the frame delimiters are compressed too."""
    band: tuple[float, float] = (0.5, 1.0)
    """Open interval of the gzip ratio that a rule must lie in."""
    band_scale: Literal["official", "calibrated"] = "official"
    """Of the band's numbers. official: the gzip ratio. calibrated: the gzip ratio over that of independent uniform
    tokens of the same law, so that bands of different alphabets compare."""
    emitted_rollout: Literal["fresh", "scored"] = "fresh"
    """fresh: every sequence has an initial state and sampling of its own, as released. scored: the first sequence of a
    rule is the rollout that was scored, gone on, so that all of those lie in the band; a fresh one leaves it at times
    (docs/parity.md)."""
    num_rules: int | None = None
    """Distinct rules of a dataset, cycled with fresh initial states. None: one rule per sequence (D09)."""

    def __post_init__(self) -> None:
        for name, low, high in [
            ("num_states", 2, 16),
            ("patch", 1, 4),
            ("height", 2, 64),
            ("width", 2, 64),
            ("sequence_length", 2, 2**20),
            ("burn_in_steps", 0, 2**20),
            ("steps_per_frame", 1, 2**16),
            ("score_frames", 1, 2**16),
        ]:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    explain(f"law.{name}", value, f"must lie in {low}..{high}.", f"choose a value in {low}..{high}.")
                )
        self._check_grid_and_vocabulary()
        low, high = self.band
        if not (0 <= low < high):
            raise ConfigError(
                explain(
                    "law.band",
                    list(self.band),
                    "is not an interval LOW < HIGH of gzip ratios.",
                    "give for example 0.5 1.0.",
                )
            )
        if not self.temperature > 0:
            raise ConfigError(
                explain(
                    "law.temperature",
                    self.temperature,
                    "states are sampled, so it must be positive.",
                    "use 1e-4, the released value.",
                )
            )
        if self.num_rules is not None and self.num_rules < 1:
            raise ConfigError(
                explain(
                    "law.num_rules", self.num_rules, "must be at least 1.", "leave it out for one rule per sequence."
                )
            )

    def _check_grid_and_vocabulary(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) % self.patch:
                raise ConfigError(
                    explain(
                        f"law.{name}",
                        getattr(self, name),
                        f"is not a multiple of patch = {self.patch}.",
                        "choose a grid that whole patches cover.",
                    )
                )
        if self.num_tokens > MAX_VOCABULARY:
            raise ConfigError(
                explain(
                    "law.num_states",
                    self.num_states,
                    f"{self.num_states}^({self.patch}x{self.patch}) + 2 = {self.num_tokens} tokens exceed 2^20.",
                    "use fewer states or a smaller patch.",
                )
            )
        if self.num_frames < 2:
            raise ConfigError(
                explain(
                    "law.sequence_length",
                    self.sequence_length,
                    f"holds fewer than two frames of {self.frame_tokens} tokens, so nothing can be predicted.",
                    "use a smaller grid, a larger patch or a longer sequence.",
                )
            )
        if self.allocated_vocab_size is not None and self.allocated_vocab_size < self.num_tokens:
            raise ConfigError(
                explain(
                    "law.allocated_vocab_size",
                    self.allocated_vocab_size,
                    f"is below the {self.num_tokens} tokens in use.",
                    "raise it, or let it be those in use: --allocated-vocab-size none, in a recipe null.",
                )
            )

    @property
    def patches_per_frame(self) -> int:
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame with its two delimiters (38 as released)."""
        return self.patches_per_frame + 2

    @property
    def num_frames(self) -> int:
        """Whole frames that cover a sequence and its shifted target (27 as released)."""
        return -(-(self.sequence_length + 1) // self.frame_tokens)

    @property
    def document_tokens(self) -> int:
        """Tokens of one document (1,026 as released)."""
        return self.num_frames * self.frame_tokens

    @property
    def start_token(self) -> int:
        return self.num_states ** (self.patch * self.patch)

    @property
    def end_token(self) -> int:
        return self.start_token + 1

    @property
    def num_tokens(self) -> int:
        """Distinct tokens, delimiters included (10,002 as released)."""
        return self.num_states ** (self.patch * self.patch) + 2

    @property
    def vocab_size(self) -> int:
        """Rows the model allocates."""
        return self.allocated_vocab_size or self.num_tokens

    @property
    def first_scored_token(self) -> int:
        """Position in a document of the first target token that carries loss."""
        return self.frame_tokens if self.scored_positions == "after_first_frame" else 1


PRESETS = {
    "released": NcaLaw(allocated_vocab_size=64_000, num_rules=16_000),
    "paper": NcaLaw(temperature=1e-3, initial_state="uniform", channel_padding="none", scored_positions="all"),
}


DOMAINS = {"web": (0.5, 1.0), "math": (0.5, 1.0), "code": (0.3, 0.4)}
"""Bands, official scale, that the paper found best for a text of that domain; replications do not support it so far."""


def preset(name: str) -> NcaLaw:
    """The law of that name. Raises ConfigError for an unknown one."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"preset = {name!r}: unknown.{suggest(name, list(PRESETS))}")
    return PRESETS[name]


def domain_band(name: str) -> tuple[float, float]:
    """The band of that domain. Raises ConfigError for an unknown one."""
    if not isinstance(name, str) or name not in DOMAINS:
        raise ConfigError(f"domain = {name!r}: unknown.{suggest(name, list(DOMAINS))}")
    return DOMAINS[name]


SCORING_SETTINGS = (
    "num_states",
    "height",
    "width",
    "patch",
    "burn_in_steps",
    "steps_per_frame",
    "temperature",
    "identity_bias",
    "initial_state",
    "channel_padding",
    "score_frames",
    "score_dtype",
    "score_delimiters",
)
"""The settings that, with the seed, decide a candidate's score; the others choose and lay out what is emitted."""


def scoring_settings(law: NcaLaw) -> dict:
    """The settings of `law` that decide scores, as plain values."""
    return {name: getattr(law, name) for name in SCORING_SETTINGS}


def scoring_law(settings: dict) -> NcaLaw:
    """The law that scores by `settings` and the defaults; its sequences hold two frames at least, so that none is
    refused for what scores do not depend on. Raises ConfigError."""
    settings = {**scoring_settings(NcaLaw()), **settings}
    return NcaLaw(**settings, sequence_length=2 * (settings["height"] * settings["width"] + 2))


def replace(law: NcaLaw, **changes: object) -> NcaLaw:
    """A copy of `law` with some settings changed, checked anew."""
    return dataclasses.replace(law, **changes)
