"""A recipe as an ordered list of command lines; only this file knows the order of the verbs.

A step is whole when the file it writes last is there. Walking the list (`cli/run.py`) skips what is whole, so a plan
that is walked again goes on where it stopped.
"""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import megatron_nca
from megatron_nca.account.memory import checkpoint_bytes_per_parameter
from megatron_nca.account.parameters import parameters
from megatron_nca.config.changes import MAY_CHANGE, changes
from megatron_nca.config.recipe import ArmStep, Dataset, Phase, Recipe, load_recipe
from megatron_nca.config.schema import to_yaml
from megatron_nca.errors import ConfigError, DataError, explain
from megatron_nca.files import write_text
from megatron_nca.run_dir import RunFolder

PARTS = ("train", "validation")
Unit = tuple[str | int, ...]
"""What is made as a whole and others wait for: ("data", dataset), ("train", arm, phase, seed) or ("report",)."""
COLLECTED = {"python-stdlib": "stdlib_corpus.py", "debian-docs": "debian_corpus.py"}
"""Texts that machines have, and the programs that gather them."""
BACKGROUND_NICE = 10
"""By how much a generator in the background stands back behind the training."""
DATA_TOOLS = Path(megatron_nca.__file__).resolve().parent.parent / "data_tools"


@dataclass(frozen=True)
class Step:
    """One command of a plan."""

    name: str
    command: tuple[str, ...]
    done: Path
    """The file that the command writes last."""
    log: Path | None = None
    """Where the command keeps its own log, for messages."""
    world_size: int = 1
    """Processes that the command starts at the same time."""
    after: tuple[Path, ...] = ()
    """Files that `done` must be at least as new as; the report is made again when a run has gone on, or is to."""
    trains: bool = False
    """Whether it is a training, which takes flags that are no part of a recipe and may stop in good order."""
    dataset: bool = False
    """Whether `done` is the manifest of a dataset, which states the sizes of the files beside it."""
    unit: Unit = ("report",)
    needs: tuple[Unit, ...] = ()
    """Units that must be whole before; the steps of one unit follow each other."""

    @property
    def whole(self) -> bool:
        """Whether nothing is left to do."""
        if not self.done.is_file():
            return False
        made = self.done.stat().st_mtime_ns
        if any(not path.exists() or path.stat().st_mtime_ns > made for path in self.after):
            return False
        return not self.dataset or _sizes_agree(self.done)


