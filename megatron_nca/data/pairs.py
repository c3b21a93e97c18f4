"""Fine-tuning data: pairs of a prompt and an answer as two indexed datasets of the same lengths.

PREFIX_text_document holds prompt, answer and end of each pair; PREFIX_loss_mask holds 1 for each token of the answer
and for the end, 0 for the prompt. The manifest of the first names the second by its hash, and training scores only
tokens that have a one. Prompt and answer are encoded each by itself, so that no token is of both.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from megatron_nca import files
from megatron_nca.data import bad_lines, selection, stale, stretches
from megatron_nca.data.encoders import Encoder, TokenizerFiles
from megatron_nca.data.given import check_file, described
from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.data.manifest import Manifest
from megatron_nca.data.parts import Counts
from megatron_nca.data.stretches import Bad
from megatron_nca.errors import DataError, explain

LAYOUTS = ("gsm8k", "bigbench", "keys")
TEXT, MASK = "_text_document", "_loss_mask"
BATCH = 256
"""Pairs that are encoded at once."""
Writers = tuple[IndexedWriter, IndexedWriter]
"""Of a part, its text and its mask."""
_BIGBENCH_PREFIXES = {"example_input_prefix": "\nQ: ", "example_output_prefix": "\nA: "}
"""Where a task names none (BIG-bench's own defaults)."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What decides the datasets."""

    inputs: tuple[Path, ...]
    tokenizer: TokenizerFiles
    layout: Literal["gsm8k", "bigbench", "keys"]
    """gsm8k: lines with `question` and `answer`. bigbench: a task.json with `examples`. keys: lines with `keys`."""
    keys: tuple[str, str] | None = None
    between: str = "\n"
    """What stands after the prompt, and belongs to it; of bigbench the task's own prefixes do instead."""
    on_bad_line: Literal["stop", "skip", "quarantine"] = "stop"
    """As of a corpus; a pair whose answer has no tokens is bad too."""
    hold_out: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if (self.keys is not None) != (self.layout == "keys"):
            raise DataError(explain("--json-keys", self.keys and list(self.keys), "is for --layout keys, and needed "
                                    "there.", "name the keys of prompt and answer with that layout."))
        selection.check_hold_out(self.hold_out)
        for path in self.inputs:
            check_file(path)
        for each in () if self.layout == "bigbench" else stretches.recognise(self.inputs):
            if each.kind == "text":
                raise DataError(f"{each.path}: is plain text and has no keys of prompt and answer. "
                                "Cure: give JSONL or Parquet.")

    def read(self) -> Iterator[tuple[str, str] | Bad]:
        """All prompts, as they are to be encoded, with their answers, or what is wrong with them. Raises DataError."""
        if self.layout == "bigbench":
            for path in self.inputs:
                yield from _bigbench(path)
            return
        keys = self.keys or ("question", "answer")
        for stretch in stretches.cut(stretches.recognise(self.inputs), stretches.LARGEST):
            for document in stretches.documents(stretch, keys):
                yield document if isinstance(document, Bad) else (document[0] + self.between, document[1])

    def origin(self) -> dict:
        return {"inputs": list(map(described, self.inputs)), "tokenizer": self.tokenizer.fingerprint(),
                "layout": self.layout, "json_keys": self.keys and list(self.keys), "between": self.between,
                "on_bad_line": self.on_bad_line, "hold_out": dict(self.hold_out)}


def mask_prefix(text_prefix: Path) -> Path:
    """Where the loss mask of a dataset lies that has one. Raises DataError if its name is not PREFIX_text_document."""
    name = text_prefix.name
    if not name.endswith(TEXT):
        raise DataError(f"{text_prefix}: has a loss mask, and so must be called PREFIX{TEXT}, beside PREFIX{MASK}. "
                        "Cure: give it its old name back.")
    return text_prefix.with_name(name.removesuffix(TEXT) + MASK)


def make_pairs(settings: Pairs, output_prefix: Path) -> list[Manifest]:
    """Write both datasets of each part, the mask's first; returns the manifests of the texts. Raises DataError."""
    encoder = settings.tokenizer.load()
    if encoder.eod is None:
        raise DataError(f"{settings.tokenizer.files[0]}: has no end-of-sentence token, so no answer would have an end. "
                        "Cure: use a tokenizer that has one.")
    names = [selection.TRAIN, *(name for name, _ in settings.hold_out)]
    prefixes = [Path(f"{output_prefix}{'' if name == selection.TRAIN else f'_{name}'}") for name in names]
    origin, manifests, counts = settings.origin(), [], Counts()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(Path(output_prefix)))  # writers remove what they take for a killed one's
        writers = [tuple(stack.enter_context(IndexedWriter(Path(f"{prefix}{what}"), size))
                         for what, size in ((TEXT, encoder.vocab_size), (MASK, 2))) for prefix in prefixes]
        with bad_lines.kept(output_prefix, settings.on_bad_line) as rejected:
            answers = _write(settings, encoder, writers, counts, rejected)
            _check_parts(settings, names, writers, counts)
        origin |= counts.left_out()
        datasets = [writer.prefix for both in writers for writer in both]
        before = [*map(stale.origin_of, datasets), *stale.remove_datasets(output_prefix, datasets, _names)]
        bad_lines.remove_stale(output_prefix, before, settings.on_bad_line)
        for name, count, (text, mask) in zip(names, answers, writers, strict=True):
            of_mask = mask.finish({"kind": "loss_mask", "vocab_size": 2, "origin": {**origin, "part": name}})
            said = {"part": name, "answer_tokens": count, "loss_mask": {"bin_sha256": of_mask.files["bin"].sha256}}
            manifests.append(text.finish({"kind": "corpus", "vocab_size": encoder.vocab_size,
                                          "origin": {**origin, **said}}))
    if counts.bad:
        print(bad_lines.summary(counts), file=sys.stderr)
    return manifests


