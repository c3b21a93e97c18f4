"""data/verify.py on what Megatron's own builder writes, without a manifest: sound ones, and ids that are too large."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("megatron.core")

from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_nca import files
from megatron_nca.data import verify as module
from megatron_nca.data.manifest import part
from megatron_nca.data.verify import verify
from megatron_nca.errors import DataError


def built(prefix: Path, dtype: type, documents: list[list[list[int]]]) -> Path:
    """Documents of sequences of ids, as Megatron-LM's preprocess_data.py makes them."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for sequences in documents:
        ids = [token for sequence in sequences for token in sequence]
        builder.add_document(np.array(ids, dtype=dtype), [len(sequence) for sequence in sequences])
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_a_megatron_dataset_is_reported(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(module, "CHUNK_TOKENS", 3)
    prefix = built(tmp_path / "text", dtype, [[[1, 2, 3], [4]], [[5, 6, 7, 8, 9]], [[200], []]])
    said = verify(prefix)
    assert "3 documents, 5 sequences, 10 tokens of " + np.dtype(dtype).name in said and "ids 1..200." in said
    assert "sequences of 0 to 5 tokens, median 1" in said and "1 sequences are empty" in said
    assert "documents of 1 to 2 sequences" in said and "has no manifest" in said and "--vocab-size" in said
    assert files.sha256(part(prefix, "bin")) in said
    assert "Sound: structure and ids below 201. It has no manifest" in verify(prefix, 201)
    with pytest.raises(DataError, match=r"text.bin: holds token 200, which is outside 0..199"):
        verify(prefix, 200)


def test_negative_ids_and_a_cut_file_are_named(tmp_path):
    prefix = built(tmp_path / "text", np.int32, [[[1, -2, 3]]])
    with pytest.raises(DataError, match="holds token -2, which is negative"):
        verify(prefix)
    part(prefix, "bin").write_bytes(part(prefix, "bin").read_bytes()[:-1])
    with pytest.raises(DataError, match="has 11 bytes, but its index says 3 tokens of 4 bytes"):
        verify(prefix)
