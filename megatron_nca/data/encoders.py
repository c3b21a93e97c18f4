"""Tokenizers that users have, by Megatron-LM's names for them, as encoders of batches of texts.

Text is only text: what looks like a special token in it is encoded letter by letter, so no document can hold an end of
document. Beginning-of-sentence tokens are never added.
"""

import functools
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_nca import files, ops
from megatron_nca.data import gigatoken_encoder, tiktoken_files, tokenizer
from megatron_nca.data.ragged import Ragged
from megatron_nca.data.tiktoken_files import TiktokenRules
from megatron_nca.data.tool import needed_for
from megatron_nca.errors import DataError, explain

SENTENCEPIECE, HUGGING_FACE, GPT2_BPE = "SentencePieceTokenizer", "HuggingFaceTokenizer", "GPT2BPETokenizer"
TIKTOKEN = "TikTokenizer"
TYPES = (SENTENCEPIECE, HUGGING_FACE, GPT2_BPE, TIKTOKEN)
GPT2_END = "<|endoftext|>"
GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts a text into the words within which it merges (Radford et al. 2019, released code); csrc/words.cpp does
it from a table of kinds."""
GPT2_KINDS = r"(\p{L}+)|(\p{N}+)|([^\s\p{L}\p{N}]+)"
CACHED_WORDS = 1 << 19
"""Words whose tokens are remembered; beyond them it begins anew, so that memory stays flat."""
LONGEST_CACHED = 64
SPACE = tokenizer.SPACE_SYMBOL

Lists = Callable[[list[str]], Sequence[Sequence[int]]]
"""A library's own encoder of texts."""


@dataclass(frozen=True)
class Encoder:
    """`encode(texts)` gives their tokens, ids in 0..vocab_size-1. `eod` and `unknown`: None where none."""

    vocab_size: int
    eod: int | None
    unknown: int | None
    encode: Callable[[list[str]], Ragged]


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """Which tokenizer, as on Megatron-LM's command line: `model` is a sentencepiece .model or a folder with
    tokenizer.json or a file of tiktoken's ranks; GPT2BPETokenizer has `vocab_file` and `merge_file` instead."""

    type: str
    model: Path | None = None
    vocab_file: Path | None = None
    merge_file: Path | None = None
    tiktoken: TiktokenRules | None = None
    """Of a TikTokenizer what its file does not say; None: the defaults."""
    gigatoken: bool = False
    """Let the package gigatoken encode for a HuggingFaceTokenizer: the same tokens, sooner."""

    def __post_init__(self) -> None:
        if self.gigatoken and self.type != HUGGING_FACE:
            raise DataError(explain(gigatoken_encoder.FLAG, True, f"{self.type} has no use for it; it is for "
                                    f"{HUGGING_FACE}.", "leave it out."))
        if self.tiktoken is not None and self.type != TIKTOKEN:
            raise DataError(explain("--tiktoken-*", "(given)", f"{self.type} has no use for it.", "leave it out."))
        wanted = ("vocab_file", "merge_file") if self.type == GPT2_BPE else ("model",)
        flags = {"model": "--tokenizer-model", "vocab_file": "--vocab-file", "merge_file": "--merge-file"}
        for name, flag in flags.items():
            path = getattr(self, name)
            if (path is not None) != (name in wanted):
                reason = f"{self.type} {'needs it' if name in wanted else 'has no use for it'}."
                cure = f"give {' and '.join(flags[each] for each in wanted)}."
                raise DataError(explain(flag, path and str(path), reason, cure))
            if path is not None and not path.exists():
                raise DataError(f"{path}: is missing. Cure: check {flag}.")

    @property
    def files(self) -> list[Path]:
        """Those that decide the tokens."""
        if self.type == GPT2_BPE:
            return [self.vocab_file, self.merge_file]
        return [_tokenizer_json(self.model)] if self.type == HUGGING_FACE else [self.model]

    def fingerprint(self) -> dict:
        """What the manifest of a dataset says of its tokenizer. Raises DataError."""
        digests = [files.sha256(path) for path in self.files]
        name = "+".join(path.name for path in self.files)
        found = {"type": self.type, "name": name, "sha256": "+".join(digests)}
        if self.type == TIKTOKEN:
            rules = vars(self.rules)
            found["sha256"] += "+" + hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
            found["rules"] = {**rules, "special_tokens": list(self.rules.special_tokens)}
        return found

    @property
    def rules(self) -> TiktokenRules:
        return self.tiktoken or TiktokenRules()

    def load(self) -> Encoder:
        """Raises DataError for files that are not of this type."""
        if self.type == TIKTOKEN:
            vocab_size, end, unknown, encode = tiktoken_files.load(self.model, self.rules)
            return Encoder(vocab_size, end, unknown, _ragged(encode))
        return {SENTENCEPIECE: _sentencepiece, HUGGING_FACE: _hugging_face, GPT2_BPE: _gpt2}[self.type](self)


