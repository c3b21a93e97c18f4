"""What of a corpus is encoded and how, and one stretch of it as a folder of tokens."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_nca import files
from megatron_nca.data import encoders, stretches
from megatron_nca.data.encoders import Encoder, TokenizerFiles
from megatron_nca.data.indexed import optimal_dtype
from megatron_nca.data.stretches import Bad, Input, Stretch
from megatron_nca.errors import DataError, explain

BATCH_CHARACTERS = 1 << 18
"""About as much text is encoded at once."""
_RECORD, REJECTED = "record.json", "rejected.jsonl"
ON_BAD_LINE = ("stop", "skip", "quarantine")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What decides the output, and so what the origin in the manifest records."""

    inputs: tuple[Input, ...]
    tokenizer: TokenizerFiles
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = True
    on_bad_line: Literal["stop", "skip", "quarantine"] = "stop"
    """quarantine: left out as by skip, and kept with its reason in OUTPUT_PREFIX_rejected.jsonl."""

    def __post_init__(self) -> None:
        if len(set(self.json_keys)) != len(self.json_keys):
            raise DataError(explain("--json-keys", list(self.json_keys), "names a key twice.", "name each once."))

    def origin(self) -> dict:
        """As in the manifests, without the key and what is only known afterwards; hashes every input."""
        inputs = [{"name": each.path.name, "bytes": each.path.stat().st_size, "sha256": files.sha256(each.path)}
                  for each in self.inputs]
        return {"inputs": inputs, "append_eod": self.append_eod, "on_bad_line": self.on_bad_line,
                "tokenizer": self.tokenizer.fingerprint()}


@dataclass
class Counts:
    """Of a stretch, or of all of them."""

    documents: int = 0
    """Also those that are empty or bad."""
    characters: int = 0
    text_bytes: int = 0
    bad: int = 0
    first_bad: str | None = None
    empty: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """The last three of each key."""

    def __iadd__(self, other: "Counts") -> "Counts":
        for name in ("documents", "characters", "text_bytes", "bad"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_bad = self.first_bad or other.first_bad
        for name in ("empty", "unknown", "tokens"):
            mine, theirs = getattr(self, name) or [0] * len(getattr(other, name)), getattr(other, name)
            setattr(self, name, [a + b for a, b in zip(mine, theirs, strict=True)])
        return self


class Parts:
    """PREFIX.parts: the encoded stretches that are there. Those of other settings are removed."""

    def __init__(self, path: Path, identity: dict) -> None:
        self.path = path
        text = json.dumps(identity, sort_keys=True)
        record = path / "identity.json"
        if record.is_file() and record.read_text(encoding="utf-8") != text:
            print(f"{path}: were made from another input, tokenizer or setting; they are removed.", file=sys.stderr)
            files.remove(path)
        if not record.is_file():
            files.write_text(record, text)
        for left in path.glob(".*.tmp"):  # by a process that was killed
            files.remove(left)

    def folder(self, number: int) -> Path:
        return self.path / f"{number:06d}"

    def counts(self, number: int) -> Counts | None:
        """Of a stretch that is there."""
        try:
            return Counts(**json.loads((self.folder(number) / _RECORD).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None


def encode_stretch(settings: Preprocessing, encoder: Encoder, stretch: Stretch, folder: Path) -> Counts:
    """Write the tokens of a stretch into `folder`, whole or not at all. Raises DataError for a bad line, or an id that
    the tokenizer should not have."""
    counts = Counts(empty=[0] * len(settings.json_keys), unknown=[0] * len(settings.json_keys),
                    tokens=[0] * len(settings.json_keys))
    dtype = optimal_dtype(encoder.vocab_size)
    with files.publish(folder) as aside, contextlib.ExitStack() as opened:
        aside.mkdir(parents=True)
        outputs = [[opened.enter_context(open(aside / f"{key}.{what}", "wb")) for what in ("tokens", "lengths")]
                   for key in range(len(settings.json_keys))]
        rejected = opened.enter_context(open(aside / REJECTED, "w", encoding="utf-8"))
        for batch in _batches(settings, stretch, counts, rejected):
            for key, column in enumerate(zip(*batch, strict=True)):
                texts = [text for text in column if text]
                tokens, lengths = _encoded(settings, encoder, texts)
                counts.empty[key] += len(column) - len(lengths)
                counts.tokens[key] += len(tokens)
                if encoder.unknown is not None:
                    counts.unknown[key] += int(np.count_nonzero(tokens == encoder.unknown))
                outputs[key][0].write(tokens.astype(dtype).tobytes())
                outputs[key][1].write(lengths.tobytes())
        (aside / _RECORD).write_text(json.dumps(vars(counts)), encoding="utf-8")
    return counts


def _batches(settings: Preprocessing, stretch: Stretch, counts: Counts, rejected: object) -> Iterator[list[list[str]]]:
    """Documents in lists that are encoded at once; bad ones are dealt with as the settings say."""
    batch, held = [], 0
    for document in stretches.documents(stretch, settings.json_keys):
        counts.documents += 1
        if isinstance(document, Bad):
            if settings.on_bad_line == "stop":
                raise DataError(document.reason)
            counts.bad += 1
            counts.first_bad = counts.first_bad or document.reason
            if settings.on_bad_line == "quarantine":
                raw = document.raw.decode("utf-8", "backslashreplace")
                rejected.write(json.dumps({"reason": document.reason, "raw": raw}) + "\n")
            continue
        size = sum(map(len, document))
        counts.characters += size
        counts.text_bytes += sum(len(text.encode()) for text in document)
        batch.append(document)
        held += size
        if held >= BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _encoded(settings: Preprocessing, encoder: Encoder, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of all texts one after another and their lengths; texts that have none are left out."""
    encoded = [ids for ids in encoder.encode(texts) if ids]
    if settings.append_eod:
        encoded = [[*ids, encoder.eod] for ids in encoded]
    tokens, lengths = encoders.flat(encoded)
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < encoder.vocab_size:
        raise DataError(f"{settings.tokenizer.files[0]}: gave the id {tokens.max()}, though it has "
                        f"{encoder.vocab_size} ids. Cure: use the tokenizer's own, unchanged files.")
    return tokens, lengths


def load_encoder(settings: Preprocessing) -> Encoder:
    """The tokenizer, checked against the settings. Raises DataError."""
    encoder = settings.tokenizer.load()
    if settings.append_eod and encoder.eod is None:
        raise DataError(explain("--append-eod", True, f"{settings.tokenizer.files[0]} has no end-of-sentence token.",
                                "use a tokenizer that has one, or leave the flag out."))
    return encoder
