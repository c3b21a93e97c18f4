"""DeepSpeed trains small Llama-named models at its ZeRO stages and saves them, for test_deepspeed.py; two ranks.

    deepspeed_worker.py FOLDER STAGE-PRECISION ...        (under torchrun)

Each case makes FOLDER/CASE with DeepSpeed's own save_checkpoint, and FOLDER/CASE.npz with the fp32 weights as its
engine gives them out.
"""

import os
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import numpy as np
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
HIDDEN, HEADS, GROUPS, FFN, VOCABULARY = 24, 4, 2, 40, 70


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    """The weights of an attention; what is computed with them only has to make gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj = linear(HIDDEN, HIDDEN), linear(HIDDEN, HIDDEN)
        self.k_proj, self.v_proj = (linear(HIDDEN, HIDDEN // HEADS * GROUPS) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = (self.k_proj(x) * self.v_proj(x)).repeat_interleave(HEADS // GROUPS, dim=-1)
        return self.o_proj(self.q_proj(x) + mixed)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(HIDDEN, FFN), linear(HIDDEN, FFN), linear(FFN, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gate_proj(x).sigmoid() * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), Gated()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm = nn.RMSNorm(HIDDEN)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Llama(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.model, self.lm_head = Decoder(), linear(HIDDEN, VOCABULARY)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.lm_head(self.model(tokens)).flatten(0, 1).float(), tokens.flatten())


def run(folder: Path, case: str) -> None:
    stage, precision, *tied = case.split("-")
    torch.manual_seed(0)
    model = Llama(bool(tied))
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    adam = torch.optim.AdamW([{"params": decayed}, {"params": norms, "weight_decay": 0.0}], lr=1e-2)
    zero = {"stage": int(stage), "stage3_param_persistence_threshold": 0, "sub_group_size": 1000}
    settings = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": zero}
    settings["bf16"] = {"enabled": precision == "bf16"}
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=settings, dist_init_required=False)
    for _ in range(2):
        engine.backward(engine(torch.randint(0, VOCABULARY, (2, 8))))
        engine.step()
    engine.save_checkpoint(str(folder / case))
    weights = {name: safe_get_full_fp32_param(weight).numpy() for name, weight in engine.module.named_parameters()}
    if torch.distributed.get_rank() == 0:
        np.savez(folder / f"{case}.npz", **weights)
    engine.destroy()


if __name__ == "__main__":
    deepspeed.init_distributed("gloo")
    for each in sys.argv[2:]:
        run(Path(sys.argv[1]), each)