@contextlib.contextmanager
def _alone(prefix: Path) -> Iterator[None]:
    """No other run writes at the prefix, or a text would stand beside the mask of another. Raises DataError."""
    path = prefix.with_name(f".{prefix.name}.pairs.lock")
    lock = files.hold(path, prefix)
    try:
        yield
    finally:
        files.remove(path)
        if lock is not None:
            os.close(lock)


def _names(origin: dict) -> list[str]:
    """Of a part that was held out."""
    return [f"_{origin.get('part')}{what}" for what in (TEXT, MASK)] if "layout" in origin else []


def _check_parts(settings: Pairs, names: Sequence[str], writers: Sequence[Writers], counts: Counts) -> None:
    bad_lines.refuse_all_bad(settings.inputs[0], counts)
    for name, (text, _) in zip(names, writers, strict=True):
        if not text.documents:
            raise DataError(f"{settings.inputs[0]}: leaves the part {name!r} without a pair. "
                            "Cure: give more pairs, or another --hold-out.")


def _write(settings: Pairs, encoder: Encoder, writers: Sequence[Writers], counts: Counts,
           rejected: BinaryIO | None) -> list[int]:
    """All pairs, each to the writers of its part; returns the scored tokens of each part."""
    shares, scored = [share for _, share in settings.hold_out], [0] * len(writers)
    for numbers, pairs in _batches(settings, counts, rejected):
        digests = b"".join(selection.digest([prompt.encode(), answer.encode()]) for prompt, answer in pairs)
        parts = selection.parts_of(selection.as_digests(digests), shares)
        prompts, answers = (encoder.encode(list(texts)).tolist() for texts in zip(*pairs, strict=True))
        for part, prompt, answer, number, pair in zip(parts, prompts, answers, numbers, pairs, strict=True):
            if not len(answer):
                reason = (f"{settings.inputs[0]}: pair {number} of the input has the empty answer {pair[1]!r}. "
                          "Cure: take it out.")
                raw = files.json_text(pair).encode()
                bad_lines.leave_out(Bad("an empty answer", reason, raw), settings.on_bad_line, counts, rejected)
                continue
            text, mask = writers[part]
            text.add_document(np.array([*prompt, *answer, encoder.eod]))
            mask.add_document(np.repeat([0, 1], [len(prompt), len(answer) + 1]))
            scored[part] += len(answer) + 1
    return scored


def _batches(settings: Pairs, counts: Counts,
             rejected: BinaryIO | None) -> Iterator[tuple[list[int], list[tuple[str, str]]]]:
    """Pairs with their numbers in the input, from 1."""
    numbers, batch = [], []
    for pair in settings.read():
        if batch and (isinstance(pair, Bad) or len(batch) == BATCH):  # one before a bad one may be bad itself
            yield numbers, batch
            numbers, batch = [], []
        counts.documents += 1
        if isinstance(pair, Bad):
            bad_lines.leave_out(pair, settings.on_bad_line, counts, rejected)
        else:
            numbers.append(counts.documents)
            batch.append(pair)
    if batch:
        yield numbers, batch


def _bigbench(path: Path) -> Iterator[tuple[str, str] | Bad]:
    """The examples of a task: the first `target`, or the first of the choices with the highest `target_scores`."""
    try:
        task = json.loads(path.read_bytes())
        examples = task["examples"]
        before, after = (task.get(name, default) for name, default in _BIGBENCH_PREFIXES.items())
        if not isinstance(examples, list) or not isinstance(before, str) or not isinstance(after, str):
            raise TypeError("examples must be a list, prefixes text")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Cure: check --input.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: is no task of BIG-bench ({error!r}). "
                        "Cure: give a task.json with examples.") from error
    for number, example in enumerate(examples):
        try:
            if "target" in example:
                target = example["target"]
                answer = target if isinstance(target, str) else target[0]
            else:
                answer = max(example["target_scores"], key=example["target_scores"].get)
            prompt = f"{before}{example['input']}{after}"
            if not isinstance(example["input"], str) or not isinstance(answer, str):
                raise TypeError("input and answer must be text")
            (prompt + answer).encode()
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            reason = f"{path}: example {number} has no input and target ({error!r}). Cure: take it out."
            yield Bad("no input and target", reason, json.dumps(example).encode())
        else:
            yield prompt, answer
