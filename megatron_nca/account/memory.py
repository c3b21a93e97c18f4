"""Memory of one device while it trains, by what it holds, for each pipeline stage.

Weights and gradients lie in Megatron's buffers (0.16 to 0.19, `param_and_grad_buffer`), padded so that the distributed
optimizer can share them out; optimizer states are of a rank's share. Activations are the tensors that autograd keeps
from forward to backward in the layers of `mcore/model.py`. Not counted: gradients of activations and of one weight
matrix while backward passes them, the batch, rotary tables, NCCL's and CUDA's own memory, an allocator's gaps, and the
weights of attention (S, S), which torch makes where it has no fused kernel, such as for dropout on a CPU.
"""

import math
from dataclasses import dataclass

from megatron_nca.account.layout import context_ranks, optimizer_shards, virtual_stages
from megatron_nca.account.parameters import stage_tensors
from megatron_nca.config.model import ModelConfig
from megatron_nca.config.parallel import ParallelConfig

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Of one weight, activation or logit."""
FP32, INT64, BOOL = 4, 8, 1
TENSOR_ALIGNMENT, BUFFER_ALIGNMENT = 64, 128
"""In elements: where a tensor of a buffer begins, and where the buffer ends (also a multiple of the shards)."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes on the fullest device of a pipeline stage."""

    stage: int
    parameters: int
    """A count, not bytes."""
    weights: int
    gradients: int
    """fp32, of all weights of the device."""
    main_weights: int
    """fp32 copies of the device's share of the weights; 0 where the weights are fp32 themselves."""
    moments: int
    """Two of Adam, fp32, of the device's share."""
    activations: int
    """Of all micro-batches in flight, without logits."""
    activations_recomputed: int
    """The same if every layer keeps its input only and is run again backward."""
    logits: int
    """The softmax in fp32 that backward needs, and in half precision the logits it is made from."""

    def total(self, recompute: bool = False) -> int:
        static = self.weights + self.gradients + self.main_weights + self.moments + self.logits
        return static + (self.activations_recomputed if recompute else self.activations)


def memory(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: str,
    micro_batch_size: int,
    num_micro_batches: int,
    *,
    fused_norm: bool = True,
) -> tuple[StageMemory, ...]:
    """Memory of each pipeline stage, in bytes a device; `num_micro_batches` in one iteration of one copy of the model.

    `fused_norm`: torch's RMSNorm is one kernel on CUDA, which keeps its input (read in torch's source); on a CPU it
    keeps that and the normalised input, both in fp32 (measured, as is all else, by tests on a CPU).
    """
    tokens = micro_batch_size * model.sequence_length // context_ranks(parallel)
    layer = layer_activation_bytes(model, parallel, precision, tokens, fused_norm)
    layer_input = BYTES[precision] * _residual(model, parallel, tokens)
    result = []
    for stage in range(parallel.pipeline):
        chunks = stage_tensors(model, parallel, stage)
        buffers = [_buffer(sizes, optimizer_shards(parallel)) for sizes in chunks]
        elements, share = sum(size for size, _ in buffers), sum(share for _, share in buffers)
        layers = model.num_layers // (parallel.pipeline * virtual_stages(parallel))
        in_flight, is_last = chunks_in_flight(parallel, stage, num_micro_batches), stage == parallel.pipeline - 1
        ends = min(in_flight, num_micro_batches) * embedding_activation_bytes(parallel, tokens) if stage == 0 else 0
        if is_last:  # its backward begins when its forward ends, so of one micro-batch
            ends += head_activation_bytes(model, parallel, precision, tokens, fused_norm)
        result.append(
            StageMemory(
                stage=stage,
                parameters=sum(map(sum, chunks)),
                weights=elements * BYTES[precision],
                gradients=elements * FP32,
                main_weights=0 if precision == "fp32" else share * FP32,
                moments=2 * share * FP32,
                activations=in_flight * layers * layer + ends,
                activations_recomputed=in_flight * layers * layer_input + layer + ends,
                logits=logit_bytes(model, parallel, precision, tokens) if is_last else 0,
            )
        )
    return tuple(result)


