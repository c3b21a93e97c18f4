"""What of a corpus is encoded and how, and one stretch of it as a folder of tokens."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from megatron_nca import files
from megatron_nca.data import bad_lines, gigatoken_encoder, selection, stretches
from megatron_nca.data.corpus import utf8_bytes
from megatron_nca.data.encoders import Encoder, TokenizerFiles
from megatron_nca.data.given import described
from megatron_nca.data.indexed import optimal_dtype
from megatron_nca.data.parts import RECORD, REJECTED, Counts
from megatron_nca.data.ragged import Ragged
from megatron_nca.data.stretches import Bad, Input, Stretch
from megatron_nca.errors import DataError, explain

BATCH_BYTES = 1 << 20
"""About as much text is encoded at once."""
DIGESTS = "digests"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What decides the output, and so what the origin in the manifest records."""

    inputs: tuple[Input, ...]
    tokenizer: TokenizerFiles
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = True
    on_bad_line: Literal["stop", "skip", "quarantine"] = "stop"
    """quarantine: left out as by skip, and kept with its reason in OUTPUT_PREFIX_rejected.jsonl."""
    hold_out: tuple[tuple[str, float], ...] = ()
    """Names and shares of the parts that are kept from training, drawn by the hash of the document."""
    deduplicate: bool = False
    """Of documents with equal texts keep the first."""
    longest_document: int = stretches.LONGEST
    """Bytes; a document, or the line that holds it, of more is a bad line."""

    def __post_init__(self) -> None:
        if self.longest_document < 1:
            raise DataError(explain("--longest-document", self.longest_document, "must be positive.",
                                    f"{stretches.LONGEST} bytes is the default."))
        if len(set(self.json_keys)) != len(self.json_keys):
            raise DataError(explain("--json-keys", list(self.json_keys), "names a key twice.", "name each once."))
        text = [each.path for each in self.inputs if each.kind == "text"]
        if len(self.json_keys) > 1 and text:
            raise DataError(f"{text[0]}: is plain text, a document without keys, and --json-keys names "
                            f"{len(self.json_keys)}. Cure: give JSONL or Parquet, or leave --json-keys out.")
        selection.check_hold_out(self.hold_out)

    @property
    def needs_digests(self) -> bool:
        return bool(self.hold_out) or self.deduplicate

    def identity(self, origin: dict, stretch: int) -> dict:
        """What decides the encoded stretches; not which of their documents are kept, and in which part."""
        chosen = {name: value for name, value in origin.items() if name not in ("hold_out", "deduplicate")}
        return {**chosen, "json_keys": self.json_keys, "stretch": stretch, "digests": self.needs_digests, "version": 2}

    def origin(self) -> dict:
        """As in the manifests, without the key and what is only known afterwards; hashes every input."""
        inputs = [described(each.path) for each in self.inputs]
        encoder = {"encoder": f"gigatoken {gigatoken_encoder.version()}"} if self.tokenizer.gigatoken else {}
        return {"inputs": inputs, "append_eod": self.append_eod, "on_bad_line": self.on_bad_line,
                "longest_document": self.longest_document, "hold_out": dict(self.hold_out),
                "deduplicate": self.deduplicate, "tokenizer": self.tokenizer.fingerprint(), **encoder}


def encode_stretch(settings: Preprocessing, encoder: Encoder, stretch: Stretch, folder: Path) -> Counts:
    """Write the tokens of a stretch into `folder`, whole or not at all. Raises DataError for a bad line, or an id that
    the tokenizer should not have."""
    with files.publish(folder) as aside:
        return write_stretch(settings, encoder, stretch, aside)


def write_stretch(settings: Preprocessing, encoder: Encoder, stretch: Stretch, aside: Path) -> Counts:
    """The same into a new folder that the caller publishes."""
    counts = Counts()
    dtype, keys = optimal_dtype(encoder.vocab_size), range(len(settings.json_keys))
    with contextlib.ExitStack() as opened:
        aside.mkdir(parents=True)

        def opens(name: str) -> BinaryIO:
            return opened.enter_context(open(aside / name, "wb"))

        tokens_of, lengths_of, bytes_of = ([opens(f"{key}.{what}") for key in keys]
                                           for what in ("tokens", "lengths", "bytes"))
        digests = opens(DIGESTS) if settings.needs_digests else None
        rejected = opens(REJECTED) if settings.on_bad_line == "quarantine" else None
        for batch in _batches(settings, stretch, counts, rejected):
            for key in keys:
                texts = [document[key] for document in batch.documents]
                encoded = _encoded(settings, encoder, texts)
                counts.tokens += len(encoded.tokens)
                tokens_of[key].write(encoded.tokens.astype(dtype))
                lengths_of[key].write(encoded.lengths)
                bytes_of[key].write(np.array([sizes[key] for sizes in batch.sizes], np.int64))
            if digests is not None:
                digests.write(b"".join(batch.digests))
        (aside / RECORD).write_text(json.dumps(vars(counts)), encoding="utf-8")
    return counts


@dataclass
class _Batch:
    """Documents that are encoded at once: of each its texts, their sizes in UTF-8 and, if needed, its hash."""

    documents: list[list[str]] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    held: int = 0
    """Bytes of text."""


def _batches(settings: Preprocessing, stretch: Stretch, counts: Counts,
             rejected: BinaryIO | None) -> Iterator[_Batch]:
    """All documents; bad ones are dealt with as the settings say."""
    batch = _Batch()
    for document in stretches.documents(stretch, settings.json_keys, settings.longest_document):
        counts.documents += 1
        if isinstance(document, Bad):
            bad_lines.leave_out(document, settings.on_bad_line, counts, rejected)
            continue
        sizes = list(map(utf8_bytes, document))
        batch.documents.append(document)
        batch.sizes.append(sizes)
        if settings.needs_digests:
            batch.digests.append(selection.digest([text.encode() for text in document]))
        batch.held += sum(sizes)
        if batch.held >= BATCH_BYTES:
            counts.text_bytes += batch.held
            yield batch
            batch = _Batch()
    counts.text_bytes += batch.held
    if batch.documents:
        yield batch


def _encoded(settings: Preprocessing, encoder: Encoder, texts: list[str]) -> Ragged:
    """Tokens of all texts; an empty one has none."""
    filled = np.array([bool(text) for text in texts])
    found = encoder.encode([text for text in texts if text]) if filled.any() else Ragged.of([])
    if settings.append_eod:
        found = found.ended(encoder.eod)
    tokens, lengths = found.tokens, np.zeros(len(texts), np.int32)
    lengths[filled] = found.lengths
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < encoder.vocab_size:
        raise DataError(f"{settings.tokenizer.files[0]}: gave the id {tokens.max()}, though it has "
                        f"{encoder.vocab_size} ids. Cure: use the tokenizer's own, unchanged files.")
    return Ragged(tokens, lengths)


def load_encoder(settings: Preprocessing) -> Encoder:
    """The tokenizer, checked against the settings. Raises DataError."""
    encoder = settings.tokenizer.load()
    if settings.append_eod and encoder.eod is None:
        raise DataError(explain("--append-eod", True, f"{settings.tokenizer.files[0]} has no end-of-sentence token.",
                                "use a tokenizer that has one, or leave the flag out."))
    return encoder
