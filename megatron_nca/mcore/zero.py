"""DeepSpeed as an engine: the same Megatron model, with ZeRO in place of Megatron's buffers and distributed optimizer.

The one file that imports `deepspeed`. Checkpoints are those of the other engine, and load there.
"""

import contextlib
import dataclasses
import importlib.util
import io
import logging
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.recipe import OptimizerConfig, Phase
from megatron_nca.errors import ConfigError, explain
from megatron_nca.mcore import parallel
from megatron_nca.mcore.engine import Engine, forward_step
from megatron_nca.mcore.sharded import LAYOUT_FREE

MOMENTS = ("exp_avg", "exp_avg_sq")


class TensorParallelUnit:
    """What DeepSpeed asks its `mpu`: Megatron's tensor-parallel ranks share a model, its data-parallel ranks copy it.

    Megatron's own module has not had the names of model parallelism since 0.16.
    """

    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)

    @staticmethod
    def get_data_parallel_group_ranks() -> list[int]:
        return dist.get_process_group_ranks(parallel_state.get_data_parallel_group())


class ZeroEngine(Engine):
    """One phase's model on this rank, in DeepSpeed's engine. Building it is collective; so is every method."""

    def _check_machine(self) -> None:
        super()._check_machine()
        check_installed()

    def _wrap(self, chunks: list[torch.nn.Module]) -> None:
        deepspeed = _import_deepspeed(self.ranks)
        (model,) = chunks
        adam = _adam(model, self.phase.optimizer)
        with contextlib.redirect_stdout(io.StringIO()):  # its tables of memory
            wrapped, _, _, _ = deepspeed.initialize(
                model=model,
                optimizer=adam,
                config=_settings(self.phase, self.model_config, self._numel),
                mpu=TensorParallelUnit,
                dist_init_required=False,
            )
        self.chunks = [wrapped]
        self.optimizer = ZeroOptimizer(wrapped, adam)
        stage = wrapped.zero_optimization_stage()
        self.adam = f"DeepSpeed {deepspeed.__version__} ZeRO-{stage:d} over torch's AdamW (fused)"

    def _clear_gradients(self) -> None:
        """Those of an update that was not made, to which it would add the next; else it has done so (0.19.8)."""
        zero = self.chunks[0].optimizer
        zero.zero_grad()  # all that stage 3 needs
        if hasattr(zero, "clear_hp_grads"):  # stage 1 in bf16
            zero.clear_hp_grads()
        elif self.phase.parallel.zero_stage != 3:
            zero.micro_step_id = -1
            for number in zero.averaged_gradients:
                zero.averaged_gradients[number] = zero.all_grad_tensors[number] = None

    def _schedule(self, batches: Iterator[dict], sequences: int, forward_only: bool) -> list:
        """Run a global batch of `sequences`; what each micro-batch logged."""
        copies = self.phase.parallel.data
        number, (engine,) = sequences // (self.phase.micro_batch_size * copies), self.chunks
        if forward_only:
            return [self._forward(batches, by_position=True)[1] for _ in range(number)]
        held = [next(batches) for _ in range(number)]
        # DeepSpeed takes the mean over copies and knows nothing of tokens: what is summed must be divided beforehand.
        tokens = torch.stack([batch["loss_mask"].sum(dtype=torch.float64) for batch in held]).sum()
        dist.all_reduce(tokens, group=parallel_state.get_data_parallel_group())
        weight = copies / max(1.0, float(tokens))
        logged = []
        for position, batch in enumerate(held):
            engine.set_gradient_accumulation_boundary(position == number - 1)
            total, values = self._forward(iter([batch]), by_position=False)
            engine.backward(total * weight, scale_wrt_gas=False)
            logged.append(values)
        return logged

    def _forward(self, batches: Iterator[dict], by_position: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The next micro-batch: (sum of its losses, what to log)."""
        losses, loss_function = forward_step(batches, self.chunks[0], by_position, held=None)
        total, _, logged = loss_function(losses)
        return total, logged

    @contextlib.contextmanager
    def _whole_weights(self, to_change: bool = False) -> Iterator[None]:
        from deepspeed.runtime.zero import GatheredParameters

        # All ranks set the same; the first copy's is what its others are given on leaving.
        with GatheredParameters(self.chunks[0].module.parameters(), modifier_rank=0 if to_change else None):
            yield

    def close(self) -> None:
        self.chunks[0].destroy()
        super().close()


class ZeroOptimizer:
    """DeepSpeed's optimizer with the face of Megatron's: what Engine, schedule and `sharded.py` use of it.

    States are kept by parameter, in its own shape, as the layout-free format of Megatron's distributed optimizer has
    them: 'param' (fp32), 'exp_avg' and 'exp_avg_sq' of each, and a step for all.
    """

    def __init__(self, engine: object, adam: torch.optim.Optimizer) -> None:
        self._engine, self._adam = engine, adam
        self._make_states()

    @property
    def param_groups(self) -> list[dict]:
        return self._adam.param_groups

    def get_loss_scale(self) -> float:
        return 1.0

    def step(self) -> tuple[bool, float, None]:
        """Update the weights: (whether DeepSpeed did so, norm of the gradient, None)."""
        self._engine.step()
        return self._engine.was_step_applied(), float(self._engine.get_global_grad_norm()), None

    def sharded_state_dict(
        self, model_sharded_state_dict: dict, is_loading: bool = False, metadata: object = None
    ) -> dict:
        """For Megatron's dist_checkpointing; collective. Every rank holds all states of its part of the model."""
        places = {tensor.data: tensor for tensor in model_sharded_state_dict["model0"].values()}
        states = {
            number: {
                name: _beside(places[parameter], f"optimizer.state.{name}", value)
                for name, value in self._states(parameter, places[parameter].data.shape, is_loading).items()
            }
            for number, parameter in enumerate(self._engine.module.parameters())
        }
        step = self._step_count()
        groups = [{**{key: group[key] for key in _GROUP_KEYS}, "step": step} for group in self.param_groups]
        return {
            "optimizer": {"param_groups": groups},
            "param_state": states,
            "param_state_sharding_type": LAYOUT_FREE,
        }

    def _states(
        self, parameter: torch.nn.Parameter, shape: torch.Size, is_loading: bool
    ) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if is_loading:
            return {name: torch.empty(shape, device=parameter.device) for name in ("param", *MOMENTS)}
        states = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
        states["param"] = safe_get_full_fp32_param(parameter)
        return {name: value.cpu() for name, value in states.items()}  # one parameter at a time on the device

    def load_state_dict(self, state: dict) -> None:
        """What `sharded_state_dict` gave, loaded. Weights themselves are the model's to load."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for share in self._adam.state.values():
            share["step"].fill_(state["optimizer"]["param_groups"][0]["step"])
        for number, parameter in enumerate(self._engine.module.parameters()):
            values = state["param_state"][number]
            safe_set_full_fp32_param(parameter, values["param"])
            for name in MOMENTS:
                safe_set_full_optimizer_state(parameter, values[name], name)

    def reload_model_params(self) -> None:
        """Take the model's weights as the fp32 ones."""
        from deepspeed.utils import safe_set_full_fp32_param

        for parameter in self._engine.module.parameters():
            safe_set_full_fp32_param(parameter, parameter.data.float())

    def _step_count(self) -> int:
        (count,) = {int(share["step"]) for share in self._adam.state.values()}
        return count

    def _make_states(self) -> None:
        """Adam's states of each flat share. DeepSpeed makes them in the first update.

        But its stages 1 and 2 look for them when the first of the groups has been updated, and then no state of the
        others can be read or set for ever (0.19.8).
        """
        zero = self._engine.optimizer
        names = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
        for share in next(getattr(zero, name) for name in names if hasattr(zero, name)):
            self._adam.state[share] = {name: torch.zeros_like(share) for name in MOMENTS}
            self._adam.state[share]["step"] = torch.tensor(0.0, device=share.device)
        if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):  # stage 3 looks when it is asked
            zero._lazy_init_hp_params_optimizer_state()


