"""Memory of one device while it trains, by what it holds, for each pipeline stage.

Weights and gradients lie in Megatron's buffers (0.16 to 0.19, `param_and_grad_buffer`), padded so that the distributed
optimizer can share them out; optimizer states are of a rank's share. Activations are the tensors that autograd keeps
from forward to backward in the layers of torch of `mcore/stack.py`; those of Transformer Engine are not measured.

Not counted: gradients of activations and of one weight matrix while backward passes them, the batch, rotary tables,
NCCL's and CUDA's own memory, an allocator's gaps, and masks and weights of attention (S, S), which torch makes where it
has no fused kernel for a case, such as for dropout or context parallelism on a CPU.
"""

import math
from dataclasses import dataclass

from megatron_nca.account.layout import optimizer_shards
from megatron_nca.account.parameters import stage_tensors
from megatron_nca.config.model import ModelConfig
from megatron_nca.config.parallel import ParallelConfig, Recompute

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
    """Kept for all micro-batches in flight, without logits."""
    recomputed: int
    """Made again, by the backward pass, for as many layers as are recomputed at a time."""
    logits: int
    """The softmax in fp32 that backward needs, and in half precision the logits it is made from."""

    @property
    def total(self) -> int:
        states = self.weights + self.gradients + self.main_weights + self.moments
        return states + self.activations + self.recomputed + self.logits


def memory(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: str,
    micro_batch_size: int,
    num_micro_batches: int,
    *,
    on_gpu: bool = True,
) -> tuple[StageMemory, ...]:
    """Memory of each pipeline stage, in bytes a device; `num_micro_batches` in one iteration of one copy of the model.

    On a GPU torch's RMSNorm is one kernel that keeps its input (read in torch's source); on a CPU it keeps that and
    the normalised input, both in fp32 (measured, as is all else, by tests on a CPU). And on a GPU gradients are by
    default reduced in buckets, each of which is padded.
    """
    tokens = micro_batch_size * model.sequence_length // parallel.context
    layer = layer_activations(model, parallel, precision, tokens, on_gpu)
    layers = model.num_layers // (parallel.pipeline * parallel.virtual_pipeline)
    kept, again = layer.kept(parallel.recompute, layers), layer.made_again(parallel.recompute)
    result = []
    for stage in range(parallel.pipeline):
        tensors = stage_tensors(model, parallel, stage)
        elements, share = _buffers(tensors, parallel, _bucket_size(parallel, on_gpu) if stage == 0 else None)
        in_flight, is_last = chunks_in_flight(parallel, stage, num_micro_batches), stage == parallel.pipeline - 1
        ends = min(in_flight, num_micro_batches) * embedding_activation_bytes(parallel, tokens) if stage == 0 else 0
        if is_last:  # its backward begins when its forward ends, so of one micro-batch
            ends += head_activation_bytes(model, parallel, precision, tokens, on_gpu)
        result.append(
            StageMemory(
                stage=stage,
                parameters=sum(map(sum, tensors)),
                weights=elements * BYTES[precision],
                gradients=elements * FP32,
                main_weights=0 if precision == "fp32" else share * FP32,
                moments=2 * share * FP32,
                activations=in_flight * kept + ends,
                recomputed=again,
                logits=logit_bytes(model, parallel, precision, tokens) if is_last else 0,
            )
        )
    return tuple(result)


@dataclass(frozen=True)
class LayerActivations:
    """Bytes that one layer keeps of a micro-batch for backward, by what keeps them."""

    input: int
    """The residual stream, which is all that a layer recomputed in full keeps."""
    norms: int
    """Of two norms, split by sequence parallelism."""
    linear_inputs: int
    """Outputs of the norms, which qkv and fc1 keep, split by sequence parallelism."""
    attention_inputs: int
    """qkv's output, of which the values are a view, and rotated queries and keys."""
    attention: int
    """What core attention keeps, of these too."""
    core: int
    """What of that is made inside it, so again if it is recomputed."""
    attention_output: int
    """Which proj keeps."""
    mlp: int
    """fc1's output, of which up is a view, silu(gate), and their product, which fc2 keeps."""

    @property
    def whole(self) -> int:
        return self.norms + self.linear_inputs + self.attention + self.attention_output + self.mlp

    def kept(self, recompute: Recompute | None, layers: int) -> int:
        """Of a model chunk of `layers` layers."""
        if recompute is None:
            return layers * self.whole
        if recompute.granularity == "full":
            number = recompute.layers or 1
            if recompute.method == "block":
                return (layers - number) * self.whole + number * self.input
            return layers // number * self.input
        modules = recompute.modules or ("core_attn",)
        less = self.attention - self.attention_inputs if "core_attn" in modules else 0
        less += self.mlp if "mlp" in modules else 0
        return layers * (self.whole - less)

    def made_again(self, recompute: Recompute | None) -> int:
        """At a time."""
        if recompute is None:
            return 0
        if recompute.granularity == "full":
            return self.whole * (1 if recompute.method == "block" else recompute.layers or 1)
        modules = recompute.modules or ("core_attn",)
        return max(self.core if "core_attn" in modules else 0, self.mlp if "mlp" in modules else 0)


