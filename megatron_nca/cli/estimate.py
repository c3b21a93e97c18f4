"""`megatron-nca estimate`: what a recipe takes, before a device is asked for."""

import argparse
import dataclasses
import json
import math
from pathlib import Path

from megatron_nca.account.devices import DEVICES
from megatron_nca.cli.arguments import accept_overrides_anywhere
from megatron_nca.errors import ConfigError, explain
from megatron_nca.files import size_text

EXAMPLES = """examples:
  megatron-nca estimate launch/recipes/released_openwebtext.yaml
  megatron-nca estimate launch/recipes/released_openwebtext.yaml --phase text --world-size 64 --mfu 0.35
  megatron-nca estimate launch/recipes/demo.yaml --device cpu --peak-tflops 0.1 --memory-gib 8 --json
  does the layout build, and does one rank hold what the formulas say (no GPU and no memory for weights is needed)
    megatron-nca estimate launch/recipes/released_openwebtext.yaml phases.text.parallel.tensor=4 \\
        phases.text.micro_batch_size=4 --phase text --world-size 512 --build --rank 511

FLOPs are those of the model by Megatron-LM's convention: 6 x tokens x (matrices of the layers and the head + layers x
hidden x sequence), causal attention counted half. Memory is what a device holds between and within steps; gradients of
activations, workspaces, NCCL's buffers and gaps come on top. Neither is a measurement.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="YAML file, such as launch/recipes/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings of the recipe to change")
    parser.add_argument("--phase", metavar="NAME", help="this phase only (default: all)")
    parser.add_argument("--world-size", type=int, metavar="N", help="devices; the copies of the model follow from it")
    parser.add_argument("--mfu", type=float, default=0.4, metavar="X", help="model FLOPs utilisation (default 0.4)")
    parser.add_argument("--device", choices=DEVICES, default="h100", help="peak rate and memory (default h100)")
    parser.add_argument("--peak-tflops", type=float, metavar="X", help="of one device, 10^12 a second, instead")
    parser.add_argument("--memory-gib", type=float, metavar="X", help="of one device, instead")
    parser.add_argument("--build", action="store_true", help="build one rank without memory, and compare what it holds")
    parser.add_argument("--rank", type=int, metavar="R", help="which one --build builds (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object; bytes, and device-hours per phase")
    accept_overrides_anywhere(parser)


def run(arguments: argparse.Namespace) -> int:
    from megatron_nca.config.recipe import load_recipe

    _check_numbers(arguments)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    figures = {"recipe": recipe.name, "device": _device(arguments), "mfu": arguments.mfu, "phases": {}}
    for name in _chosen(recipe, arguments.phase):
        try:
            figures["phases"][name] = _phase(recipe, name, arguments)
        except ConfigError as error:
            raise ConfigError(f"phases.{name}: {error}") from error
    if arguments.phase is None:
        figures["run"] = _whole_run(recipe, figures["phases"])
    print(json.dumps(figures, indent=2) if arguments.json else "\n".join(_in_words(figures)))
    return 0


def _check_numbers(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.mfu <= 1:
        cure = "give a share such as 0.4."
        raise ConfigError(explain("--mfu", arguments.mfu, "is not above 0 and at most 1.", cure))
    for flag in ("peak_tflops", "memory_gib"):
        value = getattr(arguments, flag)
        if value is not None and not 0 < value < math.inf:
            cure = "give a positive number, or leave it out."
            raise ConfigError(explain(f"--{flag.replace('_', '-')}", value, "must be positive and finite.", cure))
    if arguments.rank is not None and not arguments.build:
        raise ConfigError(explain("--rank", arguments.rank, "belongs to --build.", "add --build, or leave it out."))


def _chosen(recipe: object, phase: str | None) -> list[str]:
    from megatron_nca.config.schema import suggest

    if phase is not None and phase not in recipe.phases:
        raise ConfigError(f"--phase = {phase!r}: not a phase of this recipe.{suggest(phase, list(recipe.phases))}")
    return [phase] if phase else list(recipe.phases)


def _device(arguments: argparse.Namespace) -> dict:
    device = DEVICES[arguments.device]
    memory = device.memory_bytes if arguments.memory_gib is None else int(arguments.memory_gib * 2**30)
    return {"name": device.name, "memory_bytes": memory}


def _phase(recipe: object, name: str, arguments: argparse.Namespace) -> dict:
    """All figures of a phase; memory of each pipeline stage."""
    from megatron_nca import plan
    from megatron_nca.account import flops, layout, memory, parameters
    from megatron_nca.config.schema import to_dict

    phase, model = recipe.phases[name], recipe.model_config(name)
    if arguments.world_size is not None:
        phase = dataclasses.replace(phase, parallel=layout.at_world_size(phase.parallel, arguments.world_size))
    parallel, counted = phase.parallel, parameters.parameters(model)
    if arguments.build and parallel.engine != "megatron":
        reason = f"parallel.engine is {parallel.engine!r}, of which no rank can be built alone."
        raise ConfigError(explain("--build", True, reason, "leave it out, or set parallel.engine to megatron."))
    micro_batches = phase.global_batch_size // (phase.micro_batch_size * parallel.data)
    tokens = plan.phase_tokens(recipe, name)
    total = flops.flops_per_token(model) * tokens
    peak = DEVICES[arguments.device].peak_flops(phase.precision)
    peak = peak if arguments.peak_tflops is None else arguments.peak_tflops * 1e12
    hours = None if peak is None else flops.device_hours(total, peak, arguments.mfu)
    per_parameter = memory.checkpoint_bytes_per_parameter(phase.precision)
    figures = {
        "parameters": {**dataclasses.asdict(counted), "without_vocabulary": counted.body, "total": counted.total},
        "vocab_size": model.vocab_size,
        "padded_vocab_size": model.padded_vocab_size,
        "precision": phase.precision,
        "fp8": phase.fp8,
        "iterations": phase.iterations,
        "sequences_per_iteration": phase.global_batch_size,
        "sequence_length": model.sequence_length,
        "tokens": tokens,
        "layout": {
            "tensor": parallel.tensor,
            "pipeline": parallel.pipeline,
            "virtual_pipeline": parallel.virtual_pipeline,
            "context": parallel.context,
            "data": parallel.data,
            "engine": parallel.engine,
            "devices": parallel.world_size,
            "sequence_parallel": parallel.sequence_parallel,
            "recompute": to_dict(parallel.recompute),
            "micro_batches": micro_batches,
            "micro_batch_size": phase.micro_batch_size,
        },
        "memory_bytes": _memory(model, phase, micro_batches, arguments.device != "cpu"),
        "flops_per_token": flops.flops_per_token(model),
        "flops": total,
        "peak_flops": peak,
        "device_hours": hours,
        "checkpoint_bytes": counted.total * per_parameter,
    }
    if arguments.build:
        figures["built"] = _build(model, phase, arguments.rank or 0, micro_batches)
    return figures


def _memory(model: object, phase: object, micro_batches: int, on_gpu: bool) -> list[dict] | None:
    """Of each pipeline stage; None for an engine whose memory is not counted."""
    from megatron_nca.account.memory import memory
    from megatron_nca.config.parallel import Recompute

    if phase.parallel.engine != "megatron":
        return None
    stages, fully = (
        memory(model, split, phase.precision, phase.micro_batch_size, micro_batches, on_gpu=on_gpu)
        for split in (phase.parallel, dataclasses.replace(phase.parallel, recompute=Recompute(granularity="full")))
    )
    return [
        {**dataclasses.asdict(stage), "total": stage.total, "total_recomputed_in_full": less.total}
        for stage, less in zip(stages, fully, strict=True)
    ]


def _build(model: object, phase: object, rank: int, micro_batches: int) -> dict:
    """What one rank holds when it is built, and whether the formulas say the same of its stage."""
    import torch

    from megatron_nca.account.memory import memory
    from megatron_nca.mcore import lone_rank

    built = dataclasses.asdict(lone_rank.build(model, phase, rank))
    here = {"on_gpu": torch.cuda.is_available()}  # it is built as it would be on this machine
    stages = memory(model, phase.parallel, phase.precision, phase.micro_batch_size, micro_batches, **here)
    stage = stages[built["stage"]]
    exact = all(built[part] == getattr(stage, part) for part in ("parameters", "weights", "gradients"))
    # A share of the weights may hold padding where the fullest one, which the formula gives, holds none.
    return {**built, "equal": exact and built["moments"] <= stage.moments}


def _whole_run(recipe: object, phases: dict) -> dict:
    """Every phase of every arm and seed, phases that arms share once, and the disk of the run folder."""
    from megatron_nca import plan

    data, checkpoints = plan.estimate_bytes(recipe)
    trained = [
        step.phase
        for arm, chain in recipe.arms.items()
        for position, step in enumerate(chain.steps)
        if recipe.home_arm(arm, position) == arm
    ] * len(recipe.seeds)
    hours = [phases[name]["device_hours"] for name in trained]
    return {
        "trainings": len(trained),
        "flops": sum(phases[name]["flops"] for name in trained),
        "device_hours": None if None in hours else sum(hours),
        "generated_data_bytes": data,
        "checkpoint_bytes": checkpoints,
    }


def _in_words(figures: dict) -> list[str]:
    from megatron_nca.account.flops import FORMULA

    lines = []
    for name, phase in figures["phases"].items():
        lines += _phase_in_words(name, phase, figures)
    if "run" in figures:
        whole = figures["run"]
        unknown = "device-hours not known without a rated peak; give --peak-tflops"
        hours = unknown if whole["device_hours"] is None else f"{_hours(whole['device_hours'])} device-hours"
        lines += [
            f"the run, {whole['trainings']} trainings: {whole['flops']:.3g} FLOPs, {hours}",
            f"  disk: {size_text(whole['generated_data_bytes'])} of generated data, up to "
            f"{size_text(whole['checkpoint_bytes'])} of checkpoints",
        ]
    return [*lines, f"FLOPs, as Megatron-LM counts them: {FORMULA}"]


def _phase_in_words(name: str, phase: dict, figures: dict) -> list[str]:
    counted, layout, device = phase["parameters"], phase["layout"], figures["device"]
    tokens, batch = phase["tokens"], phase["sequences_per_iteration"]
    batch = f"{batch:,}" if tokens == phase["iterations"] * batch * phase["sequence_length"] else f"up to {batch:,}"
    split = " x ".join(f"{axis} {layout[axis]}" for axis in ("tensor", "pipeline", "context", "data"))
    also = {"virtual_pipeline": layout["virtual_pipeline"] > 1, "sequence_parallel": layout["sequence_parallel"]}
    also = "".join(f", {axis} {layout[axis]}" for axis, there in also.items() if there)
    if phase["peak_flops"] is None:
        time = f"not known: a {device['name']} has no rated peak; give --peak-tflops"
    else:
        hours, rate = phase["device_hours"], phase["peak_flops"] / 1e12
        precision = f"{phase['precision']}{', fp8 not counted' if phase['fp8'] else ''}"
        time = (
            f"{_hours(hours)} at {100 * figures['mfu']:g} % of {rate:g} TFLOP/s ({device['name']}, {precision}), "
            f"{_hours(hours / layout['devices'])} h on {layout['devices']:,} devices"
        )
    return [
        f"phase {name}: {phase['iterations']:,} iterations of {batch} sequences, {tokens:,} tokens",
        f"  parameters    {counted['total']:,}; {counted['without_vocabulary']:,} without embedding and head of "
        f"{phase['padded_vocab_size']:,} rows each ({phase['vocab_size']:,} in use)",
        f"  layout        {split} = {layout['devices']:,} devices{also}; micro-batches of "
        f"{layout['micro_batch_size']}, {layout['micro_batches']} an iteration",
        *_memory_in_words(phase, device),
        f"  operations    {phase['flops_per_token']:,} FLOPs a token, {phase['flops']:.4g} in all",
        f"  device-hours  {time}",
        f"  checkpoint    {size_text(phase['checkpoint_bytes'])} each while training",
        *(_built_in_words(phase["built"]) if "built" in phase else []),
        "",
    ]


PARTS = {
    "weights": "weights",
    "gradients": "gradients, fp32",
    "main_weights": "fp32 main weights, share",
    "moments": "Adam's moments, share",
    "activations": "activations",
    "recomputed": "  recomputed at a time",
    "logits": "logits and cross-entropy",
}


def _memory_in_words(phase: dict, device: dict) -> list[str]:
    if phase["memory_bytes"] is None:
        return [f"  memory        not counted for the engine {phase['layout']['engine']}"]
    stage = max(phase["memory_bytes"], key=lambda stage: stage["total"])
    lines = [f"  memory        of a device of stage {stage['stage']}, the fullest of {len(phase['memory_bytes'])}:"]
    lines += [f"    {words:<26}{_gib(stage[part])}" for part, words in PARTS.items() if stage[part]]
    totals, less = _gib(stage["total"]), stage["total_recomputed_in_full"]
    if phase["layout"]["recompute"] is None:
        totals += f", {_gib(less).strip()} with recompute full"
    if device["memory_bytes"] is not None:
        fits = "" if stage["total"] <= device["memory_bytes"] else " DOES NOT FIT"
        fits += " even with recompute full" if less > device["memory_bytes"] else ""
        totals += f", of {_gib(device['memory_bytes']).strip()}{fits}"
    return [*lines, f"    {'in all':<26}{totals}"]


def _built_in_words(built: dict) -> list[str]:
    verdict = "as the formulas say" if built["equal"] else "NOT as the formulas say"
    return [
        f"  built         rank {built['rank']}, stage {built['stage']}: {built['parameters']:,} parameters, "
        f"{_gib(built['weights']).strip()} of weights, {_gib(built['gradients']).strip()} of gradients, "
        f"{_gib(built['moments']).strip()} of moments, {verdict}"
    ]


def _gib(number: int) -> str:
    """Bytes, right-aligned; GiB, or MiB where that would show too little."""
    return f"{number / 2**30:10,.2f} GiB" if number >= 0.1 * 2**30 else f"{number / 2**20:10,.2f} MiB"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.3g}"
