"""Our core attention against Megatron's own DotProductAttention, the one it has without Transformer Engine.

    python benchmarks/core_attention.py [--threads 1] [--rounds 9]

Both modules get the same queries, keys and values of 1,024 positions, 8 heads of 64, forward and backward, in one
process and in turns (A B A B …). Times are processor times of the process, so that other work counts less;
the ratio is the median over rounds of the ratios of neighbours. The results must agree, or there is nothing to compare.
"""

import argparse
import statistics
import time
from importlib import metadata
from types import SimpleNamespace

import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.config.recipe import OptimizerConfig, Phase
from megatron_nca.mcore import parallel, patches

LENGTH, BATCH, HEADS, SIZE = 1024, 1, 8, 64
TOLERANCES = {"fp32": 1e-5, "bf16": 3e-2}
GOALS = {"fp32": 2.0, "bf16": 1.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    patches.quiet()
    device = parallel.initialise(ParallelConfig(), parallel.read_ranks())
    parallel.seed_streams(0, 0)
    versions = f"torch {torch.__version__}, Megatron-Core {metadata.version('megatron-core')}"
    print(f"{arguments.threads} threads, {versions}, {device}")
    print("| precision | key/value heads | Megatron's, ms | ours, ms | ratio | goal |\n|---|---|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        for groups in (HEADS, HEADS // 4):
            theirs, ours = compare(precision, groups, device, arguments.rounds)
            ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
            times = [1e3 * statistics.median(values) for values in (theirs, ours)]
            print(f"| {precision} | {groups} | {times[0]:.1f} | {times[1]:.1f} | {ratio:.2f} | {GOALS[precision]} |")
    parallel.shut_down()


def compare(precision: str, groups: int, device: torch.device, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of forward and backward of both sides, one entry a round."""
    from megatron_nca.mcore.model import DTYPES

    theirs, ours = modules(precision, groups)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(LENGTH, BATCH, heads, SIZE, generator=generator) for heads in (HEADS, groups, groups)]
    tensors = [tensor.to(device, DTYPES[precision]).requires_grad_() for tensor in tensors]
    gradient = torch.randn(LENGTH, BATCH, HEADS * SIZE, generator=generator).to(device, DTYPES[precision])

    def both_ways(module: torch.nn.Module) -> list[torch.Tensor]:
        result = module(*tensors, None)  # causal by itself, as in the layers
        return [result.detach(), *torch.autograd.grad(result, tensors, gradient)]

    for a, b in zip(both_ways(theirs), both_ways(ours), strict=True):
        assert (a - b).abs().max() <= TOLERANCES[precision] * b.abs().max(), "the two differ"
    return tuple(zip(*((seconds(both_ways, theirs), seconds(both_ways, ours)) for _ in range(rounds)), strict=True))


def seconds(both_ways: object, module: torch.nn.Module) -> float:
    """Processor time on a CPU, wall time on a GPU, of one of two passes."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    for _ in range(2):
        both_ways(module)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - started) / 2


def modules(precision: str, groups: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_nca.mcore.attention import SdpaAttention
    from megatron_nca.mcore.model import transformer_config

    phase = Phase(
        dataset="none",
        iterations=1,
        global_batch_size=1,
        micro_batch_size=1,
        precision=precision,
        optimizer=OptimizerConfig(lr=1.0),
    )
    model = ModelConfig(
        num_layers=1,
        hidden_size=HEADS * SIZE,
        num_heads=HEADS,
        num_query_groups=groups,
        ffn_hidden_size=8,
        vocab_size=2,
    )
    config = transformer_config(model, phase, SimpleNamespace(fused_rope=False))
    place = {"layer_number": 1, "attn_mask_type": AttnMaskType.causal, "attention_type": "self"}
    return DotProductAttention(config=config, **place), SdpaAttention(config=config, **place)


if __name__ == "__main__":
    main()
