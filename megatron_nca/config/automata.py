"""Settings of the classic two-state automata: neighbours of the neural ones, with a rule drawn for each sequence."""

import re
from dataclasses import dataclass

from megatron_nca.errors import ConfigError, explain

CLASSIC = ("elementary", "life_like")
"""Sources that `generate` makes: Wolfram's 256 rules on a ring of cells; rules of births and survivals on a torus."""

_LIFE = re.compile(r"B([0-8]*)/S([0-8]*)")


@dataclass(frozen=True, kw_only=True)
class ClassicLaw:
    """Two states a cell, random start of density 1/2, frames between delimiters as those of neural automata.

    A token is a patch: `patch` cells of a row (elementary) or patch x patch cells (life_like), first cell the least
    significant digit.
    """

    height: int | None = None
    """life_like: cells; None: 12. Elementary automata have one row."""
    width: int | None = None
    """Cells of a row; None: 64 (elementary), 12 (life_like)."""
    patch: int | None = None
    """None: 4 (elementary), 2 (life_like): 16 patch tokens of either."""
    burn_in_steps: int = 10
    """Updates before the first frame."""
    steps_per_frame: int = 1
    rules: tuple[str, ...] | None = None
    """Drawn from uniformly; None: all 256, or all 2^18. Elementary: Wolfram's numbers; life_like: as B3/S23."""

    def __post_init__(self) -> None:
        for name, low, high in (("burn_in_steps", 0, 2**20), ("steps_per_frame", 1, 2**16)):
            _check_range(name, getattr(self, name), low, high)
        for name, high in (("height", 64), ("width", 1024), ("patch", 16)):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 1, high)
        if self.rules is not None and not self.rules:
            raise ConfigError("automaton.rules = []: holds no rule to draw. Cure: name some, or leave it out.")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(explain(f"automaton.{name}", value, f"must lie in {low}..{high}.", "leave it out."))


@dataclass(frozen=True, kw_only=True)
class ClassicGrid:
    """A ClassicLaw of one source with its defaults filled in: grid, tokens and the layout of a document."""

    source: str
    height: int
    width: int
    patch: int
    sequence_length: int

    @classmethod
    def of(cls, source: str, law: ClassicLaw, sequence_length: int) -> "ClassicGrid":
        """Raises ConfigError for a grid that patches do not cover, or that leaves no second frame."""
        flat = source == "elementary"
        if flat and law.height is not None:
            raise ConfigError(explain("automaton.height", law.height, "an elementary automaton is a row.", "drop it."))
        width, patch = law.width or (64 if flat else 12), law.patch or (4 if flat else 2)
        grid = cls(
            source=source,
            height=1 if flat else law.height or 12,
            width=width,
            patch=patch,
            sequence_length=sequence_length,
        )
        if grid.width % patch or (not flat and (grid.height % patch or patch > 4)):
            reason = f"patches must cover the grid {grid.height} x {grid.width}, and hold 16 cells at most."
            raise ConfigError(explain("automaton.patch", patch, reason, "choose another grid or patch."))
        if sequence_length < 2 * grid.frame_tokens:
            reason = f"holds fewer than two frames of {grid.frame_tokens} tokens."
            raise ConfigError(explain("sequence_length", sequence_length, reason, "use a smaller grid."))
        return grid

    @property
    def start_token(self) -> int:
        return 2 ** (self.patch if self.source == "elementary" else self.patch**2)

    @property
    def num_tokens(self) -> int:
        return self.start_token + 2

    @property
    def rows(self) -> int:
        """Rows of patches."""
        return 1 if self.source == "elementary" else self.height // self.patch

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame with its two delimiters."""
        return self.rows * (self.width // self.patch) + 2

    @property
    def num_frames(self) -> int:
        return -(-(self.sequence_length + 1) // self.frame_tokens)

    @property
    def document_tokens(self) -> int:
        return self.num_frames * self.frame_tokens

    @property
    def first_scored_token(self) -> int:
        """The first frame cannot be predicted."""
        return self.frame_tokens


def parse_rule(source: str, rule: str) -> int:
    """A rule as a number: bit i the next state of configuration i. Raises ConfigError.

    Elementary: i = 4 left + 2 centre + right (Wolfram). life_like: i = live neighbours + 9 centre.
    """
    if source == "elementary":
        if not str(rule).isdigit() or int(rule) > 255:
            raise ConfigError(explain("automaton.rules", rule, "is no number in 0..255.", "give for example 110."))
        return int(rule)
    match = _LIFE.fullmatch(str(rule))
    if match is None:
        raise ConfigError(explain("automaton.rules", rule, "is not written as B3/S23.", "give for example B36/S23."))
    births, survivals = match.groups()
    return sum({1 << int(digit) for digit in births} | {1 << (9 + int(digit)) for digit in survivals})
