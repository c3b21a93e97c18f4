"""Tokenizers of the tiktoken library: a file of byte sequences in the order of their merges, and what it does not say.

Ids are those of Megatron-Core's TikTokenizer (megatron/core/tokenizers/text/libraries/tiktoken_tokenizer.py, 0.16.1):
first the special tokens, then the byte sequences by rank. So they are larger than tiktoken's own by the number of
special tokens.
"""

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_nca.data.tool import needed_for
from megatron_nca.errors import DataError, explain

PATTERNS = {
    "v1": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "v2": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
          r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""How a text is cut into the words within which bytes merge, by Megatron's names."""
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
END = "</s>"


@dataclass(frozen=True, kw_only=True)
class TiktokenRules:
    """Defaults are Megatron's."""

    pattern: str = "v2"
    """v1 or v2, or the regular expression itself."""
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    num_special_tokens: int = 1000
    """Ids kept for special tokens; those without a name are <SPECIAL_id>."""
    vocab_size: int = 1 << 17
    """Special tokens included; of the file the first ranks are used."""

    def __post_init__(self) -> None:
        names = self.special_tokens
        if len(set(names)) != len(names) or not set(SPECIAL_TOKENS) <= set(names):
            raise DataError(explain("--tiktoken-special-tokens", list(names), "must be distinct and hold Megatron's "
                                    f"own, {' '.join(SPECIAL_TOKENS)}.", "add what is missing."))
        if not len(names) <= self.num_special_tokens < self.vocab_size:
            raise DataError(explain("--tiktoken-num-special-tokens", self.num_special_tokens,
                                    f"must be {len(names)} or more and below --vocab-size {self.vocab_size}.",
                                    "1000 is Megatron's."))


def load(path: Path, rules: TiktokenRules) -> tuple[int, int, int, Callable]:
    """(vocabulary, id of the end, id of unknown, encode) of a .tiktoken file or of Megatron's .json. Raises DataError.

    `encode` takes a list of texts. What looks like a special token in them is text; Megatron's takes it for one.
    """
    encoding = _open(path, rules)

    def encode(texts: list[str]) -> list[list[int]]:
        return [_encode(encoding, path, text) for text in texts]

    return rules.vocab_size, rules.special_tokens.index(END), rules.special_tokens.index("<unk>"), encode


def decoder(path: Path, rules: TiktokenRules) -> Callable[[list[int]], str]:
    """Ids back to text, special tokens by their names. Raises DataError."""
    return _open(path, rules).decode


def _open(path: Path, rules: TiktokenRules) -> object:
    """A tiktoken.Encoding with Megatron's ids. Raises DataError."""
    with needed_for("TikTokenizer"):
        import tiktoken
    first = rules.num_special_tokens
    sequences = _read(path)[: rules.vocab_size - first]
    if len(sequences) != rules.vocab_size - first:
        raise DataError(explain("--vocab-size", rules.vocab_size, f"{path} has {len(sequences)} byte sequences, which "
                                f"make {len(sequences) + first} ids with {first} special tokens.",
                                f"--vocab-size {len(sequences) + first}."))
    ranks = {sequence: first + rank for rank, sequence in enumerate(sequences)}
    if len(ranks) != len(sequences) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise DataError(f"{path}: names a byte sequence twice, or lacks a single byte. Cure: fetch it again.")
    names = [*rules.special_tokens, *(f"<SPECIAL_{number}>" for number in range(len(rules.special_tokens), first))]
    try:
        return tiktoken.Encoding(path.name, pat_str=PATTERNS.get(rules.pattern, rules.pattern), mergeable_ranks=ranks,
                                 special_tokens={name: number for number, name in enumerate(names)})
    except ValueError as error:
        raise DataError(explain("--tiktoken-pattern", rules.pattern, f"is no regular expression ({error}).",
                                "v1 or v2, or one that the library reads.")) from error


def _encode(encoding: object, path: Path, text: str) -> list[int]:
    try:
        return encoding.encode_ordinary(text)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what its compiled part raises, no Exception; it has no name here
            raise
        raise DataError(f"{path}: tiktoken fails at a text of {len(text):,} characters that begins with {text[:60]!r}: "
                        f"{str(error)[:100]}. A run of about a million spaces does this. Cure: take the text out, or "
                        "use another tokenizer.") from error


def _read(path: Path) -> list[bytes]:
    """The byte sequences by rank, from 0."""
    try:
        if path.suffix == ".json":
            entries = [(entry["rank"], entry["token_bytes"]) for entry in json.loads(path.read_bytes())]
        else:
            pairs = (line.split() for line in path.read_bytes().splitlines() if line)
            entries = [(int(rank), sequence) for sequence, rank in pairs]
        sequences = [base64.b64decode(sequence, validate=True) for _, sequence in entries]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Cure: check --tokenizer-model.") from error
    except (ValueError, TypeError, KeyError, binascii.Error) as error:
        raise DataError(f"{path}: is no file of tiktoken's ranks ({error!r}). Cure: give a .tiktoken file with a "
                        "base64 sequence and its rank a line, or Megatron's .json.") from error
    if [rank for rank, _ in entries] != list(range(len(entries))):
        raise DataError(f"{path}: its ranks are not 0, 1, 2 and on. Cure: fetch it again.")
    return sequences
