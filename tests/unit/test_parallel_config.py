"""Layouts, batches and presets: every refusal with its setting, value, reason and cure, before any process group."""

import re

import pytest

from megatron_nca.account.parameters import parameters
from megatron_nca.config.batch_size import BatchSizes
from megatron_nca.config.model import PRESETS, ModelConfig
from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.config.recipe import OptimizerConfig, Phase, recipe_from_dict
from megatron_nca.config.schema import build, to_dict
from megatron_nca.errors import ConfigError
from megatron_nca.plan import phase_tokens

MODEL = ModelConfig(
    num_layers=8, hidden_size=64, num_heads=8, num_query_groups=4, ffn_hidden_size=96, sequence_length=24, vocab_size=9
)


def phase(**values: object) -> Phase:
    common = {"dataset": "x", "iterations": 9, "global_batch_size": 8, "micro_batch_size": 1, "optimizer": {"lr": 1e-3}}
    return build(Phase, {**common, "validation_sequences": 8, **values})


def refusal(action: object) -> str:
    """The message of what must be refused, in the house form."""
    with pytest.raises(ConfigError) as caught:
        action()
    assert re.fullmatch(r"\S.* = .*: .+ Cure: .+\.", str(caught.value)), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"virtual_pipeline": 0}, "parallel.virtual_pipeline = 0: must be at least 1"),
        ({"context": 0}, "parallel.context = 0: must be at least 1"),
        ({"virtual_pipeline": 2}, "needs? a pipeline"),
        ({"overlap_param_gather": True}, "needs overlap_grad_reduce, which is None"),
        ({"overlap_param_gather": True, "overlap_grad_reduce": False}, "which is False"),
        ({"recompute": {"granularity": "full", "modules": ["mlp"]}}, r"recompute.modules = \('mlp',\): means nothing"),
        ({"recompute": {"granularity": "selective", "layers": 1}}, "recompute.layers = 1: means nothing"),
        ({"recompute": {"granularity": "selective", "method": "block"}}, "recompute.method = 'block': means nothing"),
        ({"recompute": {"granularity": "full", "layers": 0}}, "must be at least 1"),
        ({"recompute": {"granularity": "selective", "modules": ["layernorm"]}}, "'layernorm' cannot be recomputed"),
        ({"recompute": {"granularity": "selective", "modules": []}}, "names nothing"),
        ({"zero_stage": 2}, "parallel.zero_stage = 2: means nothing under engine 'megatron'"),
        ({"engine": "deepspeed", "pipeline": 2}, "parallel.pipeline = 2: engine 'deepspeed' runs no schedule"),
        ({"engine": "deepspeed", "context": 2}, "parallel.context = 2: engine 'deepspeed' splits no sequences"),
        ({"engine": "deepspeed", "tensor": 2, "sequence_parallel": True}, "parallel.sequence_parallel = True: engine"),
        (
            {"engine": "deepspeed", "overlap_grad_reduce": True, "overlap_param_gather": True},
            "parallel.overlap_param_gather = True: engine 'deepspeed' gathers",
        ),
    ],
)
def test_layouts_that_contradict_themselves(layout, words):
    assert re.search(words, refusal(lambda: build(ParallelConfig, layout)))


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"tensor": 3}, "parallel.tensor = 3: does not divide the model's num_heads = 8"),
        ({"tensor": 8}, "num_query_groups = 4"),
        ({"pipeline": 3}, "parallel.pipeline = 3: does not divide num_layers = 8"),
        ({"pipeline": 4, "virtual_pipeline": 4}, "virtual_pipeline = 4: times pipeline = 4 does not divide"),
        ({"context": 8}, "context = 8: a sequence is split into 2 x context parts.*sequence_length = 24"),
        ({"tensor": 4, "context": 4, "sequence_parallel": True}, r"sequence_length = 24 / context = 6 under sequence"),
        ({"pipeline": 2, "recompute": {"granularity": "full", "layers": 3}}, "does not divide a stage of 4 layers"),
        (
            {
                "pipeline": 2,
                "virtual_pipeline": 2,
                "recompute": {"granularity": "full", "method": "block", "layers": 3},
            },
            "layers = 3: is more than a stage of 2 layers",
        ),
    ],
)
def test_models_that_a_layout_cannot_split(layout, words):
    parallel = build(ParallelConfig, layout)
    assert re.search(words, refusal(lambda: parallel.check_model(MODEL)))


@pytest.mark.parametrize(
    "layout",
    [
        {"tensor": 4, "context": 3, "sequence_parallel": True},
        {"pipeline": 4, "virtual_pipeline": 2, "recompute": {"granularity": "full"}},
        {"pipeline": 2, "recompute": {"granularity": "full", "method": "block", "layers": 4}},
        {"engine": "deepspeed", "zero_stage": 3, "tensor": 4, "data": 3, "recompute": {"granularity": "selective"}},
    ],
)
def test_layouts_that_fit(layout):
    parallel = build(ParallelConfig, layout)
    parallel.check_model(MODEL)
    assert build(ParallelConfig, to_dict(parallel)) == parallel


