"""What became of the documents of a corpus, from the manifests of its datasets."""

from collections.abc import Sequence
from pathlib import Path

from megatron_nca.data.manifest import Manifest


def report(manifests: Sequence[Manifest], prefix: Path) -> str:
    """Lines for the user: of each dataset its size and what was left out of it, then the lines that were bad.

    Bytes a token: UTF-8 of the documents that were kept, over their tokens, ends of documents included.
    """
    lines = [_of_one(manifest, prefix) for manifest in manifests]
    return "\n".join([*lines, of_input(manifests[0].origin)])


def of_input(origin: dict) -> str:
    """The line about those that were bad."""
    return (f"input: {origin['lines']:,} lines, of which {origin['left_out_lines']:,} were bad and left out"
            + "".join(f"; {reason}: {number:,}" for reason, number in origin["left_out_by_reason"].items()))


def _of_one(manifest: Manifest, prefix: Path) -> str:
    origin = manifest.origin
    part = "" if origin["part"] == "train" else f"_{origin['part']}"
    line = (f"{prefix}{part}_{origin['json_key']}_document: {manifest.documents:,} documents, "
            f"{manifest.tokens:,} tokens, "
            f"{origin['text_bytes'] / manifest.tokens:.3f} bytes of text a token, {origin['unknown_tokens']:,} unknown "
            f"tokens ({100 * origin['unknown_tokens'] / manifest.tokens:.4f} %), unigram entropy "
            f"{manifest.unigram_entropy_nats:.4f} nats; left out: {origin['empty_documents']:,} empty documents")
    if origin["deduplicate"]:
        line += f", {origin['duplicate_documents']:,} duplicates"
    return line
