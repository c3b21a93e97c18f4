"""Megatron-LM's own training code, unmodified, on a CPU: builds its model, loads, computes logits, saves.

    MEGATRON_LM=SOURCE megatron_lm_worker.py JOB.json        (one rank)

The job: `arguments` of pretrain_gpt.py, `tokens` a .npy, `logits` the .npz to write, optional `steps` of its optimizer.
It loads where `arguments` have --load and saves where they have --save, through its setup_model_and_optimizer,
load_checkpoint and save_checkpoint. Outside CUDA machines megatron is shown our facade of torch.
"""

import functools
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from megatron_nca.mcore import cpu


def main(job: dict) -> None:
    sys.path.insert(0, os.environ["MEGATRON_LM"])  # its own megatron.core goes first
    sys.argv = ["pretrain_gpt.py", *job["arguments"]]
    cpu.install("megatron")
    if not torch.cuda.is_available():
        torch.nn.Module.cuda = lambda module, device=None: module
    import gpt_builders
    import model_provider
    from megatron.core.enums import ModelType
    from megatron.training import get_args, initialize
    from megatron.training.checkpointing import save_checkpoint
    from megatron.training.training import setup_model_and_optimizer

    initialize._compile_dependencies = lambda: None  # kernels that need nvcc, and a reader of datasets
    initialize.initialize_megatron(allow_no_cuda=True)
    provider = functools.partial(model_provider.model_provider, gpt_builders.gpt_builder)
    model, optimizer, scheduler = setup_model_and_optimizer(provider, ModelType.encoder_or_decoder)
    tokens = torch.from_numpy(np.load(job["tokens"]))
    length = tokens.shape[1]
    positions = torch.arange(length).expand_as(tokens)
    mask = torch.ones(1, 1, length, length).triu(1).bool()
    for _ in range(job.get("steps", 0)):
        model[0](tokens, positions, mask, labels=tokens.roll(-1, 1)).mean().backward()
        model[0].finish_grad_sync()
        optimizer.step()
        model[0].zero_grad_buffer()
        scheduler.step(increment=len(tokens))
    model[0].eval()
    with torch.no_grad():
        logits = model[0](tokens, positions, mask)
    weights = {name: value.detach().float().numpy() for name, value in model[0].module.named_parameters()}
    np.savez(job["logits"], logits=logits.float().numpy(), iteration=get_args().iteration, **weights)
    if get_args().save:
        save_checkpoint(job["steps"], model, optimizer, scheduler, 0)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
