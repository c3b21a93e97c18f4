"""Tokenizer files of Hugging Face folders: of a sentencepiece model, so that AutoTokenizer loads it, or a folder's."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from megatron_nca.config.model import ModelConfig
from megatron_nca.convert.hf_config import read_json
from megatron_nca.data import tokenizer as sentencepiece_models
from megatron_nca.errors import CheckpointError, explain

MODEL_FILE, SETTINGS_FILE, GENERATION_FILE = "tokenizer.model", "tokenizer_config.json", "generation_config.json"
_VOCABULARIES = ("tokenizer.json", MODEL_FILE, "vocab.json")
"""One of these makes a folder a tokenizer's."""
FILES = (*_VOCABULARIES, SETTINGS_FILE, "special_tokens_map.json", "added_tokens.json", "merges.txt",
         "chat_template.jinja", GENERATION_FILE)
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class TokenizerFiles:
    """Name -> content, and what config.json is to say of special tokens."""

    contents: dict[str, bytes] = field(default_factory=dict)
    special: dict[str, object] = field(default_factory=dict)


NONE = TokenizerFiles()


def notes(folder: Path) -> list[str]:
    """What a user should know of the tokenizer of a folder whose weights are taken."""
    found = [name for name in FILES if (folder / name).is_file()]
    return [f"{', '.join(found)} stay in {folder}: training needs token numbers only, give the folder as --tokenizer "
            "when the weights go back"] if found else []


def collect(path: Path, model: ModelConfig) -> TokenizerFiles:
    """The files for a tokenizer at `path`: a sentencepiece model, or a folder that has one of its own kind.

    Raises ConfigError or DataError if it is none, CheckpointError if it has more tokens than the model.
    """
    return _from_folder(path, model) if path.is_dir() else _from_sentencepiece(path, model)


def _check_size(path: Path, tokens: int, model: ModelConfig) -> None:
    if tokens > model.vocab_size:
        raise CheckpointError(explain("--tokenizer", str(path), f"has {tokens:,} tokens, the model "
                                      f"{model.vocab_size:,}.", "give the tokenizer that the model was trained with."))


def _from_sentencepiece(path: Path, model: ModelConfig) -> TokenizerFiles:
    processor = sentencepiece_models.load(path)
    _check_size(path, processor.get_piece_size(), model)
    numbers = {"bos": processor.bos_id(), "eos": processor.eos_id(), "pad": processor.pad_id(),
               "unk": processor.unk_id()}
    pieces = {f"{name}_token": processor.id_to_piece(number) if number >= 0 else None
              for name, number in numbers.items()}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": False, "add_eos_token": False,
                "add_prefix_space": processor.encode("a", out_type=str)[0].startswith("\u2581"),
                "clean_up_tokenization_spaces": False, "spaces_between_special_tokens": False, **pieces}
    special = {key: number if (number := numbers[key[:3]]) >= 0 else None for key in _SPECIAL}
    contents = {MODEL_FILE: path.read_bytes(), SETTINGS_FILE: _json(settings), GENERATION_FILE: _json(special)}
    return TokenizerFiles(contents, special)


def _from_folder(path: Path, model: ModelConfig) -> TokenizerFiles:
    contents = {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}
    if not any(name in contents for name in _VOCABULARIES):
        raise CheckpointError(explain("--tokenizer", str(path), f"holds none of {', '.join(_VOCABULARIES)}.",
                                      "give a sentencepiece model or the folder of a tokenizer."))
    settings = read_json(path / SETTINGS_FILE) if SETTINGS_FILE in contents else {}
    if "auto_map" in settings:
        raise CheckpointError(explain("--tokenizer", str(path), f"{SETTINGS_FILE} asks for code of its own (auto_map).",
                                      "give a tokenizer of a class that transformers has."))
    if "tokenizer.json" in contents:
        values = read_json(path / "tokenizer.json")
        vocabulary, added = values.get("model", {}).get("vocab", {}), values.get("added_tokens", [])
        numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else range(len(vocabulary))
        _check_size(path, 1 + max([*numbers, *(token["id"] for token in added)], default=-1), model)
    elif MODEL_FILE in contents:
        _check_size(path, sentencepiece_models.load(path / MODEL_FILE).get_piece_size(), model)
    special: dict[str, object] = {}
    for name in ("config.json", GENERATION_FILE):
        if (path / name).is_file():
            special |= {key: value for key, value in read_json(path / name).items() if key in _SPECIAL}
    return TokenizerFiles(contents, special)


def _json(values: dict) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
