"""Parameters, FLOPs and memory by formula against slower ways to say the same; no Megatron is needed."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_nca.account import devices, flops, layout, memory, parameters
from megatron_nca.config.model import ModelShape
from megatron_nca.config.parallel import ParallelConfig, Recompute
from megatron_nca.errors import ConfigError
from megatron_nca.initialise import tensor_table
from megatron_nca.mcore.model_reference import LlamaReference

SMALL = ModelShape(
    num_layers=3, hidden_size=64, num_heads=4, num_query_groups=2, ffn_hidden_size=160, sequence_length=32
).with_vocabulary(300)
PAPER = ModelShape(
    num_layers=24, hidden_size=2048, num_heads=32, ffn_hidden_size=8192, sequence_length=1024
).with_vocabulary(64_000)


def test_the_layout_settings_are_those_that_the_account_knows():
    """Another axis would have to be counted in `account/layout.py` first."""
    known = {"tensor", "pipeline", "data", "sequence_parallel", "context", "virtual_pipeline"}
    known |= {"recompute", "overlap_grad_reduce", "overlap_param_gather"}  # of one rank's work, not of where things are
    known |= {"engine", "zero_stage"}  # DeepSpeed's memory is not estimated (cli/estimate.py)
    assert {field.name for field in dataclasses.fields(ParallelConfig)} <= known


def test_parameters_of_the_papers_model():
    counted = parameters.parameters(PAPER)
    # 1,610,713,088 outside the vocabulary, and 1,872,857,088 in all: what the released classes hold.
    assert (counted.body, counted.total) == (1_610_713_088, 1_872_857_088)


@pytest.mark.parametrize("model", [SMALL, PAPER], ids=["small", "paper"])
def test_parameters_are_those_of_the_table_of_tensors(model):
    sizes: dict[str, int] = {}
    for tensor in tensor_table(model):
        part = tensor.component if tensor.layer is None else "layers"
        sizes[part] = sizes.get(part, 0) + tensor.size
    assert dataclasses.asdict(parameters.parameters(model)) == sizes


@pytest.mark.parametrize("split", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_the_stages_hold_the_whole_model(split):
    tensor, pipeline = split
    shape = ParallelConfig(tensor=tensor, pipeline=pipeline)
    stages = [sum(map(sum, parameters.stage_tensors(SMALL, shape, stage))) for stage in range(pipeline)]
    norms = (2 * SMALL.num_layers + 1) * SMALL.hidden_size  # every tensor-parallel rank has its own
    assert tensor * sum(stages) == parameters.parameters(SMALL).total + (tensor - 1) * norms


def test_flops_are_what_torch_counts_in_the_plain_model():
    """Attention as matrix products, so that all are counted; the mask does not make torch's count smaller."""
    plain, tokens = LlamaReference(SMALL), torch.zeros(2, SMALL.sequence_length, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = plain(tokens, tokens).mean()
        forward = counter.get_total_flops()
        loss.backward()
    both = flops.flops_per_token(SMALL, causal=False) * tokens.numel()
    assert forward == both / flops.FORWARD_AND_BACKWARD
    assert counter.get_total_flops() == both


def test_the_causal_mask_halves_attention_only():
    attention = 12 * SMALL.num_layers * SMALL.hidden_size * SMALL.sequence_length
    assert flops.flops_per_token(SMALL, causal=False) - flops.flops_per_token(SMALL) == attention // 2
    counted = parameters.parameters(SMALL)
    norms = (2 * SMALL.num_layers + 1) * SMALL.hidden_size
    assert flops.flops_per_token(SMALL) == 6 * (counted.total - counted.embedding - norms) + attention // 2


def test_device_hours():
    assert flops.device_hours(36 * 10**15, peak_flops=1e13, mfu=0.5) == 2.0
    assert devices.DEVICES["h100"].peak_flops("bf16") == devices.DEVICES["h100"].peak_flops("fp16") == 989.4e12
    assert devices.DEVICES["h100"].peak_flops("fp32") == pytest.approx(66.9e12)
    assert devices.DEVICES["cpu"].peak_flops("bf16") is None


def test_a_world_holds_whole_copies_of_the_model():
    split = ParallelConfig(tensor=2, pipeline=3)
    assert layout.at_world_size(split, 24).data == 4
    for wrong in (0, -6, 5, 20):
        with pytest.raises(ConfigError, match=f"--world-size = {wrong}: .* = 6, .*for example (6|18)"):
            layout.at_world_size(split, wrong)


def outstanding(stages: int, stage: int, micro_batches: int) -> int:
    """Most micro-batches of a stage between forward and backward, by walking 1F1B clock by clock."""
    forward, backward = [0] * stages, [0] * stages
    most = 0
    while backward[0] < micro_batches:
        before = (list(forward), list(backward))
        for at in range(stages):
            ready_back = at == stages - 1 or before[1][at + 1] > backward[at]
            ready = forward[at] < micro_batches and (at == 0 or before[0][at - 1] > forward[at])
            full = forward[at] - backward[at] >= stages - at
            if ready_back and backward[at] < forward[at] and (full or forward[at] == micro_batches):
                backward[at] += 1
            elif ready and not full:
                forward[at] += 1
        most = max(most, forward[stage] - backward[stage])
    return most


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 9])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_micro_batches_in_flight_by_walking_the_schedule(stages, micro_batches):
    split = ParallelConfig(pipeline=stages)
    for stage in range(stages):
        found = memory.chunks_in_flight(split, stage, micro_batches)
        assert found == outstanding(stages, stage, micro_batches)


def test_recomputation_and_sequence_parallelism_keep_less():
    deep, wide = dataclasses.replace(SMALL, num_layers=12), ParallelConfig(tensor=2, pipeline=3)
    changes = (
        {"sequence_parallel": True},
        {"recompute": Recompute(granularity="full")},
        {"recompute": Recompute(granularity="full", method="block", layers=2)},
        {"recompute": Recompute(granularity="selective", modules=("mlp",))},
        {"context": 2},
    )
    plain = memory.memory(deep, wide, "bf16", 2, 8)
    for change in changes:
        other = memory.memory(deep, dataclasses.replace(wide, **change), "bf16", 2, 8)
        for stage, less in zip(plain, other, strict=True):
            assert less.activations + less.recomputed < stage.activations, change
            assert (less.recomputed > 0) == ("recompute" in change)
            assert less.weights == stage.weights and less.total < stage.total
    assert [stage.logits > 0 for stage in plain] == [False, False, True]


def test_optimizer_states_are_shared_out_and_gradients_are_not():
    alone, many = (memory.memory(PAPER, ParallelConfig(data=data), "bf16", 1, 1)[0] for data in (1, 64))
    assert many.gradients == alone.gradients == 4 * alone.parameters
    assert many.moments == alone.moments // 64 == 8 * alone.parameters // 64
    assert many.main_weights == alone.main_weights // 64
    assert memory.memory(PAPER, ParallelConfig(), "fp32", 1, 1)[0].main_weights == 0
