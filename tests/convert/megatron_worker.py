"""Real Megatron models that load, step and save checkpoints, for test_interop.py and test_hf.py.

    megatron_worker.py JOB.json        (under torchrun for more than one rank)

The job is a list of mappings: `layout` and `precision` of the model, `load` a checkpoint, optional `steps` on random
tokens and their `lr`, optional `save` a checkpoint, optional `dump` all weights of this rank as a .npz (one rank only),
optional `logits`: where to write those of the .npy of token numbers (B, L) in `tokens`, as a .npy (B, L, rows).
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from megatron_nca.config.parallel import ParallelConfig
from megatron_nca.config.recipe import OptimizerConfig, Phase
from megatron_nca.config.run_config import RunConfig, load_run_config
from megatron_nca.config.schema import to_yaml
from megatron_nca.mcore.engine import Engine
from megatron_nca.mcore.parallel import Ranks, read_ranks


def batches(vocab_size: int, length: int):
    """Endless random micro-batches, the same on every rank."""
    rng = np.random.default_rng(0)
    while True:
        tokens = torch.from_numpy(rng.integers(0, vocab_size, (2, length + 1)))
        yield {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "loss_mask": torch.ones(2, length)}


def logits(engine: Engine, tokens: torch.Tensor) -> torch.Tensor | None:
    """Of tokens (B, L): (B, L, padded vocabulary) on the first rank of the last stage, None elsewhere."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    def forward(batches: object, model: torch.nn.Module) -> tuple:
        return model(next(batches), None, None), lambda output, non_loss_data: output

    for chunk in engine.chunks:
        chunk.eval()
    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=forward, data_iterator=iter([tokens]), model=engine.chunks, num_microbatches=1,
            seq_length=tokens.shape[1], micro_batch_size=len(tokens), forward_only=True, collect_non_loss_data=True,
        )  # fmt: skip
        if not parallel_state.is_pipeline_last_stage():
            return None
        whole = gather_from_tensor_model_parallel_region(outputs[0])
    first = parallel_state.get_tensor_model_parallel_rank() == parallel_state.get_data_parallel_rank() == 0
    return whole if first else None


def execute(job: dict, ranks: Ranks) -> None:
    model = load_run_config(job["load"]).model
    phase = Phase(
        dataset="none",
        iterations=10,
        global_batch_size=2 * job["layout"].get("data", 1),
        micro_batch_size=2,
        precision=job["precision"],
        parallel=ParallelConfig(**job["layout"]),
        validation_sequences=2 * job["layout"].get("data", 1),
        optimizer=OptimizerConfig(lr=job.get("lr", 1e-2)),
    )
    engine = Engine(model, phase, ranks, seed=0)
    engine.load(Path(job["load"]))
    data = batches(model.vocab_size, model.sequence_length)
    for iteration in range(job.get("steps", 0)):
        engine.train_step(data, iteration)
    if "logits" in job:
        result = logits(engine, torch.from_numpy(np.load(job["tokens"])))
        if result is not None:
            np.save(job["logits"], result.numpy())
    if "dump" in job:
        np.savez(
            job["dump"],
            **{name: weight.detach().float().numpy() for name, weight in engine.chunks[0].module.named_parameters()},
        )
    if "save" in job:
        folder = Path(job["save"])
        if ranks.is_first:
            folder.mkdir(parents=True)
            run_config = RunConfig(model=model, iteration=job.get("steps", 0), optimizer=True)
            (folder / "run_config.yaml").write_text(to_yaml(run_config))
        torch.distributed.barrier()
        engine.start_save(folder).finish()
    engine.close()


if __name__ == "__main__":
    for item in json.loads(Path(sys.argv[1]).read_text()):
        execute(item, read_ranks())
