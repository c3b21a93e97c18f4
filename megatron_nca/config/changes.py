"""What may change in the recipe of a run folder that has begun: how phases run, and what is added; never what is
measured.

Memory runs out, a cluster shrinks, one seed turns out to be too few: none of that should cost what is trained already.
Batches, schedules, data, models and starts stay, so arms and seeds of one folder stay comparable.
"""

from megatron_nca.config.recipe import Recipe
from megatron_nca.config.schema import to_dict

HOW_A_PHASE_RUNS = (
    "micro_batch_size",
    "parallel",
    "on_bad_loss",
    "save_interval",
    "keep_checkpoints",
    "keep_every",
    "async_save",
    "fully_parallel_checkpoints",
    "verify_checkpoints",
    "log_interval",
)
"""Settings of a phase that change no update of it, beyond the order of sums, as long as no loss is bad."""
ADDABLE = ("datasets", "phases", "arms")
MAY_CHANGE = (
    f"In a begun folder these may change: of a phase {', '.join(HOW_A_PHASE_RUNS)}; wandb and description; and seeds, "
    "arms, phases and datasets may be added, arms behind the old ones."
)
Place = tuple[str, ...]


def changes(before: Recipe, after: Recipe) -> tuple[list[str], list[str]]:
    """In words, how `after` differs from `before`: where it may once a run has begun, and where it may not."""
    there, here = _leaves(to_dict(before)), _leaves(to_dict(after))
    allowed: dict[str, None] = {}
    refused: dict[str, None] = {}
    for path in {**there, **here}:
        if there.get(path) == here.get(path):
            continue
        words = f"{'.'.join(path)}: {there.get(path)!r} before, {here.get(path)!r} now"
        if _is_added(path, before, after):
            allowed[f"{path[0]}.{path[1]}: added"] = None
        elif _may_change(path, before, after):
            allowed[words] = None
        else:
            refused[words] = None
    return list(allowed), list(refused)


def _is_added(path: Place, before: Recipe, after: Recipe) -> bool:
    if path[0] not in ADDABLE or path[1] in getattr(before, path[0]):
        return False
    # A phase that arms share is run in the first of them, so an arm before the old ones would move what is there.
    return path[0] != "arms" or list(after.arms)[: len(before.arms)] == list(before.arms)


def _may_change(path: Place, before: Recipe, after: Recipe) -> bool:
    if path[0] == "phases":
        return path[1] in after.phases and path[2] in HOW_A_PHASE_RUNS
    if path[0] == "seeds":
        return set(before.seeds) <= set(after.seeds)
    return path[0] in ("wandb", "description")


def _leaves(values: object, path: Place = ()) -> dict[Place, object]:
    if not isinstance(values, dict):
        return {path: values}
    return {key: leaf for word, value in values.items() for key, leaf in _leaves(value, (*path, str(word))).items()}
