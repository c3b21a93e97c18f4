"""Work that Megatron does for nothing in this model, left out: the same numbers without it.

Each part hands everything that is not exactly its case to Megatron's own.
"""

import functools

import torch


def install() -> None:
    """Once a process; further calls do nothing."""
    from megatron.core.distributed import param_and_grad_buffer
    from megatron.core.transformer.mlp import MLP

    group = param_and_grad_buffer._ParamAndGradBucketGroup
    if hasattr(MLP.forward, "__wrapped__"):
        return
    MLP.forward = _without_offset(MLP.forward)
    group.start_grad_sync = _alone(group.start_grad_sync, "overlap_grad_reduce")
    group.start_param_sync = _alone(group.start_param_sync, "overlap_param_gather")


def _without_offset(megatrons: object) -> object:
    """Megatron's gated MLP adds 0 to `up`, and keeps the sum for the backward pass: a fifth of what the MLP keeps."""

    @functools.wraps(megatrons)
    def forward(
        self: torch.nn.Module, hidden: torch.Tensor, per_token_scale: torch.Tensor | None = None, **others: object
    ) -> tuple[torch.Tensor, None]:
        """hidden (S, B, H) -> (S, B, H)."""
        config = self.config
        plain = config.gated_linear_unit and not (config.bias_activation_fusion or config.use_te_activation_func)
        special = config.add_bias_linear or config.glu_linear_offset or config.activation_func_clamp_value is not None
        if special or not plain or per_token_scale is not None:
            return megatrons(self, hidden, per_token_scale, **others)
        gate, up = self.linear_fc1(hidden)[0].chunk(2, dim=-1)
        return self.linear_fc2(config.activation_func(gate) * up)

    return forward


def _alone(megatrons: object, overlap: str) -> object:
    """On a rank without copies the share of its buffer is the buffer: gloo would copy it onto itself, three times."""

    @functools.wraps(megatrons)
    def start(self: object, *arguments: object, **named: object) -> None:
        settings = self.ddp_config
        alone = self.intra_distributed_optimizer_instance_size == settings.num_distributed_optimizer_instances == 1
        scaled = any(bucket.gradient_scaling_factor != 1.0 for bucket in self.buckets)
        checked = settings.check_for_nan_in_grad or settings.check_for_large_grads
        if not alone or scaled or checked or getattr(settings, overlap) or torch.cuda.is_available():
            megatrons(self, *arguments, **named)
            return
        if overlap == "overlap_param_gather":
            self.param_gather_dispatched = True

    return start