def _sentencepiece(chosen: TokenizerFiles) -> Encoder:
    processor = tokenizer.load(chosen.model)
    end, unknown = processor.eos_id(), processor.unk_id()

    def encode(texts: list[str]) -> Ragged:  # arrays and one by one: lists, and its threads, cost half as much again
        return Ragged.joined([processor.encode(text, out_type="numpy") for text in texts])

    return Encoder(processor.get_piece_size(), end if end >= 0 else None, unknown if unknown >= 0 else None,
                   _by_words(chosen.model) or encode)


def _ragged(encode: Lists) -> Callable[[list[str]], Ragged]:
    return lambda texts: Ragged.of(encode(texts))


def _by_words(model: Path) -> Callable[[list[str]], Ragged] | None:
    """An encoder that remembers words, where that is exact; else None.

    It is for a BPE model none of whose pieces has a space after another character. A merge makes a piece, and a symbol
    that its user defined is one, so none crosses a place that no piece does: before a run of spaces, and between two
    kinds of characters that no piece has side by side. The parts of a normalised text between such places are encoded
    each by itself, by a copy of the model that leaves them as they are. Without byte fallback unknown characters side
    by side are one token, so a part that begins with it adds none to one that ends with it.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto, piece_type = sentencepiece_model_pb2.ModelProto(), sentencepiece_model_pb2.ModelProto.SentencePiece
    proto.ParseFromString(model.read_bytes())
    normal, trainer = proto.normalizer_spec, proto.trainer_spec
    bpe = trainer.model_type == trainer.BPE and not trainer.treat_whitespace_as_suffix
    if not (bpe and normal.escape_whitespaces):
        return None
    found_in_text = (piece_type.NORMAL, piece_type.UNUSED, piece_type.USER_DEFINED)
    kinds = _kinds_of([piece.piece for piece in proto.pieces if piece.type in found_in_text])
    if not kinds:
        return None
    whole, prefix = tokenizer.load(model), " " if normal.add_dummy_prefix else ""
    identity = normal.name == "identity" and not (normal.precompiled_charsmap or normal.remove_extra_whitespaces)
    proto.normalizer_spec.CopyFrom(sentencepiece_model_pb2.NormalizerSpec(
        name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, escape_whitespaces=True))
    proto.DiscardUnknownFields()  # tests of itself, which the copy would not pass
    words = functools.partial(tokenizer.parse(proto.SerializeToString()).encode, num_threads=1)  # cores have workers
    by_words = _remembering(kinds, False, words)

    def encode(texts: list[str]) -> Ragged:
        normalised = [text and prefix + text for text in texts] if identity else list(map(whole.normalize, texts))
        found = by_words(normalised)
        return found if trainer.byte_fallback else found.without_runs(whole.unk_id())

    return encode


_KINDS = (r"[^\W\d_]", r"\d", rf"[^\w {SPACE}\s]|_", rf"(?![ {SPACE}])\s")
"""Letters, digits, signs, white space but spaces: every character but a space is of one kind."""


def _kinds_of(pieces: list[str]) -> bytes | None:
    """For each code point 0 for a space, else the number of its kind: texts are cut where it changes and before a run
    of spaces, and no piece crosses such a place. None if a piece has a space after another character, or as itself."""
    kind_of = re.compile("|".join(f"({kind})" for kind in _KINDS))
    together = list(range(len(_KINDS)))
    for piece in pieces:
        if re.search(f"[^{SPACE}]{SPACE}| ", piece):
            return None
        kinds = [kind_of.match(character).lastindex - 1 for character in piece.lstrip(SPACE)]
        for one, other in itertools.pairwise(kinds):
            if together[one] != together[other]:
                together = [together[one] if each == together[other] else each for each in together]
    # Sentencepiece writes a space as U+2581, so a text's own U+2581 is a space to it too.
    return _table(re.compile("|".join(f"((?:{kind})+)" for kind in _KINDS)), [group + 1 for group in together])


def _table(runs: object, kinds: list[int]) -> bytes:
    """For each code point the kind of the group of the pattern `runs` that finds it, or 0."""
    return _groups(runs).translate(bytes([0, *kinds]).ljust(256, b"\0"))


@functools.cache
def _groups(runs: object) -> bytes:
    """For each code point the number of the group that finds it, or 0; half a second for each pattern."""
    table = bytearray(sys.maxunicode + 1)
    for found in runs.finditer("".join(map(chr, range(sys.maxunicode + 1)))):
        table[found.start() : found.end()] = bytes([found.lastindex]) * (found.end() - found.start())
    return bytes(table)


def _remembering(kinds: bytes, gpt2: bool, encode: Lists) -> Callable[[list[str]], Ragged]:
    memory = ops.WordMemory(kinds, gpt2=gpt2, most_words=CACHED_WORDS, longest=LONGEST_CACHED)
    return lambda texts: Ragged(*memory.tokens(encode(memory.cut(texts))))


def _gpt2(chosen: TokenizerFiles) -> Encoder:
    with needed_for(chosen.type):
        import regex
        from tokenizers import Tokenizer, models, pre_tokenizers
    try:
        vocabulary = json.loads(chosen.vocab_file.read_text(encoding="utf-8"))
        model = models.BPE.from_file(str(chosen.vocab_file), str(chosen.merge_file))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{chosen.vocab_file}, {chosen.merge_file}: are no vocabulary and merges of a GPT-2 BPE "
                        f"({str(error)[:200]}). Cure: give its vocab.json and merges.txt.") from error
    bpe = Tokenizer(model)
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def encode(words: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in bpe.encode_batch(words, add_special_tokens=False)]

    return Encoder(max(vocabulary.values()) + 1, vocabulary.get(GPT2_END), None,
                   _remembering(_table(regex.compile(GPT2_KINDS), [1, 2, 3]), True, encode))


def _tokenizer_json(path: Path) -> Path:
    found = path / "tokenizer.json" if path.is_dir() else path
    if not found.is_file():
        raise DataError(f"{path}: holds no tokenizer.json. Cure: give the folder or file of a fast tokenizer.")
    return found


def _hugging_face(chosen: TokenizerFiles) -> Encoder:
    with needed_for(chosen.type):
        from tokenizers import Tokenizer
    path = _tokenizer_json(chosen.model)
    try:
        fast = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{path}: is no fast tokenizer ({str(error)[:200]}). Cure: give a tokenizer.json.") from error
    fast.encode_special_tokens = True
    fast.no_truncation()
    fast.no_padding()
    end, unknown = (_special(path.parent, fast, name) for name in ("eos_token", "unk_token"))

    def encode(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in fast.encode_batch_fast(texts, add_special_tokens=False)]

    vocabulary = fast.get_vocab(with_added_tokens=True)
    return Encoder(max(vocabulary.values()) + 1, end, unknown,
                   gigatoken_encoder.load(path, encode) if chosen.gigatoken else _ragged(encode))


def _special(folder: Path, fast: object, name: str) -> int | None:
    """Id of a special token, as the files beside tokenizer.json name it."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            token = json.loads((folder / file).read_text(encoding="utf-8")).get(name)
        except (OSError, ValueError, AttributeError):
            continue
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return fast.token_to_id(token)
    return None


def decoder(chosen: TokenizerFiles) -> Callable[[list[int]], str]:
    """Token ids back to text, special tokens by their names. Raises DataError for files that are not of this type."""
    chosen.load()  # whose checks name what is wrong
    if chosen.type == SENTENCEPIECE:
        return tokenizer.load(chosen.model).decode
    if chosen.type == TIKTOKEN:
        return tiktoken_files.decoder(chosen.model, chosen.rules)
    from tokenizers import Tokenizer, decoders, models

    if chosen.type == HUGGING_FACE:
        known = Tokenizer.from_file(str(_tokenizer_json(chosen.model)))
    else:
        known = Tokenizer(models.BPE.from_file(str(chosen.vocab_file), str(chosen.merge_file)))
        known.decoder = decoders.ByteLevel()
    return lambda ids: known.decode(ids, skip_special_tokens=False)
