"""What the whole training stack costs over the same model in plain PyTorch, one process, CPU or GPU.

    python benchmarks/training_overhead.py [--threads 2] [--iterations 12] [--rounds 5] [--only middle]

Both sides train the same weights on the same batches with fused AdamW, clipping and the same precision, in one run and
in turns (A B A B …), so that a noisy machine disturbs both alike; where it is shared, processor time and the smallest
turn say more. Ours is the Engine with datasets, distributed optimizer, gradient buffers, metrics.jsonl and TensorBoard;
theirs is a bare loop around LlamaReference. No side saves.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from megatron_nca.account.flops import flops_per_token
from megatron_nca.config.law import NcaLaw
from megatron_nca.config.model import ModelShape
from megatron_nca.config.recipe import OptimizerConfig, Phase
from megatron_nca.data.indexed import IndexedWriter
from megatron_nca.data.trajectories import Trajectory
from megatron_nca.mcore.engine import Engine, datasets, read_ranks
from megatron_nca.mcore.model_reference import LlamaReference
from megatron_nca.run_dir import PhaseFolder
from megatron_nca.train.boards import TensorBoard
from megatron_nca.train.metrics import Machine, Metrics

LAW = NcaLaw(num_states=2, height=8, width=8, sequence_length=256, band=(0.1, 1.0))
SHAPES = {
    "demo (4 layers, 128)": ModelShape(
        num_layers=4, hidden_size=128, num_heads=4, ffn_hidden_size=344, sequence_length=256
    ),
    "middle (4 layers, 256)": ModelShape(
        num_layers=4, hidden_size=256, num_heads=4, ffn_hidden_size=704, sequence_length=256
    ),
    "small (6 layers, 256)": ModelShape(
        num_layers=6, hidden_size=256, num_heads=4, ffn_hidden_size=704, sequence_length=256
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--iterations", type=int, default=12, help="iterations of each turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side; a further one warms up")
    parser.add_argument("--only", default="", help="models whose name has this in it, such as middle")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{arguments.threads} threads, torch {torch.__version__}, {device}, fp32, 2,048 tokens an iteration")
    print("| model | ours, ms an iteration | plain PyTorch | overhead | in processor time | of the smallest turns |")
    print("|---|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        if arguments.only not in name:
            continue
        ours, plain = compare(shape, arguments.iterations, arguments.rounds)
        wall, processor = (
            100 * (statistics.median(o[clock] / p[clock] for o, p in zip(ours, plain, strict=True)) - 1)
            for clock in (0, 1)
        )
        of_ours, of_plain = (1e3 * statistics.median(wall for wall, _ in times) for times in (ours, plain))
        least = 100 * (min(processor for _, processor in ours) / min(processor for _, processor in plain) - 1)
        columns = f"{wall:+.1f} % | {processor:+.1f} % | {least:+.1f} %"
        print(f"| {name} | {of_ours:.1f} | {of_plain:.1f} | {columns} |", flush=True)


Seconds = tuple[float, float]
"""Of wall time and of processor time, an iteration."""


def compare(shape: ModelShape, iterations: int, rounds: int) -> tuple[list[Seconds], list[Seconds]]:
    """Of both sides, one entry a round."""
    optimizer = OptimizerConfig(lr=1e-3, weight_decay=0.1, clip_grad=1.0)
    phase = Phase(
        dataset="nca",
        iterations=10_000,
        global_batch_size=8,
        micro_batch_size=8,
        validation_sequences=8,
        optimizer=optimizer,
        precision="fp32",
    )
    with tempfile.TemporaryDirectory() as folder:
        prefix = _random_documents(Path(folder) / "nca")
        engine = Engine(shape.with_vocabulary(LAW.vocab_size), phase, read_ranks(), seed=0)
        data = datasets(prefix, prefix, 256, 0, 80_000, 8, Path(folder) / "cache", LAW.vocab_size)
        machine = Machine(flops_per_token=flops_per_token(engine.model_config), devices=1, peak_flops=None,
                          memory=engine.memory)
        metrics = Metrics(PhaseFolder(Path(folder)), phase, 256, machine,
                          boards=lambda: [TensorBoard(Path(folder) / "tensorboard", 0)])
        plain = _Plain(shape, engine.device)
        times: tuple[list, list] = ([], [])
        step = 0
        for turn in range(rounds + 1):  # the first round warms up
            seconds = (
                _time(lambda i: _ours(engine, data, metrics, i), step, iterations),
                _time(lambda i: plain.step(data, i), step, iterations),
            )
            step += iterations
            if turn:
                for kept, value in zip(times, seconds, strict=True):
                    kept.append(value)
        metrics.close()
        engine.close()
    return times


def _time(action: object, first: int, iterations: int) -> Seconds:
    started, used = time.perf_counter(), time.process_time()
    for iteration in range(first, first + iterations):
        action(iteration)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / iterations, (time.process_time() - used) / iterations


def _ours(engine: Engine, data: object, metrics: Metrics, iteration: int) -> None:
    steps, waiting = metrics.clock.steps, metrics.clock.waiting
    with steps:
        batches = data.train_batches(8 * iteration, 8, 8, engine.device)
        result = engine.train_step(waiting.over(batches), iteration)
    metrics.train(iteration + 1, 8 * iteration + 8, 8, result, steps.last)


class _Plain:
    """A bare training loop: model, clipping, fused AdamW."""

    def __init__(self, shape: ModelShape, device: torch.device) -> None:
        self.model = LlamaReference(shape.with_vocabulary(LAW.vocab_size)).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
        self.device = device

    def step(self, data: object, iteration: int) -> float:
        samples = [data.train[index] for index in range(8 * iteration, 8 * iteration + 8)]
        tokens, labels, mask = (
            torch.as_tensor(np.stack([sample[key] for sample in samples]).astype(np.int64)).to(self.device)
            for key in ("tokens", "labels", "loss_mask")
        )
        loss = (self.model(tokens, labels) * mask).sum() / mask.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def _random_documents(prefix: Path) -> Path:
    """Data whose content does not matter here."""
    tokens = np.random.default_rng(0).integers(0, LAW.num_tokens, (2048, LAW.document_tokens))
    trajectory = Trajectory.of_law(LAW)
    with IndexedWriter(prefix, LAW.num_tokens) as writer:
        writer.add_documents(tokens)
        writer.finish({"kind": "nca", "vocab_size": LAW.vocab_size, "trajectory": trajectory, "origin": {}})
    return prefix


if __name__ == "__main__":
    main()
