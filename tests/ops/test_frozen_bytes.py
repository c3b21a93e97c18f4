"""The bytes of a dataset are the same for ever: where a digest changes, LAW_VERSION must be raised."""

import hashlib

import numpy as np
import pytest
from test_generator import LAWS

from megatron_nca import ops
from megatron_nca.config.law import LAW_VERSION
from megatron_nca.nca import simulate

VERSION = 2
DIGESTS = {
    "released": "e51d0f4af49e",
    "two states": "7da6e0220d2e",
    "all other settings": "8bbded0d028d",
    "emits what was scored": "7700caf9efc9",
    "most states": "5e276710d59f",
    "a grid that fills no vector": "ff08dc3499f4",
    "rows longer than a vector": "023d0f1e32f9",
}
"""First digits of the sha256 of scores and documents of a few candidates, as little-endian numbers."""


@pytest.mark.parametrize("kernel", ops.kernel_names())
@pytest.mark.parametrize("name", LAWS)
def test_bytes_are_those_of_this_version(name, kernel):
    law = LAWS[name]
    candidates = np.concatenate([np.arange(60), np.arange(2**32 - 4, 2**32)])
    scores = simulate.score(law, 7, 0, 400, threads=2, kernel=kernel)
    documents = simulate.documents(law, 7, candidates, candidates % 3, threads=2, kernel=kernel)
    sizes = np.rint(scores * 1000).astype("<i8").tobytes()
    digest = hashlib.sha256(sizes + documents.astype("<u4").tobytes()).hexdigest()[:12]
    assert (LAW_VERSION, digest) == (VERSION, DIGESTS[name])