def layer_activation_bytes(
    model: ModelConfig, parallel: ParallelConfig, precision: str, tokens: int, fused_norm: bool
) -> int:
    """Bytes that one layer keeps of `tokens` tokens for backward.

    Split by sequence parallelism: what two norms keep, and their outputs, which qkv and fc1 keep. Split by tensor
    parallelism: qkv's output, whose values attention keeps; rotated queries and keys; attention's output, which proj
    keeps too; its fp32 log-sum of each head; fc1's output, silu(gate), up + 0 (Megatron adds an offset) and their
    product, which fc2 keeps.
    """
    size, keys = BYTES[precision], model.query_groups * model.head_size
    norms = 2 * _norm_bytes(model, parallel, precision, tokens, fused_norm)
    inputs = 2 * size * _residual(model, parallel, tokens)
    attention = size * 3 * (model.hidden_size + keys) + FP32 * model.num_heads
    return norms + inputs + tokens * (attention + size * 5 * model.ffn_hidden_size) // parallel.tensor


def embedding_activation_bytes(parallel: ParallelConfig, tokens: int) -> int:
    """Bytes that the embedding keeps of `tokens` tokens, beside the batch itself.

    Split by tensor parallelism, it keeps its own numbering of the tokens, and which of them other ranks have.
    """
    return tokens * (INT64 + BOOL) if parallel.tensor > 1 else 0


def head_activation_bytes(
    model: ModelConfig, parallel: ParallelConfig, precision: str, tokens: int, fused_norm: bool
) -> int:
    """Bytes that final norm, head and loss keep of `tokens` tokens, without logits.

    The loss keeps each token's target, and whether that is in another rank's part of the vocabulary.
    """
    loss = tokens * (INT64 + BOOL)
    head_input = BYTES[precision] * _residual(model, parallel, tokens)
    return _norm_bytes(model, parallel, precision, tokens, fused_norm) + head_input + loss


def logit_bytes(model: ModelConfig, parallel: ParallelConfig, precision: str, tokens: int) -> int:
    """Bytes of the head's output at its largest: fp32 logits become the softmax in place, others beside it."""
    size = 0 if precision == "fp32" else BYTES[precision]
    return tokens * (FP32 + size) * model.padded_vocab_size // parallel.tensor


def chunks_in_flight(parallel: ParallelConfig, stage: int, num_micro_batches: int) -> int:
    """Most forward passes of a model chunk whose backward is yet to come on a stage.

    1F1B: a stage runs ahead by the stages after it. Interleaved: the warm-up of Megatron's schedules, twice the stages
    after it and all chunks but one of a group of `pipeline` micro-batches (arXiv 2104.04473, 2205.05198).
    """
    after, chunks = parallel.pipeline - 1 - stage, virtual_stages(parallel)
    ahead = after if chunks == 1 else 2 * after + (chunks - 1) * parallel.pipeline
    return min(num_micro_batches * chunks, ahead + 1)


def checkpoint_bytes_per_parameter(precision: str) -> int:
    """On disk: fp32 weights and two fp32 moments, and under bf16 and fp16 the rounded weights too."""
    return 3 * FP32 + (0 if precision == "fp32" else BYTES[precision])


def _residual(model: ModelConfig, parallel: ParallelConfig, tokens: int) -> int:
    """Elements of the residual stream on a device."""
    return tokens * model.hidden_size // (parallel.tensor if parallel.sequence_parallel else 1)


def _norm_bytes(model: ModelConfig, parallel: ParallelConfig, precision: str, tokens: int, fused: bool) -> int:
    """Bytes that RMSNorm keeps: its input, each token's inverse root of the mean square, and unfused the quotient."""
    elements = _residual(model, parallel, tokens)
    return elements * (BYTES[precision] if fused else 2 * FP32) + FP32 * elements // model.hidden_size


def _buffer(sizes: list[int], shards: int) -> tuple[int, int]:
    """Elements of a buffer of these tensors with its padding, and those of tensors in the fullest of its shards."""
    spans, end = [], 0
    for size in reversed(sizes):  # Megatron packs in the order of backward
        start = _round_up(end, TENSOR_ALIGNMENT)
        end = start + size
        spans.append((start, end))
    total = _round_up(end, math.lcm(shards, BUFFER_ALIGNMENT))
    width, shares = total // shards, [0] * shards
    for start, end in spans:
        for shard in range(start // width, (end - 1) // width + 1):
            shares[shard] += min(end, (shard + 1) * width) - max(start, shard * width)
    return total, max(shares)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
