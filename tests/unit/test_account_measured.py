"""The memory that formulas give is the memory that is there: every tensor of an engine, everything autograd keeps."""

import gc

import pytest
import torch

from megatron_nca.account.memory import chunks_in_flight, memory
from megatron_nca.config.model import ModelConfig, ModelShape
from megatron_nca.config.parallel import ParallelConfig, Recompute
from megatron_nca.config.recipe import OptimizerConfig, Phase
from megatron_nca.errors import ConfigError
from megatron_nca.mcore import lone_rank, parallel
from megatron_nca.mcore.engine import Engine, read_ranks

MICRO_BATCH = 2
# Sizes that buffers pad: no tensor of a layer is a multiple of 64 elements but by chance.
MODEL = ModelShape(
    num_layers=4, hidden_size=40, num_heads=4, num_query_groups=2, ffn_hidden_size=100, sequence_length=48
).with_vocabulary(300)


@pytest.fixture(autouse=True)
def no_process_group() -> None:
    """An engine leaves its process's group to the next one."""
    parallel.shut_down()


def stage_of(split: ParallelConfig, rank: int) -> int:
    """By Megatron's default order of axes: tensor, context, data, pipeline (fastest first)."""
    return rank // (split.world_size // split.pipeline)


def phase(precision: str, split: ParallelConfig) -> Phase:
    sequences = MICRO_BATCH * split.data * split.pipeline  # the interleaved schedule needs whole groups
    return Phase(
        dataset="text",
        iterations=5,
        global_batch_size=sequences,
        micro_batch_size=MICRO_BATCH,
        validation_sequences=sequences,
        precision=precision,
        parallel=split,
        optimizer=OptimizerConfig(lr=1e-3),
    )


def batch(model: ModelConfig) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, model.vocab_size, (MICRO_BATCH, model.sequence_length + 1))
    mask = torch.ones(MICRO_BATCH, model.sequence_length)
    return {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "loss_mask": mask}