def layer_activations(
    model: ModelConfig, parallel: ParallelConfig, precision: str, tokens: int, on_gpu: bool
) -> LayerActivations:
    """What one of `mcore/stack.py`'s layers of torch keeps of `tokens` tokens of a rank."""
    hidden, keys = model.hidden_size, model.query_groups * model.head_size

    def split(elements: int) -> int:
        """Bytes of so many elements a token."""
        return BYTES[precision] * tokens * elements // parallel.tensor

    core = FP32 * tokens * model.num_heads // parallel.tensor  # a log-sum of each head
    inputs = split(2 * hidden + 3 * keys)
    if parallel.context > 1:  # keys and values of all ranks, and the parts that the output is put together from
        core += split(2 * keys * parallel.context + hidden)
        attention = core + split(hidden)
    else:
        attention = core + inputs
    residual = BYTES[precision] * _residual(model, parallel, tokens)
    return LayerActivations(
        input=residual,
        norms=2 * _norm_bytes(model, parallel, precision, tokens, on_gpu),
        linear_inputs=2 * residual,
        attention_inputs=inputs,
        attention=attention,
        core=core,
        attention_output=split(hidden),
        mlp=split(4 * model.ffn_hidden_size),
    )


def embedding_activation_bytes(parallel: ParallelConfig, tokens: int) -> int:
    """Bytes that the embedding keeps of `tokens` tokens, beside the batch itself.

    Split by tensor parallelism, it keeps its own numbering of the tokens, and which of them other ranks have.
    """
    return tokens * (INT64 + BOOL) if parallel.tensor > 1 else 0


def head_activation_bytes(
    model: ModelConfig, parallel: ParallelConfig, precision: str, tokens: int, on_gpu: bool
) -> int:
    """Bytes that final norm, head and loss keep of `tokens` tokens, without logits.

    The loss keeps each token's target, and whether that is in another rank's part of the vocabulary.
    """
    loss = tokens * (INT64 + BOOL)
    head_input = BYTES[precision] * _residual(model, parallel, tokens)
    return _norm_bytes(model, parallel, precision, tokens, on_gpu) + head_input + loss


def logit_bytes(model: ModelConfig, parallel: ParallelConfig, precision: str, tokens: int) -> int:
    """Bytes of the head's output at its largest: fp32 logits become the softmax in place, others beside it."""
    size = 0 if precision == "fp32" else BYTES[precision]
    return tokens * (FP32 + size) * model.padded_vocab_size // parallel.tensor


def chunks_in_flight(parallel: ParallelConfig, stage: int, num_micro_batches: int) -> int:
    """Most forward passes of a model chunk whose backward is yet to come on a stage.

    1F1B: a stage runs ahead by the stages after it. Interleaved: the warm-up of Megatron's schedules, twice the stages
    after it and all chunks but one of a group of `pipeline` micro-batches (arXiv 2104.04473, 2205.05198).
    """
    after, chunks = parallel.pipeline - 1 - stage, parallel.virtual_pipeline
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


def _bucket_size(parallel: ParallelConfig, on_gpu: bool) -> int | None:
    """Elements after which the first chunk of the first stage closes a bucket; None: one bucket holds all."""
    overlaps, _ = parallel.overlaps(on_gpu)
    return max(40_000_000, 1_000_000 * parallel.data) if overlaps else None


def _buffers(chunks: list[list[int]], parallel: ParallelConfig, bucket_size: int | None) -> tuple[int, int]:
    """Elements of the buffers of all chunks with their padding, and those of tensors in the fullest share."""
    shards = optimizer_shards(parallel)
    total, shares = 0, [0] * shards
    for number, sizes in enumerate(chunks):
        for spans in _buckets(sizes, bucket_size if number == 0 else None):
            elements = _round_up(spans[-1][1], math.lcm(shards, BUFFER_ALIGNMENT))
            width = elements // shards
            total += elements
            for start, end in spans:
                for shard in range(start // width, (end - 1) // width + 1):
                    shares[shard] += min(end, (shard + 1) * width) - max(start, shard * width)
    return total, max(shares)


def _buckets(sizes: list[int], bucket_size: int | None) -> list[list[tuple[int, int]]]:
    """Where each tensor of a buffer begins and ends in its bucket; Megatron packs in the order of backward."""
    buckets, end = [[]], 0
    for size in reversed(sizes):
        if bucket_size is not None and end >= bucket_size:
            buckets.append([])
            end = 0
        start = _round_up(end, TENSOR_ALIGNMENT)
        end = start + size
        buckets[-1].append((start, end))
    return buckets


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
