"""The steps of a plan as jobs of a cluster: which share an allocation, which are an array, which wait for which."""

import re
from dataclasses import dataclass, field

from megatron_nca.cluster.profile import Cluster
from megatron_nca.config.recipe import Recipe
from megatron_nca.plan import Step, Unit


@dataclass(frozen=True)
class Task:
    """One step of the plan, or a share of one."""

    step: str
    """Its name in the plan."""
    flags: tuple[str, ...] = ()
    """Added to its command; `--shard I/N` makes it a share, which leaves no record of its own."""

    @property
    def is_share(self) -> bool:
        return "--shard" in self.flags


@dataclass(frozen=True)
class Job:
    """One submission: a job, or an array of jobs that differ in their tasks alone."""

    name: str
    """Fit for a file and for Slurm, whatever the recipe's names are, and the same at each submission of a recipe."""
    elements: tuple[tuple[Task, ...], ...]
    """The tasks of each element, in order; one element: no array."""
    numbers: tuple[int, ...] = ()
    """Of the elements that are not whole; a job that is whole has none and is not submitted."""
    after: tuple[str, ...] = ()
    """Jobs that must have ended well before."""
    pairwise: tuple[str, ...] = ()
    """Jobs of as many elements, of which each must have ended well before the element of the same number."""
    ranks: int = 1
    trains: bool = False

    @property
    def is_array(self) -> bool:
        return len(self.elements) > 1


@dataclass
class _Group:
    """What becomes one array: its elements and the units that it waits for."""

    label: str
    elements: list[tuple[Task, ...]] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    """The unit of each element."""
    needs: list[tuple[Unit, ...]] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    """Labels of groups that it follows."""
    ranks: int = 1
    trains: bool = False


def jobs(recipe: Recipe, steps: tuple[Step, ...], cluster: Cluster) -> tuple[Job, ...]:
    """All jobs of a plan, in an order in which each comes after those it waits for.

    A phase of an arm is one array over the seeds; the parts of a dataset are one, and so are the shards of a large one.
    """
    by_name = {step.name: step for step in steps}
    groups = _groups(recipe, steps, cluster)
    result: list[Job] = []
    made_by: dict[Unit, list[str]] = {}
    by_label: dict[str, list[str]] = {}
    units_of: dict[str, list[Unit]] = {}
    for group in groups:
        ranges = range(0, len(group.elements), cluster.array_limit)
        for part, first in enumerate(ranges, 1):
            chosen = slice(first, first + cluster.array_limit)
            name = f"{len(result) + 1:03d}-{_slug(group.label)}" + (f".{part}" if len(ranges) > 1 else "")
            elements = tuple(group.elements[chosen])
            numbers = tuple(i for i, tasks in enumerate(elements) if not _is_whole(tasks, by_name))
            after, pairwise = _after(group, chosen, made_by, by_label, units_of)
            result.append(Job(name, elements, numbers, after, pairwise, group.ranks, group.trains))
            by_label.setdefault(group.label, []).append(name)
            units_of[name] = group.units[chosen]
            for unit in set(group.units[chosen]):
                made_by.setdefault(unit, []).append(name)
    return tuple(result)


def _after(
    group: _Group, chosen: slice, made_by: dict, by_label: dict, units_of: dict
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the jobs that these elements wait for: all of them, and element by element."""
    needs = group.needs[chosen]
    waits = {label: by_label[label] for label in group.after}
    after = [name for names in waits.values() for name in names]
    pairwise: list[str] = []
    for column in range(max(map(len, needs), default=0)):
        wanted = [units[column] for units in needs]
        found = list(dict.fromkeys(name for unit in wanted for name in made_by.get(unit, ())))
        for name in found:
            same = units_of[name] == wanted and len(set(wanted)) == len(wanted) > 1
            (pairwise if same else after).append(name)
    return tuple(dict.fromkeys(after)), tuple(dict.fromkeys(pairwise))


def _groups(recipe: Recipe, steps: tuple[Step, ...], cluster: Cluster) -> list[_Group]:
    units: dict[Unit, list[Step]] = {}
    for step in steps:
        units.setdefault(step.unit, []).append(step)
    result: dict[str, _Group] = {}
    for unit, members in units.items():
        if unit[0] == "data":
            for group in _data_groups(recipe, unit, members, cluster):
                result[group.label] = group
        elif unit[0] == "train":
            _, arm, phase, _ = unit
            group = result.setdefault(f"train {arm} {phase}", _Group(f"{arm}.{phase}"))
            group.elements.append(tuple(Task(step.name) for step in members))
            group.units.append(unit)
            group.needs.append(members[0].needs)
            group.ranks, group.trains = members[-1].world_size, True
        else:
            needs = [tuple(dict.fromkeys(members[0].needs))]
            result["report"] = _Group("report", [(Task(members[0].name),)], [unit], needs)
    return list(result.values())


def _data_groups(recipe: Recipe, unit: Unit, members: list[Step], cluster: Cluster) -> list[_Group]:
    """First what comes one after the other, then parts side by side, large ones by shards that are joined."""
    name, needs = str(unit[1]), members[0].needs
    head = [step for step in members if not step.dataset]
    parts = [step for step in members if step.dataset]
    result = []
    if head:
        result.append(_Group(f"data.{name}", [tuple(Task(step.name) for step in head)], [unit], [needs]))
    waits = [group.label for group in result]
    small = _Group(f"data.{name}.parts" if head else f"data.{name}", after=waits)
    for step in parts:
        flags, shards = _sharing(recipe, name, step, cluster)
        if not shards:
            small.elements.append((Task(step.name, flags),))
            small.units.append(unit)
            small.needs.append(needs)
            continue
        part = _part(step)
        tasks = [(Task(step.name, (*flags, "--shard", f"{shard}/{shards}")),) for shard in range(shards)]
        label = f"data.{name}.{part}.shards"
        result.append(_Group(label, tasks, [unit] * shards, [needs] * shards))
        merge = (Task(step.name, (*flags, "--merge")),)
        result.append(_Group(f"data.{name}.{part}", [merge], [unit], [needs], after=[label]))
    return [*result, small] if small.elements else result


def _sharing(recipe: Recipe, name: str, step: Step, cluster: Cluster) -> tuple[tuple[str, ...], int]:
    """Flags of `generate`, and how many shards make the part; 0: one job does."""
    dataset, settings = recipe.datasets[name], cluster.generation
    if dataset.source != "nca":
        return (), 0
    part = _part(step)
    flags = ()
    if part == "train" and name in settings.banks:
        flags = ("--bank", settings.banks[name], "--extend-bank")
    large = recipe.part_sequences(name, part) >= settings.from_sequences
    return flags, settings.shards if large and settings.shards > 1 else 0


def _part(step: Step) -> str:
    """`train` or `validation`."""
    return step.name.split(":")[0].rsplit(" ", 1)[1]


def _is_whole(tasks: tuple[Task, ...], by_name: dict[str, Step]) -> bool:
    return all(by_name[task.step].whole for task in tasks)


def _slug(text: str) -> str:
    """Letters, digits, dots, dashes and underscores of a name, other characters as underscores."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:80]