def live() -> dict[int, tuple[torch.UntypedStorage, tuple[int, ...], torch.dtype]]:
    """Every storage that a tensor of this process uses, with the shape and type of one such tensor.

    While the result is kept, no address of these is used again.
    """
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = [(tensor.untyped_storage(), tensor) for tensor in tensors if tensor.device.type == "cpu"]
    return {s.data_ptr(): (s, tuple(tensor.shape), tensor.dtype) for s, tensor in storages if s.nbytes()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_engine_holds_what_the_formulas_say_to_the_byte(precision):
    """All tensors after a step, but three random states, rotary tables and numbers."""
    before = live()
    engine = Engine(MODEL, phase(precision, ParallelConfig()), read_ranks(), seed=0)
    try:
        for parameter in engine.chunks[0].parameters():
            parameter.data.normal_(std=0.02)
        assert not engine.train_step(iter([batch(MODEL)]), 0).skipped
        there = [values for pointer, values in live().items() if pointer not in before]
    finally:
        engine.close()
    length, half = MODEL.sequence_length, MODEL.head_size // 2
    rotary = {(length, 1, 1, 2 * half), (length, 1, 1, half), (half,)}
    sizes = [s.nbytes() for s, shape, kind in there if kind != torch.uint8 and shape not in rotary]
    counted = [size for size in sizes if size > 8]
    [expected] = memory(MODEL, ParallelConfig(), precision, MICRO_BATCH, 1, on_gpu=False)
    assert sum(counted) == expected.weights + expected.gradients + expected.main_weights + expected.moments
    assert expected.weights > {"fp32": 4, "bf16": 2}[precision] * expected.parameters, "nothing was padded"


SPLITS = {
    "whole": ParallelConfig(),
    "tensor": ParallelConfig(tensor=2),
    "sequence": ParallelConfig(tensor=2, sequence_parallel=True),
    "context": ParallelConfig(context=2),
    "context and core attention recomputed": ParallelConfig(context=3, recompute=Recompute(granularity="selective")),
    "layers recomputed": ParallelConfig(recompute=Recompute(granularity="full")),
    "pairs recomputed": ParallelConfig(tensor=2, sequence_parallel=True, recompute=Recompute(
        granularity="full", layers=2)),
    "some recomputed": ParallelConfig(recompute=Recompute(granularity="full", method="block", layers=3)),
    "core attention recomputed": ParallelConfig(recompute=Recompute(granularity="selective")),
    "parts recomputed": ParallelConfig(tensor=2, recompute=Recompute(
        granularity="selective", modules=("core_attn", "mlp"))),
}


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_autograd_keeps_what_the_formulas_say_to_the_byte(precision, name):
    """Storages of all tensors saved for backward, once each, but weights, the batch and rotary tables."""
    split = SPLITS[name]
    with lone_rank.fake_world(split, rank=split.tensor - 1):
        from megatron_nca.mcore import model as models
        from megatron_nca.mcore import stack

        whole = phase(precision, split)
        [module] = models.build(MODEL, whole, stack.choose(whole), torch.device("cpu"))
        held = MODEL.sequence_length // split.context
        given = {name: tensor[:, :held].contiguous() for name, tensor in batch(MODEL).items()}
        known = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *given.values()]}
        kept, saved = {}, []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            saved.append(tensor)  # so that no address is used twice
            pointer, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
            if pointer not in known and size > 8 and not is_rotary(tensor) and not is_mask(tensor, held):
                kept[pointer] = size
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = module(given["tokens"], None, None, labels=given["labels"])
            (losses.float() * given["loss_mask"]).sum()
    [expected] = memory(MODEL, split, precision, MICRO_BATCH, 1, on_gpu=False)
    softmax = 4 * MODEL.padded_vocab_size // split.tensor * MICRO_BATCH * held
    assert sum(kept.values()) == expected.activations + softmax
    assert expected.logits == (softmax if precision == "fp32" else softmax * 3 // 2)


def is_rotary(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 4 and tensor.shape[1:3] == (1, 1)


def is_mask(tensor: torch.Tensor, held: int) -> bool:
    """Of a chunk's queries for the keys before it, which torch makes on a CPU for what is no square."""
    return tensor.dim() >= 2 and tensor.shape[-2] == held // 2 and tensor.shape[-1] % (held // 2) == 0


LAYOUTS = {
    "data": ParallelConfig(data=3),
    "pipeline": ParallelConfig(pipeline=4, data=2),
    "all": ParallelConfig(tensor=2, pipeline=2, data=2, sequence_parallel=True),
    "context and chunks": ParallelConfig(pipeline=2, virtual_pipeline=2, context=2, data=3),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_rank_of_a_layout_is_built_as_the_formulas_say(precision, name):
    split = LAYOUTS[name]
    stages = memory(MODEL, split, precision, MICRO_BATCH, 1)
    moments: dict[int, list[int]] = {}
    for rank in range(split.world_size):
        built = lone_rank.build(MODEL, phase(precision, split), rank)
        expected = stages[stage_of(split, rank)]
        assert built.stage == expected.stage
        assert (built.parameters, built.weights) == (expected.parameters, expected.weights)
        assert built.gradients == expected.gradients
        moments.setdefault(built.stage, []).append(built.moments)
    # The formula gives the fullest share; together the shares are of every parameter, without padding.
    assert [max(moments[stage.stage]) for stage in stages] == [stage.moments for stage in stages]
    for stage in stages:
        assert sum(moments[stage.stage]) == split.tensor * 8 * stage.parameters


@pytest.mark.parametrize("rank", [5, 511])
def test_one_rank_of_512_is_built_without_the_others(rank):
    """The first stage has buckets, as on GPUs, where gradients are reduced while backward goes on."""
    large = ModelShape(
        num_layers=80, hidden_size=8192, num_heads=64, num_query_groups=8, ffn_hidden_size=28_672, sequence_length=4096
    ).with_vocabulary(128_256)
    split = ParallelConfig(
        tensor=8, pipeline=4, data=16, sequence_parallel=True, overlap_grad_reduce=True, overlap_param_gather=False
    )
    built = lone_rank.build(large, phase("bf16", split), rank)
    stage = memory(large, split, "bf16", 1, 32)[stage_of(split, rank)]
    assert built.stage == stage.stage == rank // 128
    assert built.parameters == stage.parameters == {5: 2_270_756_864, 511: 2_270_765_056}[rank]
    assert (built.weights, built.gradients, built.moments) == (stage.weights, stage.gradients, stage.moments)


def test_buckets_are_padded_one_by_one():
    """Sizes that no alignment divides, so that each bucket ends in padding."""
    uneven = ModelShape(
        num_layers=3, hidden_size=6_994, num_heads=1, ffn_hidden_size=2_331, sequence_length=64
    ).with_vocabulary(6_999)
    split = ParallelConfig(data=7, overlap_grad_reduce=True, overlap_param_gather=False)
    built = [lone_rank.build(uneven, phase("fp32", split), rank) for rank in range(7)]
    [stage] = memory(uneven, split, "fp32", 1, 1)
    [alone] = memory(uneven, ParallelConfig(data=7), "fp32", 1, 1, on_gpu=False)
    assert {rank.gradients for rank in built} == {stage.gradients}
    assert stage.gradients > alone.gradients
    assert max(rank.moments for rank in built) == stage.moments


@pytest.mark.parametrize("micro_batches", [4, 8, 20])
@pytest.mark.parametrize("rank", range(4))
def test_chunks_in_flight_are_megatrons_warm_up_and_one(rank, micro_batches):
    from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches

    split = ParallelConfig(pipeline=4, virtual_pipeline=2)
    with lone_rank.fake_world(split, rank):
        total, _, warm_up, _ = get_pp_rank_microbatches(micro_batches, 2, 4)
    assert chunks_in_flight(split, rank, micro_batches) == min(total, warm_up + 1)


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ConfigError, match=r"--rank = 3: the world has 3 ranks\."):
        lone_rank.build(MODEL, phase("fp32", ParallelConfig(data=3)), rank=3)
