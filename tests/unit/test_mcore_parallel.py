"""What parallel training sets up in Megatron, in one process: schedules, the batch ramp, split attention, fp8."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from megatron_nca.config.batch_size import BatchSizes
from megatron_nca.config.model import ModelConfig
from megatron_nca.config.parallel import ParallelConfig, Recompute
from megatron_nca.config.recipe import OptimizerConfig, Phase
from megatron_nca.errors import ConfigError
from megatron_nca.mcore import attention, cpu, stack, watchdog
from megatron_nca.mcore.engine import Engine, build_engine, read_ranks
from megatron_nca.mcore.model import transformer_config

cpu.install()
MODEL = ModelConfig(num_layers=8, hidden_size=32, num_heads=4, ffn_hidden_size=64, sequence_length=24, vocab_size=9)


def phase(**values: object) -> Phase:
    common = {"dataset": "x", "iterations": 9, "global_batch_size": 4, "micro_batch_size": 1, "validation_sequences": 4}
    return Phase(**{**common, "optimizer": OptimizerConfig(lr=1e-3), "precision": "fp32", **values})


def configuration(**layout: object) -> object:
    values = phase(parallel=ParallelConfig(**layout))
    return transformer_config(MODEL, values, stack.choose(values))


def test_virtual_stages_never_batch_their_messages() -> None:
    """Megatron's default, batched, gives wrong gradients at PP2 with virtual stages and says nothing."""
    interleaved = configuration(pipeline=2, virtual_pipeline=2)
    assert (interleaved.overlap_p2p_comm, interleaved.batch_p2p_comm) == (True, False)
    assert interleaved.virtual_pipeline_model_parallel_size == 2
    plain = configuration(pipeline=2)
    assert (plain.overlap_p2p_comm, plain.batch_p2p_comm) == (False, True)
    assert plain.virtual_pipeline_model_parallel_size is None


def test_recomputation_reaches_megatron() -> None:
    full = configuration(recompute=Recompute(granularity="full", method="block", layers=3))
    assert (full.recompute_granularity, full.recompute_method, full.recompute_num_layers) == ("full", "block", 3)
    parts = configuration(recompute=Recompute(granularity="selective", modules=("mlp",)))
    assert (parts.recompute_granularity, parts.recompute_modules) == ("selective", ["mlp"])
    assert configuration().recompute_granularity is None


@pytest.mark.parametrize("ramp", [(4, 4, 48), (8, 8, 1000), (4, 12, 7), (2, 2, 99_991)])
def test_the_ramp_is_that_of_megatrons_calculator(ramp: tuple[int, int, int]) -> None:
    """Where a step begins exactly, Megatron's division in floating point may begin it one sequence later."""
    from megatron.core import num_microbatches_calculator

    calculator = getattr(num_microbatches_calculator, "RampupBatchsizeNumMicroBatchesCalculator", None)
    if calculator is None:
        pytest.skip("Megatron-Core 0.19 has another ramp, by a schedule of steps; this is that of 0.16")
    start, increment, sequences = ramp
    final = start + 13 * increment if sequences >= 13 else start + increment
    ours = BatchSizes(final, ramp)
    theirs = calculator(final, 1, 1, False, 1, start, increment, sequences)
    steps = (final - start) // increment
    for consumed in {*range(min(sequences, 1100) + 3), *range(0, sequences + 99, 97)}:
        if consumed * steps % sequences:
            theirs.update(consumed, consistency_check=True)
            assert ours.at(consumed) == theirs.current_global_batch_size, consumed


@pytest.mark.parametrize(("ranks", "groups"), [(2, 4), (3, 2)], ids=["multi-head", "grouped-query"])
def test_attention_over_a_split_sequence_is_that_of_the_whole(
    ranks: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks in one process: what Megatron would gather is handed over."""
    length, batch, heads, size = 24, 2, 4, 8
    generator = torch.Generator().manual_seed(0)
    shapes = [(length, batch, n, size) for n in (heads, groups, groups)]
    whole = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    held = [attention.held_positions(length, ranks, rank) for rank in range(ranks)]
    assert torch.cat(held).sort().values.equal(torch.arange(length))
    gathered = torch.cat([torch.cat(whole[1:], dim=-1)[positions] for positions in held])
    region = SimpleNamespace(gather_from_sequence_parallel_region=lambda local, group: gathered)
    monkeypatch.setattr(attention, "tensor_parallel", region)

    result = torch.empty(length, batch, heads * size)
    for rank, positions in enumerate(held):
        part = attention.SdpaAttention.__new__(attention.SdpaAttention)
        torch.nn.Module.__init__(part)
        part.config = SimpleNamespace(attention_dropout=0.0)
        part.context = SimpleNamespace(size=lambda: ranks, rank=lambda rank=rank: rank)
        result[positions] = part(*(tensor[positions] for tensor in whole), None)
    weights = torch.randn(result.shape, generator=generator)
    found = [result.detach(), *torch.autograd.grad((result * weights).sum(), whole)]

    query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in whole)
    plain = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    plain = plain.permute(2, 0, 1, 3).flatten(2)
    expected = [plain.detach(), *torch.autograd.grad((plain * weights).sum(), whole)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_megatron_slices_rotary_angles_in_the_order_of_our_tokens() -> None:
    """It does so before our rotation sees them."""
    from megatron.core.models.common.embeddings.rotary_pos_embedding import get_pos_emb_on_this_cp_rank

    angles = torch.arange(24.0).view(24, 1, 1, 1)
    for rank in range(3):
        group = SimpleNamespace(size=lambda: 3, rank=lambda rank=rank: rank)
        sliced = get_pos_emb_on_this_cp_rank(angles, 0, group)
        assert sliced.flatten().long().equal(attention.held_positions(24, 3, rank))


@pytest.mark.skipif(stack.has_transformer_engine(), reason="fp8 can be had here")
def test_fp8_is_refused_before_a_group_is_joined_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_nca.mcore.parallel.initialise", lambda *_: pytest.fail("a group was joined"))
    with pytest.raises(ConfigError, match=r"fp8 = 'hybrid': fp8 needs Transformer Engine on a GPU.* Cure: leave fp8"):
        Engine(MODEL, phase(precision="bf16", fp8="hybrid"), read_ranks(), seed=0)


def test_an_engine_that_is_not_installed_is_refused_before_a_group_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_nca.mcore.parallel.initialise", lambda *_: pytest.fail("a group was joined"))
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as Python marks what cannot be imported
    with pytest.raises(ConfigError, match=r"parallel.engine = 'deepspeed': the package .* Cure: pip install -r .*txt"):
        build_engine(MODEL, phase(parallel=ParallelConfig(engine="deepspeed")), read_ranks(), seed=0)


def test_a_rank_that_is_between_two_lines_has_a_place_too(monkeypatch):
    """CPython gives such a frame no line number; the watchdog, which looks every second, must not end for it."""
    code = SimpleNamespace(co_filename="/a/b/c.py", co_name="f")
    frame = SimpleNamespace(f_code=code, f_lineno=None)
    monkeypatch.setattr(sys, "_current_frames", lambda: {1: frame})
    assert watchdog._line(1) == "at a/b/c.py:0 in f"
