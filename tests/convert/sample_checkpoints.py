"""Small checkpoints for the tests of conversion."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.run_config import RunConfig
from megatron_nca.convert import formats, megatron
from megatron_nca.convert.canonical import CanonicalCheckpoint, CanonicalTensor
from megatron_nca.initialise import TensorSpec, tensor_table
from megatron_nca.mcore.model_reference import LlamaReference

CONFIG = ModelConfig(num_layers=3, hidden_size=32, num_heads=4, num_query_groups=2, ffn_hidden_size=48, vocab_size=200)


def random_checkpoint(
    config: ModelConfig = CONFIG, seed: int = 0, zero_padding: bool = False
) -> CanonicalCheckpoint:
    """A model as if trained: every tensor, norms too, is random; rows of padding as well unless `zero_padding`."""

    def reader(index: int, spec: TensorSpec) -> Callable[[], torch.Tensor]:
        def read() -> torch.Tensor:
            array = np.random.default_rng([seed, index]).normal(size=spec.shape).astype(np.float32)
            if zero_padding and spec.filled_rows is not None:
                array[spec.filled_rows :] = 0
            return torch.from_numpy(array)

        return read

    tensors = [
        CanonicalTensor(spec.name, spec.shape, "float32", reader(index, spec))
        for index, spec in enumerate(tensor_table(config))
    ]
    return CanonicalCheckpoint("random", config, tuple(tensors), iteration=40)


def values(checkpoint: CanonicalCheckpoint) -> dict[str, np.ndarray]:
    """All weights as float32 arrays."""
    return {tensor.name: tensor.read().float().numpy() for tensor in checkpoint.tensors}


def write_random(folder: Path, config: ModelConfig = CONFIG, seed: int = 0) -> Path:
    megatron.write(folder, random_checkpoint(config, seed), RunConfig(model=config, iteration=40))
    return folder


def assert_same(expected: CanonicalCheckpoint, found: CanonicalCheckpoint, padding: bool = True) -> None:
    """The same model and the same tensors to the bit, rows of `padding` included."""
    assert {tensor.name for tensor in found.tensors} == {tensor.name for tensor in expected.tensors}
    formats.compare(expected, found, every_bit=True, padding=padding)


def reference_logits(checkpoint: CanonicalCheckpoint, tokens: torch.Tensor) -> torch.Tensor:
    """Of plain PyTorch with the weights of `checkpoint`, (B, S, padded vocabulary)."""
    kinds = {"qkv": "attention.qkv", "proj": "attention.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    model = LlamaReference(checkpoint.model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            parts = [kinds.get(part, part) for part in name.split(".")]
            weight.copy_(checkpoint.tensor(".".join(parts)).read())
        return model.logits(tokens)


class Bomb:
    """Runs a command when unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return io.open, (str(self.path), "w")
