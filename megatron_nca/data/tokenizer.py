"""Sentencepiece models that keep a text's layout: training, the check of the round trip, loading."""

import io
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from megatron_nca import files
from megatron_nca.data.corpus import parse_line, read_lines
from megatron_nca.errors import DataError, explain

BYTE_PIECES = 256
SPECIAL_PIECES = 2
"""<unk> 0 and </s> 1, the end of a document."""
SPACE_SYMBOL = "\u2581"
"""Sentencepiece writes a space so; in a text it cannot be told from one."""
BLOCK_CHARACTERS = 2_000
"""Training text is cut into blocks of this many characters, since sentencepiece sorts and counts per sentence."""
PROBE = ("def f(x):\n\tif x:  # two  spaces\r\n\t\treturn 0\n\n\n    "
         "'\u00e9\u4e2d\U0001f600\0' </s> <0x0A> \u00a0 e\u0301 \ufb01 \n")
CHECKED_CHARACTERS = 4_000_000


def train(source: Path, vocab_size: int, megabytes: float = 10.0, key: str = "text") -> tuple[bytes, int]:
    """Train a BPE model on the texts of a JSONL file: (the model, documents with U+2581 that the check left out).

    Layout is kept: identity normalisation, no dummy prefix, extra white space kept, byte fallback. At most about
    `megabytes` million characters are held, taken evenly from the whole file; the same input gives the same model.
    Raises DataError for a vocabulary too small or too large for the text, and if the round trip is not the identity.
    """
    least = BYTE_PIECES + SPECIAL_PIECES
    if vocab_size <= least:
        raise DataError(explain("--vocab-size", vocab_size, f"byte fallback alone takes {least} pieces.",
                                "512 or more is usual."))
    if not megabytes > 0:
        raise DataError(explain("--train-megabytes", megabytes, "must be positive.", "10 is usual."))
    characters = sum(len(text) for text in _texts(source, key))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_thinned(_blocks(source, key), megabytes * 1e6 / max(characters, 1)), model_writer=model,
            model_type="bpe", vocab_size=vocab_size, normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_by_whitespace=True,
            byte_fallback=True, split_digits=True, unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, num_threads=1,
            minloglevel=2, max_sentence_length=4 * BLOCK_CHARACTERS)
    except RuntimeError as error:
        said = str(error).rpartition("] ")[2].strip() or str(error)
        raise DataError(explain("--vocab-size", vocab_size, f"sentencepiece refuses this text: {said}",
                                "choose a size within these limits, or give more text.")) from error
    return model.getvalue(), check_round_trip(model.getvalue(), _texts(source, key), characters)


def check_round_trip(model: bytes, texts: Iterator[str], characters: int) -> int:
    """Raise DataError unless decode(encode(text)) is text, on a probe and on whole texts taken evenly from `texts`.

    `characters` is the sum of their lengths. Texts with U+2581 are left out; returns their number.
    """
    processor = parse(model)
    left_out = 0
    for text in [PROBE, *_thinned(texts, CHECKED_CHARACTERS / max(characters, 1))]:
        if SPACE_SYMBOL in text:
            left_out += 1
            continue
        back = processor.decode(processor.encode(text))
        if back != text:
            at = next((i for i, (a, b) in enumerate(zip(back, text, strict=False)) if a != b), len(back))
            raise DataError(f"the tokenizer does not keep a text's layout: {text[at:at + 20]!r} came back as "
                            f"{back[at:at + 20]!r}. Cure: train it with identity normalisation and byte "
                            "fallback, as train_tokenizer.py does.")
    return left_out


def save(model: bytes, prefix: Path) -> None:
    """Write PREFIX.vocab (piece, tab, score; control characters escaped) and, last, PREFIX.model. Raises DataError."""
    processor = parse(model)
    pieces = range(processor.get_piece_size())
    lines = [f"{_escape(processor.id_to_piece(i))}\t{processor.get_score(i):g}" for i in pieces]
    files.write_text(Path(f"{prefix}.vocab"), "\n".join(lines) + "\n")
    with files.publish(Path(f"{prefix}.model")) as aside:
        aside.write_bytes(model)


def _escape(piece: str) -> str:
    return piece.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def load(path: Path) -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece model from a file. Raises DataError if it is missing or no such model."""
    foreign = f"{path}: is no sentencepiece model. Cure: give a .model made by data_tools/train_tokenizer.py."
    try:
        content = Path(path).read_bytes()
        if not content:  # sentencepiece would take it for "load later"
            raise DataError(foreign)
        return parse(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). "
                        "Cure: make it with data_tools/train_tokenizer.py.") from error
    except RuntimeError as error:
        raise DataError(foreign) from error


def parse(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """A model that is in memory."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _texts(source: Path, key: str) -> Iterator[str]:
    for number, line in read_lines(source):
        yield parse_line(source, number, line, [key])[0]


def _blocks(source: Path, key: str) -> Iterator[str]:
    for text in _texts(source, key):
        for start in range(0, len(text), BLOCK_CHARACTERS):
            yield text[start : start + BLOCK_CHARACTERS]


def _thinned(items: Iterator[str], share: float) -> Iterator[str]:
    """That share of the items, spread evenly; all of them if it is 1 or more."""
    for number, item in enumerate(items):
        if share >= 1 or int((number + 1) * share) > int(number * share):
            yield item
