"""The package gigatoken: the tokens of a Hugging Face tokenizer in a fiftieth of the time.

Megatron-LM's main branch has it behind `--use-gigatoken` (tools/preprocess_data_fast.py). It is young, so it is held
against the package tokenizers: on a probe when it is loaded, and on a share of the texts while it works.
"""

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from megatron_nca.data.tool import needed_for
from megatron_nca.errors import DataError, explain

FLAG = "--use-gigatoken"
CHECKED = 256
"""Of each so many texts one is encoded by both; by tokenizers alone it would take a fiftieth of the time of all."""
PROBE = [
    "It's 1234567 o'clock, WE'LL see;\tit isn\u2019t\u00a0so.\r\n\r\n   def f(x): return x**2  # \u00fc\n\n\n",
    "cafe\u0301 \u4e2d\u6587\u5b57 \u0e20\u0e32\u0e29\u0e32 \u0441\u043b\u043e\u0432\u043e \U0001f469\u200d\U0001f680"
    "\u2028\u3000\u0130\u017f \ufffd\x00\x7f",
    "<|endoftext|><s></s><unk>[CLS] <|im_start|> a<|endoftext|>b",
    " ", "\n", "   \n  x", "a" * 300, "  " * 200, "!?" * 150, "1" * 100,
]
"""Contractions, digits, white space of all kinds, scripts, what looks like special tokens, and long runs."""

Ids = Sequence[int] | np.ndarray
Encode = Callable[[list[str]], Iterable[Ids]]


def version() -> str:
    """Of the installed package. Raises DataError where it is not."""
    with needed_for(FLAG):
        import gigatoken  # noqa: F401 - the error names it
    return importlib.metadata.version("gigatoken")


def load(path: Path, slow: Encode) -> Encode:
    """Encoder of a tokenizer.json with the tokens of `slow`, its encoder by tokenizers. Special tokens in a text are
    text. Raises DataError for a tokenizer that the package cannot read, or reads otherwise."""
    with needed_for(FLAG):
        import gigatoken
    described = json.loads(path.read_text(encoding="utf-8"))
    described["added_tokens"] = [each for each in described.get("added_tokens", []) if not each.get("special")]
    try:
        fast = gigatoken.Tokenizer.from_json(json.dumps(described))
    except Exception as error:  # of its compiled part, plain ValueError and others
        reason = str(error).partition("\n")[0]
        raise DataError(explain(FLAG, True, f"it cannot read {path} ({reason}).", "leave it out.")) from error

    def encode(texts: list[str]) -> list[np.ndarray]:
        ragged = fast.encode_batch(texts).layout
        tokens, ends = np.asarray(ragged.content.data), np.asarray(ragged.offsets.data)
        return np.split(tokens[ends[0] : ends[-1]].astype(np.int32), ends[1:-1] - ends[0]) if texts else []

    return _Checked(path, encode, slow)


class _Checked:
    """`encode`, held against `slow`."""

    def __init__(self, path: Path, encode: Encode, slow: Encode) -> None:
        self._path, self._encode, self._slow = path, encode, slow
        self._seen = 0
        self._compare(PROBE, encode(PROBE))

    def __call__(self, texts: list[str]) -> list[Ids]:
        encoded = self._encode(texts)
        chosen = range(-self._seen % CHECKED, len(texts), CHECKED)
        self._seen += len(texts)
        self._compare([texts[index] for index in chosen], [encoded[index] for index in chosen])
        return encoded

    def _compare(self, texts: list[str], found: list[Ids]) -> None:
        for text, ids, wanted in zip(texts, found, self._slow(texts), strict=True):
            if list(ids) != list(wanted):
                raise DataError(explain(FLAG, True, f"with {self._path} gigatoken {version()} gives other tokens than "
                                        f"tokenizers for the text that begins with {text[:60]!r}.", "leave it out."))
