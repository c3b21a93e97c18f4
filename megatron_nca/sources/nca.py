"""Sequences of accepted automaton rules, and the dataset that they make.

Candidates are numbered 0, 1, 2, ... A dataset of N sequences holds the rules of the first R accepted candidates,
in order; R = min(num_rules, N), or N where num_rules is None. Sequence i uses rule i % R with repeat number i // R, so
each has its own initial state and sampling. Nothing depends on threads, blocks or processes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from megatron_nca.config.law import LAW_VERSION, PRESETS, NcaLaw
from megatron_nca.config.schema import to_dict
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.errors import ConfigError, DataError, explain
from megatron_nca.nca import complexity, rule, simulate
from megatron_nca.sources.writing import generate

__all__ = ["NcaSource", "generate", "identity"]

if TYPE_CHECKING:
    from megatron_nca.nca.bank import Bank

PATIENCE = 20_000
"""Candidates examined before an acceptance rate is called hopeless."""
MOST_CANDIDATES = 10**8
"""Where acceptance is rare (below 1e-3), a search expected to be longer than this is refused."""
BLOCK_CELL_UPDATES = 2**24
BLOCK_TOKENS = 2**22
PLAIN_ZLIB = (
    "law: outside the fast filter (score_dtype int32, tokens that are compressed below 65,536, at most 4,096 bytes of "
    "them), so zlib compresses every candidate; which rules pass is the same"
)


class NcaSource:
    """The sequences of a law at a seed. Raises ConfigError for a band that no rule can meet.

    `bank` gives the scores in place of rollouts, without changing a byte; raises DataError if it is of other settings,
    or holds too few rules of the band and may not be extended. `extend_bank`: blocks beyond its end are added to it.
    `device`: what rolls candidates out and, without a bank, scores them; the bytes are the same.
    """

    kind = "nca"

    def __init__(
        self,
        law: NcaLaw,
        num_sequences: int,
        seed: int,
        *,
        threads: int = 1,
        bank: "Bank | None" = None,
        extend_bank: bool = False,
        device: simulate.Device = "cpu",
    ) -> None:
        for name, value in (("sequences", num_sequences), ("threads", threads)):
            if value < 1:
                raise ConfigError(explain(name, value, "must be at least 1.", "give a positive number."))
        if device != "cpu" and law.emitted_rollout != "fresh":
            reason = f"is not offered on the device {device}."
            raise ConfigError(explain("law.emitted_rollout", law.emitted_rollout, reason, "use the cpu, or fresh."))
        rule.check_seed(seed)
        rule.params_of(law)
        self.fast_filter = simulate.covers(law)
        """Whether candidates are judged without running zlib on each."""
        complexity.check_zlib()
        complexity.check_band(law)
        self.law = law
        self.band = complexity.official_band(law)
        """Open interval of official ratios, whatever scale the law gives it in."""
        self.num_tokens, self.vocab_size, self.trajectory = law.num_tokens, law.vocab_size, Trajectory.of_law(law)
        self.num_sequences = num_sequences
        self.seed = seed
        self.threads = threads
        self.device = device
        self.num_rules = min(law.num_rules or num_sequences, num_sequences)
        self.examined = 0
        """Candidates up to and including the last that was needed."""
        self.accepted = 0
        self._rules = np.empty(0, dtype=np.int64)
        """Candidates (num_rules,) of the rules, once all are found."""
        self._bank = bank
        self._extend_bank = extend_bank
        self._bank_end = 0
        if bank is not None:
            bank.check(law, seed)
            self._bank_end = bank.end
            if not extend_bank:
                self._check_bank(bank)

    def blocks(self) -> Iterator[np.ndarray]:
        """Tokens (n, document_tokens) in order of sequences; n may be 0. Raises DataError if rules are too rare."""
        found = []
        for candidates, tokens in self._accepted_rules(with_documents=True):
            found.append(candidates)
            yield tokens
        self._rules = np.concatenate(found)
        size = max(1, BLOCK_TOKENS // self.law.document_tokens)
        for first in range(self.num_rules, self.num_sequences, size):
            yield self.sequences(np.arange(first, min(first + size, self.num_sequences)))

    def search(self) -> Iterator[int]:
        """Find all rules without making a sequence; yields the candidates examined so far, for progress.

        After that `sequences` gives any of them. Raises DataError if rules are too rare.
        """
        found = []
        for candidates, _ in self._accepted_rules(with_documents=False):
            found.append(candidates)
            yield self.examined
        self._rules = np.concatenate(found)

    def adopt(self, accepted: np.ndarray, examined: int) -> bool:
        """Take over what was found elsewhere: the `accepted` ones, in order, of the first `examined` candidates.

        Returns whether these are all the rules that are needed. Raises DataError if they are too rare.
        """
        self._rules = accepted[: self.num_rules]
        self.accepted = len(self._rules)
        whole = self.accepted == self.num_rules
        self.examined = int(self._rules[-1]) + 1 if whole else examined
        self._check_hope()
        return whole

    def sequences(self, index: np.ndarray) -> np.ndarray:
        """Tokens (n, document_tokens) of the sequences `index` (n,), in any order, once all rules are found."""
        return self._documents(self._rules[index % self.num_rules], index // self.num_rules)

    def identity(self) -> dict:
        """The settings that decide every byte of the dataset."""
        return identity(self.law, self.num_sequences, self.seed)

    def origin(self) -> dict:
        """What made the data; complete once `blocks` is exhausted."""
        calibrated = self.law.band_scale == "calibrated"
        return {
            **self.identity(),
            "band_bytes": list(complexity.band_bytes(self.law)),
            "uniform_ratio": complexity.uniform_ratio(self.law) if calibrated else None,
            "rules": self.num_rules,
            "candidates_examined": self.examined,
            "candidates_accepted": self.accepted,
        }

    def acceptance(self, first: int, count: int) -> np.ndarray:
        """Boolean (count,): which of the candidates first .. first + count - 1 lie in the band."""
        if self._bank is None:
            how = {"band": self.band, "threads": self.threads, "device": self.device}
            return simulate.accept(self.law, self.seed, first, count, **how)
        if self._extend_bank and first + count > self._bank_end:
            size = self._bank.block_size
            numbers = range(first // size, -(-(first + count) // size))
            list(self._bank.fill(numbers, threads=self.threads, mend=False))
            self._bank_end = self._bank.end
        return complexity.in_band(self._bank.ratios(first, count), self.band)

    def _check_bank(self, bank: "Bank") -> None:
        """Raises DataError if too few of the candidates that `bank` has in order lie in the band."""
        found = bank.accepted(self.band, self.num_rules)
        if found < self.num_rules:
            raise DataError(
                explain(
                    "bank",
                    str(bank.path),
                    f"{found:,} of its {self._bank_end:,} candidates lie in the band {list(self.band)}, "
                    f"so it can give {found:,} sequences, not {self.num_sequences:,}.",
                    "fill it further with `megatron-nca bank fill`, or let this command do it with --extend-bank.",
                )
            )

    def _documents(self, candidates: np.ndarray, repeats: np.ndarray) -> np.ndarray:
        how = {"threads": self.threads, "device": self.device}
        return simulate.documents(self.law, self.seed, candidates, repeats, **how)

    def _accepted_rules(self, with_documents: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """(candidates, the first document of each), block by block, until all that are needed are found."""
        first = 0
        works_ahead = self.device != "cpu" and self._bank is None
        for count, numbers, tokens in self._search_on_device() if works_ahead else self._search(with_documents):
            numbers = numbers[: self.num_rules - self.accepted]
            first += count
            self.accepted += len(numbers)
            done = self.accepted == self.num_rules
            self.examined = int(numbers[-1]) + 1 if done else first
            yield numbers, tokens[: len(numbers)] if with_documents else None
            if done:
                return
            self._check_hope()

    def _search(self, with_documents: bool) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        first = 0
        while True:
            count = self._block_size(first)
            numbers = first + np.flatnonzero(self.acceptance(first, count))
            numbers = numbers[: self.num_rules - self.accepted]
            yield count, numbers, self._documents(numbers, np.zeros_like(numbers)) if with_documents else None
            first += count

    def _search_on_device(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        try:
            yield from simulate.search(self.law, self.seed, self.band, self.num_rules, threads=self.threads)
        except IndexError as error:
            raise self._out_of_candidates() from error

    def _block_size(self, first: int) -> int:
        """Candidates of the next block: some tenths of a second of work, and not many more than are still needed."""
        largest = self.largest_block
        rate = max(self.accepted / first, 1e-3) if first else 0.5
        size = int(min(largest, 1.1 * (self.num_rules - self.accepted) / rate + 64))
        if first < self._bank_end:
            size = min(size, self._bank_end - first)  # what the bank has, before anything is scored
        self.check_candidates(first + size)
        return size

    @property
    def largest_block(self) -> int:
        """Candidates that are some tenths of a second of work."""
        law = self.law
        updates = law.height * law.width * (law.burn_in_steps + law.score_frames * law.steps_per_frame)
        return max(64, min(BLOCK_CELL_UPDATES // updates, BLOCK_TOKENS // law.document_tokens))

    def check_candidates(self, end: int) -> None:
        """Raises DataError if candidates up to `end` do not exist."""
        if end > 2**32:
            raise self._out_of_candidates()

    def _out_of_candidates(self) -> DataError:
        reason, cure = "needs more than 2^32 candidates of one seed.", "make several datasets with different seeds."
        return DataError(explain("sequences", self.num_sequences, reason, cure))

    def _check_hope(self) -> None:
        if self.accepted == self.num_rules or self.examined < PATIENCE:
            return
        rate = self.accepted / self.examined
        if rate == 0 or (rate < 1e-3 and self.num_rules / rate > MOST_CANDIDATES):
            raise DataError(
                explain(
                    "law.band",
                    list(self.law.band),
                    f"{self.accepted} of the first {self.examined:,} candidates lie in it, so "
                    f"{self.num_rules:,} rules are out of reach.",
                    "widen the band; `megatron-nca generate --dry-run` shows how many candidates pass.",
                )
            )


def identity(law: NcaLaw, num_sequences: int, seed: int) -> dict:
    """The settings that decide every byte of a dataset; `preset` names the preset that the law is, if it is one."""
    preset = next((name for name, other in PRESETS.items() if other == law), None)
    return {
        "generator": "megatron_nca.nca",
        "law_version": LAW_VERSION,
        "preset": preset,
        "law": to_dict(law),
        "seed": seed,
        "sequences": num_sequences,
    }
