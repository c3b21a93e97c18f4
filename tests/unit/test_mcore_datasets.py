"""Buckets of the loss by position: frames where there are any, eighths elsewhere."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("megatron.core")

from megatron_nca.config.law import NcaLaw
from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.data.manifest import Manifest
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.errors import DataError
from megatron_nca.mcore.datasets import Datasets, _check_matching
from megatron_nca.sources.counter import whole


def buckets(trajectory: Trajectory | None, sequence_length: int) -> tuple[int, np.ndarray]:
    datasets = Datasets.__new__(Datasets)
    datasets.manifest, datasets.sequence_length = SimpleNamespace(trajectory=trajectory), sequence_length
    return datasets.bucket_tokens, datasets.buckets


def test_buckets():
    width, of_text = buckets(None, 64)
    assert width == 8 and of_text.tolist() == [i // 8 for i in range(64)]
    width, of_brackets = buckets(whole(64), 64)
    assert width == 8 and of_brackets.tolist() == of_text.tolist()
    law = NcaLaw(num_states=2, height=8, width=8, sequence_length=64)
    width, of_frames = buckets(Trajectory.of_law(law), 64)
    assert width == 18 and of_frames.tolist() == [(i + 1) // 18 for i in range(64)]


def test_training_and_validation_of_two_tokenizers_are_refused(tmp_path):
    for name, tokenizer in (("train", "a"), ("validation", "b")):
        with IndexedWriter(tmp_path / name, 300) as writer:
            writer.add_document(np.arange(250))
            writer.finish({"kind": "corpus", "vocab_size": 300, "origin": {"tokenizer": {"sha256": tokenizer}}})
    manifests = {name: Manifest.load(tmp_path / name) for name in ("train", "validation")}
    with pytest.raises(DataError, match=r"its tokenizer_sha256 is 'b', but that of .*train is 'a'"):
        _check_matching(Path("train"), manifests["train"], Path("validation"), manifests["validation"])
