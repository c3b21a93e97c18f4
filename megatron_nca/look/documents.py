"""A document of a corpus as text, whoever made the corpus."""

from pathlib import Path

from megatron_nca.data.encoders import TokenizerFiles, decoder
from megatron_nca.data.indexed import IndexedReader
from megatron_nca.data.manifest import Manifest, part
from megatron_nca.errors import DataError, explain


def document(prefix: Path, index: int, tokenizer: TokenizerFiles | None) -> tuple[str, str | None]:
    """(text, note) of the document of that number: all its sequences, decoded, or as bare ids without a tokenizer.

    The note, None if all is known, says that nobody has recorded the tokenizer. Raises DataError for a number that is
    not there, a tokenizer that did not make the dataset, or an id that it does not have.
    """
    reader = IndexedReader(prefix)
    bounds = reader.document_bounds
    if not 0 <= index < len(bounds) - 1:
        reason = f"{prefix} holds documents 0..{len(bounds) - 2}."
        raise DataError(explain("--document", index, reason, "choose another."))
    ids = [int(token) for number in range(bounds[index], bounds[index + 1]) for token in reader[number]]
    if tokenizer is None:
        return " ".join(map(str, ids)), None
    note = None
    if part(prefix, "json").exists():
        _check(prefix, Manifest.load(prefix), tokenizer)
    else:
        note = f"{prefix}: has no manifest, so whether this tokenizer made it is not known"
    size = tokenizer.load().vocab_size
    if ids and max(ids) >= size:
        reason = f"document {index} of {prefix} holds the id {max(ids)}, and it has {size}."
        raise DataError(explain("--tokenizer-type", tokenizer.type, reason, "give the tokenizer that made it."))
    return decoder(tokenizer)(ids), note


def _check(prefix: Path, manifest: Manifest, tokenizer: TokenizerFiles) -> None:
    files = ", ".join(path.name for path in tokenizer.files)
    stated, cure = manifest.tokenizer_sha256, "give the one that made it."
    if stated is None:
        raise DataError(explain("--tokenizer-type", tokenizer.type, f"{prefix} was not made of text.", "leave it out."))
    if stated != tokenizer.fingerprint()["sha256"]:
        reason = f"{prefix} was made with another tokenizer than {files} (sha256 {stated[:12]}...)."
        raise DataError(explain("--tokenizer-type", tokenizer.type, reason, cure))