def test_a_context_parallel_layout_counts_its_ranks_and_overlap_follows_the_device():
    parallel = ParallelConfig(tensor=2, pipeline=3, context=5, data=7, virtual_pipeline=2)
    assert parallel.world_size == 2 * 3 * 5 * 7
    assert (parallel.overlaps(on_gpu=True), parallel.overlaps(on_gpu=False)) == ((True, True), (False, False))
    assert ParallelConfig(overlap_grad_reduce=True).overlaps(on_gpu=False) == (True, True)
    assert ParallelConfig(overlap_grad_reduce=False).overlaps(on_gpu=True) == (False, False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"global_batch_size": 6, "parallel": {"data": 4}}, "global_batch_size = 6: is not a multiple"),
        (
            {"parallel": {"pipeline": 3, "virtual_pipeline": 2}},
            "makes 8 micro-batches.*multiple of parallel.pipeline = 3",
        ),
        (
            {"validation_sequences": 6, "parallel": {"pipeline": 4, "virtual_pipeline": 2}},
            "validation_sequences = 6: makes 6 micro-batches",
        ),
        ({"rampup_batch_size": [0, 4, 16]}, "must be at least 1"),
        ({"rampup_batch_size": [8, 4, 16]}, "not below global_batch_size = 8"),
        ({"rampup_batch_size": [3, 2, 16]}, "never reach global_batch_size = 8"),
        ({"rampup_batch_size": [1, 1, 6]}, "7 steps for 6 sequences"),
        ({"rampup_batch_size": [2, 3, 16], "parallel": {"data": 2}}, "a batch of 5 = 5: is not a multiple"),
        ({"fp8": "hybrid", "precision": "fp16"}, "fp8 = 'hybrid': stands over bf16, not fp16"),
        ({"precision": "fp16", "parallel": {"engine": "deepspeed"}}, "precision = 'fp16': .*lose its loss scale"),
        ({"fp8": "hybrid", "parallel": {"engine": "deepspeed"}}, "fp8 = 'hybrid': is not offered with"),
    ],
)
def test_phases_that_do_not_divide(values, words):
    assert re.search(words, refusal(lambda: phase(**values)))


def test_a_learning_rate_without_an_end_is_zero_never_absent():
    """Megatron's optimizer fails in its first step if min_lr is None."""
    assert phase().optimizer.min_lr == 0.0
    with pytest.raises(ConfigError, match=r"min_lr = None: expected float"):
        build(OptimizerConfig, {"lr": 1e-3, "min_lr": None})


def test_batches_are_a_function_of_what_was_consumed():
    ramp = BatchSizes(16, (4, 4, 48))
    consumed, sizes = 0, []
    for _ in range(12):
        sizes.append(ramp.at(consumed))
        consumed += sizes[-1]
    assert sizes == [4, 4, 4, 4, 8, 8, 12, 12, 16, 16, 16, 16] and ramp.sizes == (4, 8, 12, 16)
    assert [ramp.consumed_after(n) for n in (0, 4, 5, 8, 12)] == [0, 16, 24, 56, 120]
    assert BatchSizes(16).consumed_after(5) == 80 and BatchSizes(16).at(0) == 16


def test_a_ramp_in_a_phase(recipe_values):
    assert phase(rampup_batch_size=[2, 2, 12]).train_sequences == 2 + 2 + 4 + 6 + 5 * 8
    nca = recipe_values["phases"]["nca"]
    nca |= {"global_batch_size": 8, "rampup_batch_size": [2, 2, 12], "iterations": 9}
    assert phase_tokens(recipe_from_dict(recipe_values), "nca") == 54 * 64


@pytest.mark.parametrize(
    ("name", "millions"), [("paper", 1610.7), ("400m", 402.7), ("110m", 113.3), ("30m", 33.6)]
)
def test_presets_have_the_size_they_are_named_after(name, millions):
    body = parameters(PRESETS[name].with_vocabulary(128)).body
    assert round(body / 1e6, 1) == millions


def test_a_model_preset_takes_changes_on_top(recipe_values):
    recipe_values["model"] = {"preset": "30m", "sequence_length": 64, "num_layers": 4}
    model = recipe_from_dict(recipe_values).model
    assert (model.num_layers, model.hidden_size, model.sequence_length) == (4, 512, 64)
    recipe_values["model"] = {"preset": "papr"}
    with pytest.raises(ConfigError, match=r"model\.preset = 'papr': unknown. Did you mean 'paper'"):
        recipe_from_dict(recipe_values)
    recipe_values["model"] = {"preset": "paper", "num_layrs": 4}
    with pytest.raises(ConfigError, match="Did you mean 'num_layers'"):
        recipe_from_dict(recipe_values)