def check_installed() -> None:
    """Raise ConfigError if the extra is not there."""
    if importlib.util.find_spec("deepspeed") is None:
        cure = "pip install -r requirements/deepspeed.txt, or set parallel.engine: megatron."
        raise ConfigError(explain("parallel.engine", "deepspeed", "the package deepspeed is not installed.", cure))


def _import_deepspeed(ranks: parallel.Ranks) -> object:
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # DeepSpeed insists on it, also for one process
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found none
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # It would compile a module for sums in shared memory when it starts, for inference only. Gloo and NCCL serve.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _settings(phase: Phase, model: ModelConfig, numel: int) -> dict:
    """DeepSpeed's configuration for `numel` weights on this rank; micro-batches are counted by the engine above."""
    reduce, _ = phase.parallel.overlaps(torch.cuda.is_available())
    zero = {
        "stage": phase.parallel.zero_stage or 1,
        "overlap_comm": reduce,
        "reduce_bucket_size": min(numel, 500_000_000),  # its own size, 2 GB a buffer, unless there is less to reduce
        # By themselves these keep 10^9 weights from one use to the next: all of a model of less, which saves nothing.
        "stage3_max_reuse_distance": numel // model.num_layers,
        "stage3_param_persistence_threshold": model.hidden_size,  # norms stay whole
    }
    return {
        "train_micro_batch_size_per_gpu": phase.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": phase.optimizer.clip_grad,
        "zero_optimization": zero,
        "bf16": {"enabled": phase.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": None,
    }


_GROUP_KEYS = ("lr", "betas", "eps", "weight_decay", "wd_mult", "lr_mult", "max_lr", "min_lr", "is_decoupled_lr",
               "is_expert_parallel", "default_config")
"""What a group of Megatron's optimizer has beside parameters and step; by some of it Megatron finds groups again."""


def _adam(model: torch.nn.Module, settings: OptimizerConfig) -> torch.optim.AdamW:
    """The law of `optim.build_optimizer`, and the kernel of `patches.FusedAdam`.

    Not that class: it counts steps by group, and ZeRO-3 steps once for each group of parameters and part of one.
    """
    parameters = list(model.parameters())
    exempt = [] if settings.decay_norms else [parameter for parameter in parameters if parameter.ndim == 1]
    exempt_ids = {id(parameter) for parameter in exempt}
    decayed = [parameter for parameter in parameters if id(parameter) not in exempt_ids]
    common = {"lr_mult": 1.0, "max_lr": settings.lr, "min_lr": settings.min_lr, "is_decoupled_lr": False,
              "is_expert_parallel": False, "default_config": True}
    groups = [{"params": decayed, "wd_mult": 1.0, **common}, {"params": exempt, "wd_mult": 0.0, **common}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _beside(place: object, prefix: str, value: torch.Tensor) -> object:
    """Where a state goes in a checkpoint: as its parameter does, under another key."""
    changed = {"key": f"{prefix}.{place.key}", "data": value.view(place.data.shape), "replica_id": place.replica_id}
    if hasattr(place, "dtype"):  # a factory, which the gated MLP has, takes the dtype from the tensor
        changed["dtype"] = value.dtype
    return dataclasses.replace(place, **changed)
