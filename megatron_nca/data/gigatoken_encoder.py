"""The package gigatoken: the tokens of a Hugging Face tokenizer in a fiftieth of the time.

Megatron-LM's main branch has it behind `--use-gigatoken` (tools/preprocess_data_fast.py). It is young, so it is held
against the package tokenizers: on a probe when it is loaded, and on a share of the texts while it works.
"""

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megatron_nca.data.ragged import Ragged
from megatron_nca.data.tool import needed_for
from megatron_nca.errors import DataError, explain

FLAG = "--use-gigatoken"
CHECKED, CHECKED_CHARACTERS = 256, 2000
"""Of each so many texts the beginning of one is encoded by both."""
PROBE = [
    "It's 1234567 o'clock, WE'LL see;\tit isn\u2019t\u00a0so.\r\n\r\n   def f(x): return x**2  # \u00fc\n\n\n",
    "cafe\u0301 \u4e2d\u6587\u5b57 \u0e20\u0e32\u0e29\u0e32 \u0441\u043b\u043e\u0432\u043e \U0001f469\u200d\U0001f680"
    "\u2028\u3000\u0130\u017f \ufffd\x00\x7f",
    "<|endoftext|><s></s><unk>[CLS] <|im_start|> a<|endoftext|>b",
    " ", "\n", "   \n  x", "a" * 300, "  " * 200, "!?" * 150, "1" * 100,
]
"""Contractions, digits, white space of all kinds, scripts, what looks like special tokens, and long runs."""



def version() -> str:
    """Of the installed package. Raises DataError where it is not."""
    with needed_for(FLAG):
        import gigatoken  # noqa: F401 - the error names it
    return importlib.metadata.version("gigatoken")


def load(path: Path, slow: Callable[[list[str]], Sequence[Sequence[int]]]) -> Callable[[list[str]], Ragged]:
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

    seen = 0

    def encode(texts: list[str]) -> Ragged:
        nonlocal seen
        chosen = [text[:CHECKED_CHARACTERS] for text in texts[-seen % CHECKED :: CHECKED]]
        seen += len(texts)
        return encode_and_check(texts, chosen)

    def encode_and_check(texts: list[str], chosen: list[str]) -> Ragged:
        # In one call, which costs half a millisecond, and as bytes, since str takes longer.
        found = fast.encode_batch([text.encode() for text in (*texts, *chosen)]).layout
        offsets, tokens = np.asarray(found.offsets.data), np.asarray(found.content.data).view(np.int32)
        for number, (text, wanted) in enumerate(zip(chosen, slow(chosen), strict=True), len(texts)):
            if tokens[offsets[number] : offsets[number + 1]].tolist() != list(wanted):
                raise DataError(explain(FLAG, True, f"with {path} gigatoken {version()} gives other tokens than "
                                        f"tokenizers for the text that begins with {text[:60]!r}.", "leave it out."))
        offsets = offsets[: len(texts) + 1]
        return Ragged(tokens[offsets[0] : offsets[-1]], np.diff(offsets))

    encode_and_check([], PROBE)
    return encode
