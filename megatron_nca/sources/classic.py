"""Elementary and life-like automata: two states, one rule a sequence, without noise and without a complexity filter.

Wolfram's elementary rules on a ring; births and survivals by the number of live neighbours of eight, on a torus.
A sequence's first word draws its rule, the others its initial cells, 64 a word, the lowest bit first.
"""

import numpy as np

from megatron_nca.config.automata import ClassicGrid, ClassicLaw, parse_rule
from megatron_nca.config.schema import to_dict
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.sources import counter


class ClassicSource(counter.CounterSource):
    """Trajectories of rules drawn uniformly, in patch tokens with delimiters. Raises ConfigError."""

    def __init__(self, source: str, law: ClassicLaw, num_sequences: int, seed: int, sequence_length: int) -> None:
        self.kind, self.law, self.seed = source, law, seed
        self.grid = ClassicGrid.of(source, law, sequence_length)
        self.num_sequences = counter.check_count("sequences", num_sequences)
        self.num_tokens = self.vocab_size = self.grid.num_tokens
        self.trajectory = Trajectory.of_law(self.grid)
        self._rules = None if law.rules is None else np.array([parse_rule(source, rule) for rule in law.rules])

    def documents(self, index: np.ndarray) -> np.ndarray:
        grid, law = self.grid, self.law
        cells = grid.height * grid.width
        purpose = counter.ELEMENTARY if self.kind == "elementary" else counter.LIFE_LIKE
        words = counter.bits(self.seed, purpose, index, 1 + -(-cells // 64))
        next_states = self._tables(words[:, 0])
        bits = np.unpackbits(words[:, 1:].astype("<u8").view(np.uint8), axis=1, bitorder="little")
        states = bits[:, :cells].reshape(-1, grid.height, grid.width)
        frames = []
        for frame in range(grid.num_frames):
            for _ in range(law.burn_in_steps if frame == 0 else law.steps_per_frame):
                states = _update(self.kind, states, next_states)
            frames.append(self._tokens(states))
        return np.concatenate(frames, axis=1)

    def _tables(self, words: np.ndarray) -> np.ndarray:
        """Next state uint8 (n, configurations) of each sequence's rule, drawn by `words` (n,)."""
        count = 8 if self.kind == "elementary" else 18
        rules = counter.below(words, 2**count if self._rules is None else len(self._rules))
        rules = rules if self._rules is None else self._rules[rules]
        return (rules[:, None] >> np.arange(count) & 1).astype(np.uint8)

    def _tokens(self, states: np.ndarray) -> np.ndarray:
        """One frame (n, frame_tokens) of states (n, H, W), between its delimiters."""
        grid = self.grid
        tiles = states.reshape(len(states), grid.rows, grid.height // grid.rows, -1, grid.patch).swapaxes(2, 3)
        digits = tiles.reshape(len(states), grid.frame_tokens - 2, -1).astype(np.int64)
        patches = digits @ (1 << np.arange(digits.shape[2]))
        return np.pad(patches, ((0, 0), (1, 1)), constant_values=((0, 0), (grid.start_token, grid.start_token + 1)))

    def identity(self) -> dict:
        return {
            "generator": f"megatron_nca.{self.kind}",
            "law_version": 1,
            "automaton": to_dict(self.law),
            "sequence_length": self.trajectory.sequence_length,
            "seed": self.seed,
            "sequences": self.num_sequences,
        }


def _update(kind: str, states: np.ndarray, next_states: np.ndarray) -> np.ndarray:
    """One update of states (n, H, W) by next_states (n, configurations)."""
    if kind == "elementary":
        configuration = 4 * np.roll(states, 1, 2) + 2 * states + np.roll(states, -1, 2)
    else:
        rows = np.roll(states, 1, 1) + states + np.roll(states, -1, 1)
        configuration = np.roll(rows, 1, 2) + rows + np.roll(rows, -1, 2) + 8 * states  # the centre was counted too
    chosen = np.take_along_axis(next_states, configuration.reshape(len(states), -1).astype(np.intp), axis=1)
    return chosen.reshape(states.shape)
