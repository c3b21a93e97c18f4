"""Buckets of the loss by position: frames where there are any, eighths elsewhere."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("megatron.core")

from megatron_nca.config.law import NcaLaw
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.mcore.datasets import Datasets
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
