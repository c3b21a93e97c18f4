"""Gradient buffers, the distributed optimizer and the schedule."""

import math
from collections.abc import Iterator

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import get_model_config

from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.config.recipe import Phase
from megatron_nca.mcore import freezing
from megatron_nca.mcore.model import DTYPES


def wrap(chunks: list[torch.nn.Module], parallel: ParallelConfig) -> list[DistributedDataParallel]:
    """Each chunk behind Megatron's gradient buffers; gradients are kept and reduced in fp32."""
    reduce, gather = parallel.overlaps(torch.cuda.is_available())
    wrapped = []
    for stage, chunk in enumerate(chunks):
        settings = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=True,
            overlap_grad_reduce=reduce,
            overlap_param_gather=gather,
            check_for_nan_in_grad=False,
        )
        # Only what the first chunk has to reduce lies on the critical path; one bucket for each of the others.
        wrapped.append(
            DistributedDataParallel(
                config=get_model_config(chunk), ddp_config=settings, module=chunk, disable_bucketing=stage > 0
            )
        )
    return wrapped


def build_optimizer(
    chunks: list[DistributedDataParallel], phase: Phase, frozen: list[torch.nn.Parameter] = ()
) -> object:
    """Megatron's DistributedOptimizer over Adam with decoupled weight decay; `frozen` parameters in their own groups.

    Norm weights are exempt from weight decay unless `decay_norms`.
    """
    settings, precision = phase.optimizer, phase.precision
    config = MegatronOptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.epsilon,
        clip_grad=settings.clip_grad,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        params_dtype=DTYPES[precision],
        use_distributed_optimizer=True,
        overlap_param_gather=chunks[0].ddp_config.overlap_param_gather,
    )
    # Megatron's habit is no decay on 1-D parameters, an empty mapping is decay on all.
    overrides = {} if settings.decay_norms else get_standard_config_overrides(config)
    if phase.freeze is not None:
        overrides |= freezing.own_groups(frozen)
    optimizer = get_megatron_optimizer(config, chunks, config_overrides=overrides)
    _withhold_what_is_not_finite(optimizer)
    return optimizer


def _withhold_what_is_not_finite(optimizer: object) -> None:
    """Make no update when the norm of the gradient is not finite, which clipping would divide all weights' by.

    Megatron looks at gradients for fp16's loss scaling only. The norm is the same on all ranks.
    """
    norm, measure, update = [0.0], optimizer.get_grad_norm, optimizer.step_with_ready_grads

    def get_grad_norm() -> float:
        norm[0] = float(measure())
        return norm[0]

    def step_with_ready_grads() -> bool:
        return math.isfinite(norm[0]) and update()

    optimizer.get_grad_norm, optimizer.step_with_ready_grads = get_grad_norm, step_with_ready_grads


def build_schedule(optimizer: object, phase: Phase) -> OptimizerParamScheduler:
    """Linear warm-up and decay, counted in sequences as Megatron counts; they end at the iterations that are named."""
    settings, consumed_after = phase.optimizer, phase.batch_sizes.consumed_after
    decay = consumed_after(settings.decay_iterations or phase.iterations)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=consumed_after(settings.warmup_iterations),
        lr_decay_steps=decay,
        lr_decay_style=settings.decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=decay,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )


def take_settings(state: object, optimizer: object) -> None:
    """Put the phase's settings in place of those that a loaded state of the optimizer was written with.

    Megatron's load would go on with the old ones, and from 0.19 on find no group of other rates.
    """
    own = next((group for group in optimizer.param_groups if group.get("max_lr")), optimizer.param_groups[0])
    for group in _groups(state):
        names = ("betas", "eps", *(("max_lr", "min_lr") if group.get("max_lr") else ()))  # those that are frozen stay
        group.update({name: own[name] for name in names if name in group and name in own})


def _groups(state: object) -> Iterator[dict]:
    """Every group of parameters in the state of one optimizer or of a chain of them."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from value if key == "param_groups" else _groups(value)
