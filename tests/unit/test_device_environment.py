"""When CUDA_DEVICE_MAX_CONNECTIONS is set, and that a user's own value stays and is spoken of."""

import os

import pytest
import torch

from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.mcore.device_environment import CONNECTIONS, choose, prepare

TP, CP, PP = ParallelConfig(tensor=2), ParallelConfig(context=2), ParallelConfig(pipeline=2, data=2)
HOPPER, BLACKWELL = 9, 10


@pytest.mark.parametrize(("layout", "capability", "value"), [
    (TP, HOPPER, "1"), (CP, HOPPER, "1"), (TP, None, "1"), (TP, BLACKWELL, None), (CP, 12, None), (PP, HOPPER, None),
])
def test_it_is_set_where_megatron_demands_it(layout, capability, value):
    found, note = choose(layout, capability, {})
    assert found == value
    assert (note is None) == (value is None) and (value is None or f"{CONNECTIONS} set to 1" in note)


def test_a_value_of_the_users_stays_and_is_spoken_of_if_it_contradicts():
    assert choose(TP, HOPPER, {CONNECTIONS: "1"}) == (None, None)
    value, note = choose(TP, HOPPER, {CONNECTIONS: "8"})
    assert value is None and note.startswith(f"warning: {CONNECTIONS} = 8") and "Cure: unset it" in note
    value, note = choose(PP, HOPPER, {CONNECTIONS: "1"})
    assert value is None and "does not need" in note
    assert choose(PP, HOPPER, {CONNECTIONS: "8"}) == (None, None)


def test_nothing_is_set_without_a_gpu(monkeypatch):
    if torch.cuda.device_count():
        pytest.skip("this machine has a GPU")
    monkeypatch.delenv(CONNECTIONS, raising=False)
    assert prepare(TP) is None and CONNECTIONS not in os.environ