def _sizes_agree(manifest: Path) -> bool:
    """Whether the .bin and .idx beside a dataset's manifest have the sizes it states."""
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return all(manifest.with_suffix(f".{end}").stat().st_size == files[end]["bytes"] for end in ("bin", "idx"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def steps(recipe: Recipe, run_folder: RunFolder) -> tuple[Step, ...]:
    """All steps of `recipe` in an order in which each finds what it needs.

    Datasets first, bases before what is made of them, then for each seed and arm its phases: the initial checkpoint,
    then training. A chain of phases that several arms begin with is run once, in the first of them.
    Raises ConfigError if `data_tools/` is not there.
    """
    result = [step for name in _bases_first(recipe) for step in _dataset_steps(recipe, run_folder, name)]
    for seed in recipe.seeds:
        for arm in recipe.arms:
            result += _arm_steps(recipe, run_folder, arm, seed)
    trained = [step for step in result if step.trains]
    command, needs = _verb("report", run_folder.path), tuple(step.unit for step in trained)
    after = tuple(step.done for step in trained)
    return (*result, Step("report", command, run_folder.report / "report.md", after=after, needs=needs))


def _bases_first(recipe: Recipe) -> list[str]:
    """The datasets in the order of the recipe, but each after the one it is made of."""
    result: list[str] = []
    for name in recipe.datasets:
        chain = [name]
        while (base := recipe.datasets[chain[-1]].base) is not None:
            chain.append(base)
        result += [link for link in reversed(chain) if link not in result]
    return result


def _verb(*words: object) -> tuple[str, ...]:
    return (sys.executable, "-m", "megatron_nca", *map(str, words))


def _tool(script: str, *words: object) -> tuple[str, ...]:
    path = DATA_TOOLS / script
    if not path.is_file():
        cure = "install the package editable from a clone of the repository (pip install -e .)."
        raise ConfigError(explain("data_tools", str(path), "a corpus needs this program, and it is not there.", cure))
    return (sys.executable, str(path), *map(str, words))


def _dataset_steps(recipe: Recipe, run_folder: RunFolder, name: str) -> list[Step]:
    dataset = recipe.datasets[name]
    if dataset.source == "corpus":
        found = _corpus_steps(dataset, run_folder, name)
    else:
        found = _generated_steps(dataset, run_folder, name)
    needs = () if dataset.base is None else (("data", dataset.base),)
    return [dataclasses.replace(step, unit=("data", name), needs=needs) for step in found]


def _generated_steps(dataset: Dataset, run_folder: RunFolder, name: str) -> list[Step]:
    if dataset.source in ("indexed", "blend") or dataset.on_node is not None:
        return []
    folder = run_folder.dataset(name)
    result = []
    for part in PARTS:
        flags = ["--recipe", run_folder.recipe, "--dataset", name, "--part", part, "--run-dir", run_folder.path]
        done = _manifest(folder.prefix(part, dataset))
        result.append(Step(f"data {name} {part}: generate", _verb("generate", *flags), done, dataset=True))
    return result


def _corpus_steps(dataset: Dataset, run_folder: RunFolder, name: str) -> list[Step]:
    folder = run_folder.dataset(name)
    split = ["--output-dir", folder.path, "--held-out-share", dataset.held_out_share]
    if dataset.input not in COLLECTED:
        split = ["--input", dataset.input, *split]
    train, validation = (folder.jsonl(part) for part in PARTS)
    model = folder.tokenizer
    tokenizer = ["--input", train, "--model-prefix", model.with_suffix(""), "--vocab-size", dataset.vocab_size]
    result = [
        Step(f"data {name}: collect", _tool(COLLECTED.get(dataset.input, "stdlib_corpus.py"), *split), validation),
        Step(f"data {name}: tokenizer", _tool("train_tokenizer.py", *tokenizer), model),
    ]
    for part in PARTS:
        flags = ["--input", folder.jsonl(part), "--output-prefix", folder.path / part]
        flags += ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", model]
        flags += ["--append-eod", "--workers", cores()]
        done = _manifest(folder.prefix(part, dataset))
        command = _tool("preprocess_corpus.py", *flags)
        result.append(Step(f"data {name} {part}: preprocess", command, done, dataset=True))
    return result


def _manifest(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".json")


def _arm_steps(recipe: Recipe, run_folder: RunFolder, arm: str, seed: int) -> list[Step]:
    result = []
    for position, step in enumerate(recipe.arms[arm].steps):
        if recipe.home_arm(arm, position) != arm:
            continue
        name = f"{step.phase} {arm} seed{seed}"
        unit, needs = ("train", arm, step.phase, seed), [("data", recipe.phases[step.phase].dataset)]
        if position:
            before = recipe.arms[arm].steps[position - 1].phase
            needs.append(("train", recipe.home_arm(arm, position - 1), before, seed))
        place = {"unit": unit, "needs": tuple(needs)}
        folder = run_folder.phase(arm, seed, step.phase)
        words = ["--to", folder.initial, "--recipe", run_folder.recipe, "--phase", step.phase, "--seed", seed]
        words = [*_carry(recipe, run_folder, arm, seed, position), *words]
        transfer = _verb("convert", "transfer", *words)
        result.append(Step(f"{name}: convert transfer", transfer, folder.initial / "account.json", **place))
        command, world_size = _train(recipe.phases[step.phase], step, run_folder, arm, seed)
        result.append(Step(f"{name}: train", command, folder.done, folder.log, world_size, trains=True, **place))
    return result


def _carry(recipe: Recipe, run_folder: RunFolder, arm: str, seed: int, position: int) -> list[object]:
    """The flags that say what a phase takes over from the one before it, and how the rest starts."""
    start = recipe.arms[arm].steps[position].start
    flags: list[object] = ["--carry", *(start.carry or ["none"])]
    if start.needs_source:
        previous = recipe.arms[arm].steps[position - 1].phase
        source = run_folder.phase(recipe.home_arm(arm, position - 1), seed, previous)
        flags = ["--from", source.checkpoints.path, *flags]
    flags += ["--reinit", *start.reinit] if start.reinit else []
    flags += ["--layers", "{}:{}".format(*start.layers)] if start.layers else []
    flags += ["--law", *(f"{word}={law}" for word, law in start.laws.items())] if start.laws else []
    flags += ["--layer-map", start.layer_map] if start.layer_map else []
    return [*flags, "--shared-rows"] if start.shared_rows else flags


def _train(phase: Phase, step: ArmStep, run_folder: RunFolder, arm: str, seed: int) -> tuple[tuple[str, ...], int]:
    world_size = phase.parallel.world_size
    words = ["train", run_folder.recipe, "--phase", step.phase, "--arm", arm, "--seed", seed]
    command = _verb(*words, "--run-dir", run_folder.path)
    if world_size == 1:
        return command, 1
    flags = ("--standalone", "--nproc-per-node", world_size)
    return (*_verb("torchrun", *flags), *command[1:]), world_size


def stage_command(recipe: Path, overrides: list[str], name: str, dataset: Dataset, seed: int) -> tuple[str, ...]:
    """What a training starts on each of its nodes for a dataset with `on_node`; it adds what it has consumed."""
    nice = 0 if dataset.on_node.when == "start" else BACKGROUND_NICE
    words = ["stage", recipe, *overrides, "--dataset", name, "--seed", seed, "--nice", nice, "--for-training"]
    return _verb(*words)


def link_shared_phases(recipe: Recipe, run_folder: RunFolder) -> None:
    """Give each arm that shares a phase a relative link to the folder of the arm that runs it."""
    for arm, chain in recipe.arms.items():
        for position, step in enumerate(chain.steps):
            home = recipe.home_arm(arm, position)
            for seed in recipe.seeds if home != arm else ():
                link = run_folder.phase(arm, seed, step.phase).path
                target = os.path.relpath(run_folder.phase(home, seed, step.phase).path, link.parent)
                if link.is_symlink() and os.readlink(link) == target:
                    continue
                if link.exists() or link.is_symlink():
                    raise DataError(
                        f"{link}: should be a link to {target}, but something else is there. Cure: move it."
                    )
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)


def resolve_paths(recipe: Recipe) -> Recipe:
    """The recipe with the data paths made absolute, so that a frozen copy means the same from every folder."""
    datasets = {}
    for name, dataset in recipe.datasets.items():
        paths = {key: getattr(dataset, key) for key in ("input", "train_prefix", "validation_prefix")}
        changes = {key: os.path.abspath(path) for key, path in paths.items() if path and path not in COLLECTED}
        datasets[name] = dataclasses.replace(dataset, **changes)
    return dataclasses.replace(recipe, datasets=datasets)


def freeze(recipe: Recipe, run_folder: RunFolder) -> list[str]:
    """Write `recipe` into the run folder; one that is there is kept beside it under a number.

    Returns, in words, what is changed. Raises ConfigError where that may not change, naming it.
    """
    changed = check_frozen(recipe, run_folder)
    if changed:
        former = run_folder.former_recipe(len(run_folder.former_recipes()) + 1)
        write_text(former, run_folder.recipe.read_text(encoding="utf-8"))
    if changed or not run_folder.recipe.exists():
        write_text(run_folder.recipe, to_yaml(recipe))
    return changed


def check_frozen(recipe: Recipe, run_folder: RunFolder) -> list[str]:
    """What `recipe` changes in the one that the run folder was begun with; ConfigError where that may not change."""
    changed, refused = differences(recipe, run_folder)
    if refused:
        more = [f"  and {len(refused) - 10} more"] if len(refused) > 10 else []
        lines = [*_indented(refused[:10]), *more]
        cure = f"choose another --run-dir, or go on with the old settings: run {run_folder.recipe}."
        head = f"{run_folder.recipe}: this run folder was begun with other settings."
        raise ConfigError("\n".join([head, *lines, f"Cure: {cure} {MAY_CHANGE}"]))
    return changed


def differences(recipe: Recipe, run_folder: RunFolder) -> tuple[list[str], list[str]]:
    """In words, how `recipe` differs from the one that is there, if one is: where it may, and where it may not."""
    return changes(load_recipe(run_folder.recipe), recipe) if run_folder.recipe.exists() else ([], [])


def announce(changed: list[str], run_folder: RunFolder) -> list[str]:
    """Lines that say what `freeze` changes, or has changed."""
    return [f"{run_folder.recipe} changes:", *_indented(changed)] if changed else []


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def record_source(run_folder: RunFolder) -> None:
    """Keep which code ran in source.txt; code that changed between two walks is added and named."""
    root = Path(__file__).resolve().parent.parent
    state = f"megatron_nca {megatron_nca.__version__}\n"
    commit = _git(root, "rev-parse", "HEAD")
    # An installed copy may lie inside someone else's checkout, which says nothing about this code.
    if commit is None or _git(root, "rev-parse", "--show-prefix") != "\n":
        state += "not a git checkout\n"
    else:
        state += f"commit {commit}{_git(root, 'status', '--porcelain') or ''}{_git(root, 'diff', 'HEAD') or ''}"
    before = run_folder.source.read_text(encoding="utf-8") if run_folder.source.exists() else ""
    if before.endswith(state):
        return
    if before:
        print(f"warning: the code has changed since this run began; see the end of {run_folder.source}", flush=True)
        before += "\n==== walked again, with other code ====\n"
    write_text(run_folder.source, before + state)


def _git(root: Path, *words: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.decode("utf-8", errors="replace")


def absent(recipe: Recipe) -> list[str]:
    """A message for each file of data that the recipe only reads and that is not there."""
    found = []
    for name, dataset in recipe.datasets.items():
        wanted = []
        if dataset.source == "indexed":
            prefixes = {"train_prefix": dataset.train_prefix, "validation_prefix": dataset.validation_prefix}
            wanted = [(key, f"{prefix}{end}") for key, prefix in prefixes.items() for end in (".bin", ".idx")]
        elif dataset.source == "corpus" and dataset.input not in COLLECTED:
            wanted = [("input", dataset.input)]
        for key, path in wanted:
            if not Path(path).is_file():
                cure = f"make it with data_tools/, or point datasets.{name}.{key} at yours."
                found.append(explain(f"datasets.{name}.{key}", path, "this file does not exist.", cure))
    return found


def check(recipe: Recipe) -> list[str]:
    """Raise DataError if data that the recipe only reads are absent; return warnings about this machine."""
    for message in absent(recipe):
        raise DataError(message)
    return [
        f"phases.{name} starts {phase.parallel.world_size} processes on {cores()} cores; it will be slow without GPUs."
        for name, phase in recipe.phases.items()
        if phase.parallel.world_size > cores()
    ]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def phase_tokens(recipe: Recipe, name: str) -> int:
    """Training tokens of a phase; a sequence counts as model.sequence_length."""
    phase = recipe.phases[name]
    return phase.train_sequences * recipe.model.sequence_length


def dataset_bytes(recipe: Recipe, name: str) -> int:
    """About how many bytes the parts of a generated dataset take."""
    law = recipe.law_of(name)
    width = 2 if (recipe.vocab_size(name) if law is None else law.num_tokens) < 65_500 else 4
    length = recipe.model.sequence_length + 1 if law is None else law.document_tokens
    return sum(recipe.part_sequences(name, part) for part in PARTS) * length * width


def estimate_bytes(recipe: Recipe) -> tuple[int, int]:
    """About how many bytes a run folder takes: generated datasets, and checkpoints at their most.

    A training checkpoint holds fp32 weights and two fp32 moments, and under bf16 and fp16 the rounded weights too;
    one more than is kept exists while it is written. The initial checkpoint holds fp32 weights.
    """
    beforehand = [name for name, data in recipe.datasets.items() if data.is_generated and data.on_node is None]
    data, checkpoints = sum(dataset_bytes(recipe, name) for name in beforehand), 0
    for arm, chain in recipe.arms.items():
        for position, step in enumerate(chain.steps):
            if recipe.home_arm(arm, position) != arm:
                continue
            phase = recipe.phases[step.phase]
            kept = phase.keep_checkpoints + phase.iterations // (phase.keep_every or phase.iterations + 1)
            per_parameter = 4 + (kept + 1) * checkpoint_bytes_per_parameter(phase.precision)
            checkpoints += parameters(recipe.model_config(step.phase)).total * per_parameter * len(recipe.seeds)
    return data, checkpoints
