"""Gradient buffers, the distributed optimizer and the schedule."""

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import get_model_config

from megatron_nca.config.recipe import OptimizerConfig, Phase
from megatron_nca.mcore.model import DTYPES


def wrap(module: torch.nn.Module) -> DistributedDataParallel:
    """The model behind Megatron's gradient buffers; gradients are kept and reduced in fp32."""
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True, overlap_grad_reduce=False, check_for_nan_in_grad=False
    )
    return DistributedDataParallel(config=get_model_config(module), ddp_config=settings, module=module)


def build_optimizer(model: DistributedDataParallel, settings: OptimizerConfig, precision: str) -> object:
    """Megatron's DistributedOptimizer over Adam with decoupled weight decay.

    Norm weights are exempt from weight decay unless `decay_norms`.
    """
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
    )
    # None asks Megatron for its habit (no decay on 1-D parameters), an empty mapping for decay on all.
    return get_megatron_optimizer(config, [model], config_overrides={} if settings.decay_norms else None)


def build_schedule(optimizer: object, phase: Phase) -> OptimizerParamScheduler:
    """Linear warm-up and decay, counted in sequences as Megatron counts."""
    settings, batch = phase.optimizer, phase.global_batch_size
    decay = (settings.decay_iterations or phase.iterations) * batch
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.warmup_iterations * batch,
        lr_decay_steps=decay,
        lr_decay_style=settings.decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=decay,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
