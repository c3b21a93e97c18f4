"""33 MB of real text that every machine with the pinned packages has: the source of two pure-Python wheels."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("sympy", "transformers")
"""sympy 1.14.0 whole; transformers 4.57.6 but its folder of models. Their wheels are the same for every Python."""
SHA256 = "3885a70b5fa0c8d3ac6e764c9941a4ad18791ed7641afd7cea423b0cf78879c5"
SMALL_SHA256 = "3c70585375d697f123b840e477a35083826ad8cdcbfbf2abb464e2fb0c16a722"
SMALL = 400_000
"""Bytes of JSONL, from the beginning to the end of a line, that are tested each time."""


def documents() -> Iterator[str]:
    """The .py files by their paths, but those where the two tools differ: a file without a character, of which
    Megatron-LM's keeps a document without a sequence, and the two that name the end of a document, which Megatron-LM's
    GPT2BPETokenizer takes for one."""
    for package in PACKAGES:
        root = Path(importlib.util.find_spec(package).origin).parent
        paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
        for name in sorted(paths):
            if (package, name.split("/")[0]) != ("transformers", "models") and paths[name].stat().st_size:
                text = paths[name].read_bytes().decode("utf-8")
                if "<|endoftext|>" not in text:
                    yield text


def write(path: Path, size: int | None = None) -> str:
    """Write the first `size` bytes or a little more as JSONL; returns the sha256."""
    digest, written = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for text in documents():
            line = json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
            file.write(line)
            digest.update(line)
            written += len(line)
            if size is not None and written >= size:
                break
    return digest.hexdigest()


if __name__ == "__main__":
    import sys

    print(write(Path(sys.argv[1])))
