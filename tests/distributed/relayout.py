"""Save at layouts, load at others, in one launch: torchrun --nproc-per-node 4 relayout.py FOLDER SAVED-LOADED...

The model of each layout has other weights, those of its own training of two steps. Prints a JSON line with the
loss of the next step for each pair, and for each layout's own.
"""

import json
import sys
from pathlib import Path

import torch

from megatron_nca.config.model import ModelConfig
from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.config.recipe import OptimizerConfig, Phase
from megatron_nca.config.run_config import RunConfig
from megatron_nca.config.schema import to_yaml
from megatron_nca.mcore.engine import Engine, agree, read_ranks

MODEL = ModelConfig(
    num_layers=4, hidden_size=32, num_heads=4, ffn_hidden_size=64, sequence_length=16, vocab_size=100
)
LAYOUTS = {
    "tp2pp2": {"tensor": 2, "pipeline": 2},
    "tp4": {"tensor": 4},
    "pp4": {"pipeline": 4},
    "dp2tp2": {"data": 2, "tensor": 2},
}


def engine_of(layout: str, seed: int) -> Engine:
    phase = Phase(
        dataset="none", iterations=10, global_batch_size=4, micro_batch_size=1, precision="fp32",
        validation_sequences=4, optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.1, clip_grad=1.0),
        parallel=ParallelConfig(**LAYOUTS[layout]),
    )  # fmt: skip
    return Engine(MODEL, phase, read_ranks(), seed)


def fill(engine: Engine, seed: int) -> None:
    """Random weights, equal where ranks hold the same ones: on copies, and norms on tensor-parallel ranks."""
    from megatron.core import parallel_state

    place = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    generator = torch.Generator().manual_seed(1000 * seed + 10 * place[0] + place[1])
    with torch.no_grad():
        for parameter in engine.chunks[0].parameters():
            parameter.fill_(1.0) if parameter.dim() == 1 else parameter.normal_(0.0, 0.2, generator=generator)
    engine.optimizer.reload_model_params()


def step(engine: Engine, iteration: int) -> float:
    """A step on random tokens; each data-parallel rank takes its rows of the batch."""
    tokens = torch.randint(0, 100, (4, 17), generator=torch.Generator().manual_seed(iteration))
    from megatron.core import parallel_state

    copies, copy = engine.phase.parallel.data, parallel_state.get_data_parallel_rank()
    rows = [tokens[number : number + 1] for number in range(4) if number % copies == copy]
    batches = ({"tokens": r[:, :-1], "labels": r[:, 1:], "loss_mask": torch.ones(1, 16)} for r in rows)
    return engine.train_step(batches, iteration).loss


def save(engine: Engine, folder: Path, iteration: int) -> None:
    if engine.ranks.is_first:
        folder.mkdir()
        config = RunConfig(model=MODEL, iteration=iteration, consumed_sequences=4 * iteration, optimizer=True)
    agree(None)
    engine.start_save(folder).finish()
    if engine.ranks.is_first:
        (folder / "run_config.yaml").write_text(to_yaml(config))
    agree(None)


if __name__ == "__main__":
    folder, pairs = Path(sys.argv[1]), {tuple(pair.split("-")) for pair in sys.argv[2:]}
    layouts = [layout for layout in LAYOUTS if any(layout in pair for pair in pairs)]
    for seed, layout in enumerate(layouts):
        engine = engine_of(layout, seed)
        fill(engine, seed)
        for iteration in range(2):
            step(engine, iteration)
        save(engine, folder / layout, 2)
        engine.close()
    for loaded in layouts:
        engine = engine_of(loaded, 99)
        for saved in layouts:
            if saved != loaded and (saved, loaded) not in pairs:
                continue
            engine.load(folder / saved)
            if saved != loaded:
                save(engine, folder / f"{saved}-{loaded}", 2)
            loss = step(engine, 2)
            if engine.ranks.is_first:
                print(json.dumps({"saved": saved, "loaded": loaded, "loss": loss}), flush=True)
        engine.close()
