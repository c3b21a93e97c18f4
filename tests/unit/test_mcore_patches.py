"""The optimizer that replaces torch's AdamW inside Megatron, and the facade that stands for CUDA."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from megatron_nca.mcore import plain_cost, rotary
from megatron_nca.mcore.patches import FusedAdam


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fused_adam_equals_adamw(weight_decay: float) -> None:
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.randn(7, 5).mul_(scale)) for scale in (1, 3)] for _ in range(2))
    for a, b in zip(ours, theirs, strict=True):
        b.data.copy_(a.data)
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
    fused, adamw = FusedAdam(ours, **settings), torch.optim.AdamW(theirs, **settings)
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        fused.step()
        adamw.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_fused_adam_counts_steps_per_group_and_survives_its_state_dict() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    first = FusedAdam([parameter])
    parameter.grad = torch.ones(3)
    first.step()
    second = FusedAdam([parameter])
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["step"] == 1
    second.step()
    assert second.param_groups[0]["step"] == 2


def test_the_facade_changes_torch_for_megatron_only_and_what_costs_seconds_is_not_imported() -> None:
    """In a process of its own, since the facade stays installed."""
    program = """
import sys
import torch
from megatron_nca.mcore import patches
before = torch.zeros
patches.import_megatron()
import megatron.core
assert 'wandb' not in sys.modules
assert 'torch._inductor.compile_fx' not in sys.modules or megatron.core.__version__ >= '0.19'
import megatron.core.utils as inside
from megatron.core.tensor_parallel import random
assert inside.torch is not torch and torch.zeros is before
assert inside.torch.zeros(2, device='cuda').device.type == 'cpu'
assert inside.torch.cuda.current_device() == torch.device('cpu')
try:
    torch.zeros(1, device='cuda')
except (AssertionError, RuntimeError):
    pass
else:
    raise SystemExit('outside Megatron a missing GPU must still be an error')
try:
    torch.zeros(1).cuda()
except (AssertionError, RuntimeError):
    pass
else:
    raise SystemExit('Tensor.cuda must fail outside Megatron')
assert torch.zeros(1).type() == 'torch.FloatTensor'
random.model_parallel_cuda_manual_seed  # imported under the facade
print('fine')
"""
    if torch.cuda.is_available():
        pytest.skip("the facade is for machines without CUDA")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and "fine" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_our_rotation_is_megatrons(dtype: torch.dtype, tolerance: float) -> None:
    from megatron.core.models.common.embeddings import rope_utils

    rotary.install()
    ours, megatrons = rope_utils._apply_rotary_pos_emb_bshd, rope_utils._apply_rotary_pos_emb_bshd.replaced
    generator = torch.Generator().manual_seed(0)
    angles = 10 * torch.randn(6, 1, 1, 4, generator=generator, dtype=torch.float64)
    angles = torch.cat((angles, angles), dim=-1).to(torch.promote_types(dtype, torch.float32))
    heads = torch.randn(6, 2, 3, 24, generator=generator).to(dtype)[..., 8:16]  # a view, as in use
    gradient = torch.randn(6, 2, 3, 8, generator=generator, dtype=torch.float64).to(dtype)
    results = []
    for rotate in (ours, megatrons):
        leaf = heads.detach().requires_grad_()
        out = rotate(leaf, angles, mscale=1.5)
        out.backward(gradient)
        results.append((out.detach(), leaf.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_rotations_that_ours_does_not_know_stay_megatrons() -> None:
    from megatron.core.models.common.embeddings import rope_utils

    rotary.install()
    ours, megatrons = rope_utils._apply_rotary_pos_emb_bshd, rope_utils._apply_rotary_pos_emb_bshd.replaced
    generator = torch.Generator().manual_seed(0)
    heads, angles = torch.randn(6, 2, 3, 8, generator=generator), torch.randn(6, 1, 1, 8, generator=generator)
    torch.testing.assert_close(ours(heads, angles, True), megatrons(heads, angles, True), rtol=0, atol=0)
    partial = angles[..., :4]
    torch.testing.assert_close(ours(heads, partial), megatrons(heads, partial), rtol=0, atol=0)


class _Linear(torch.nn.Linear):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        """With the bias that is to be added later, as Megatron's do."""
        return super().forward(hidden), None


@pytest.mark.parametrize("change", [{}, {"glu_linear_offset": 1.0}, {"activation_func_clamp_value": 0.5}])
def test_our_mlp_is_megatrons(change: dict) -> None:
    from megatron.core.transformer.mlp import MLP

    plain_cost.install()
    torch.manual_seed(0)
    config = {"gated_linear_unit": True, "activation_func": torch.nn.functional.silu, "add_bias_linear": False,
              "bias_activation_fusion": False, "use_te_activation_func": False, "glu_linear_offset": 0.0,
              "activation_func_clamp_value": None}
    mlp = SimpleNamespace(config=SimpleNamespace(**{**config, **change}), linear_fc1=_Linear(8, 32, bias=False),
                          linear_fc2=_Linear(16, 8, bias=False))
    hidden = torch.randn(5, 2, 8)
    ours, megatrons = MLP.forward(mlp, hidden), MLP.forward.__wrapped__(mlp, hidden)
    torch.testing.assert_close(ours[0], megatrons[0], rtol=0, atol=0)
    assert ours[1] is megatrons[1] is None
