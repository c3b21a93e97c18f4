"""What preprocessing costs beside Megatron-LM's own tool, and how much memory a large input takes.

    python benchmarks/corpora.py --megatron CHECKOUT [--main CHECKOUT] [--repeats 3] [--workers 2]
    python benchmarks/corpora.py --memory 1 10

CHECKOUT is a working tree of Megatron-LM core_v0.16.1, whose imports (six, triton) must be met; that of --main is one
of its main branch, whose tools/preprocess_data_fast.py is the peer for Hugging Face tokenizers (it takes all cores,
and needs gigatoken and typing.override of Python 3.12). Both tools read the same pinned text
(tests/unit/pinned_text.py) with the same small tokenizers, and their .bin and .idx are compared. The start, a run over
the first line alone, is subtracted from each. --memory: GB of that text repeated on the disk in --folder; merge and
verify run on the result beside `cp`.

Tokenizers: "sentencepiece" is a BPE model that keeps a text's layout, "BPE" and "unigram" are trained on the spot with
sentencepiece's defaults for all else. We remember the words of the first two; the third both tools leave to
sentencepiece's own encoder.
"""

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/unit"))
import pinned_text  # noqa: E402 - what the tests have frozen the bytes of

GOLDEN = ROOT / "tests/golden/tokenizers"
GPT2 = ["--vocab-file", GOLDEN / "vocab.json", "--merge-file", GOLDEN / "merges.txt"]
HUGGING_FACE = "Hugging Face"
TRAINED = {"BPE": "bpe", "unigram": "unigram"}
"""Kinds whose model is trained here, and sentencepiece's names for them."""
KINDS = ("sentencepiece", *TRAINED, "GPT-2 BPE", HUGGING_FACE)


@dataclass
class Cost:
    """Of one command with all its processes."""

    seconds: float
    processor: float
    megabytes: float
    """Of the largest process."""

    def __sub__(self, start: "Cost") -> "Cost":
        return Cost(self.seconds - start.seconds, self.processor - start.processor, self.megabytes)


def measure(command: Sequence[object], log: Path, root: Path = ROOT) -> Cost:
    """`root` comes first where Python looks for modules."""
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    begin = time.perf_counter()
    with open(log, "wb") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, env={
            **os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"})
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(log.read_text(errors="replace")[-2000:])
    return Cost(time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def flags(kind: str, theirs: bool, folder: Path) -> list[object]:
    if kind == "sentencepiece" or kind in TRAINED:
        model = folder / f"{TRAINED[kind]}.model" if kind in TRAINED else GOLDEN / "sentencepiece.model"
        return ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", model]
    if kind == "GPT-2 BPE":  # its newer tokenizers look for a folder or a model of the hub called gpt2, and are slower
        return ["--tokenizer-type", "GPT2BPETokenizer", *GPT2, *(["--legacy-tokenizer"] if theirs else [])]
    return ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", folder / "fast", "--use-gigatoken"]


def make_model(kind: str, folder: Path, source: Path) -> None:
    """As sentencepiece trains by default, on the lines of each fifth document."""
    import sentencepiece

    texts = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines()[::5]]
    lines = (line for text in texts for line in text.splitlines() if line.strip())
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_type=TRAINED[kind], vocab_size=4096,
                                             model_prefix=str(folder / TRAINED[kind]), num_threads=1, minloglevel=2)


def make_fast(folder: Path) -> None:
    """The same byte-level BPE as a fast tokenizer's folder."""
    from tokenizers import ByteLevelBPETokenizer

    merges = [tuple(line.split(" ")) for line in (GOLDEN / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
    fast = ByteLevelBPETokenizer(json.loads((GOLDEN / "vocab.json").read_text(encoding="utf-8")), merges)
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def run(tool: Path, source: Path, output: Path, kind: str, workers: int) -> Cost:
    for left in output.parent.glob(f"{output.name}_*"):
        left.unlink()
    theirs = tool.parent.name == "tools"
    workers = [] if tool.name == "preprocess_data_fast.py" else ["--workers", workers, "--log-interval", 10**9]
    command = [sys.executable, tool, "--input", source, "--output-prefix", output, "--append-eod", *workers,
               *flags(kind, theirs, output.parent)]
    log = output.with_suffix(".log")
    cost = measure(command, log, tool.parents[1])
    if not Path(f"{output}_text_document.bin").exists():
        sys.exit(f"{tool}: ended with 0, and made no dataset:\n{log.read_text(errors='replace')[-2000:]}")
    return cost


def compare(peers: dict[str, Path], folder: Path, copies: int, repeats: int, workers: int,
            kinds: Sequence[str]) -> None:
    """`peers`: for each kind of tokenizer the tool of Megatron-LM."""
    whole, tiny = folder / "whole.jsonl", folder / "tiny.jsonl"
    pinned_text.write(whole)
    pinned_text.write(tiny, 1)
    make_fast(folder / "fast")
    for kind in TRAINED.keys() & set(kinds):
        make_model(kind, folder, whole)
    whole.write_bytes(whole.read_bytes() * copies)
    megabytes = whole.stat().st_size / 1e6
    print(f"{megabytes:.1f} MB, {workers} workers, median of {repeats}; the load at the beginning: {os.getloadavg()}")
    print("| tokenizer | tool | MB/s | seconds | start | processor seconds | of the start | times theirs "
          "| by processor time | same bytes |\n|---|---|---|---|---|---|---|---|---|---|")
    for kind in kinds:
        if kind not in peers:
            print(f"| {kind} | not compared: give {'--main' if kind == HUGGING_FACE else '--megatron'} |")
            continue
        tools = {"theirs": peers[kind], "ours": ROOT / "data_tools/preprocess_corpus.py"}
        costs = {name: ([], []) for name in tools}
        for _ in range(repeats):
            for name, tool in tools.items():
                costs[name][1].append(run(tool, tiny, folder / name, kind, workers))
                costs[name][0].append(run(tool, whole, folder / name, kind, workers))
        same = all(filecmp.cmp(*(f"{folder / name}_text_document.{ending}" for name in tools), shallow=False)
                   for ending in ("bin", "idx"))
        middle = {name: [Cost(median(each.seconds for each in some), median(each.processor for each in some), 0)
                         for some in both] for name, both in costs.items()}
        base = middle["theirs"][0] - middle["theirs"][1]
        for name, (all_of_it, start) in middle.items():
            net = all_of_it - start
            print(f"| {kind} | {name} | {megabytes / net.seconds:.1f} | {net.seconds:.1f} | {start.seconds:.1f} "
                  f"| {net.processor:.1f} | {start.processor:.1f} | {base.seconds / net.seconds:.2f} "
                  f"| {base.processor / net.processor:.2f} | {'yes' if same else 'no'} |", flush=True)


def memory(folder: Path, gigabytes: Sequence[float], workers: int) -> None:
    piece = folder / "piece.jsonl"
    pinned_text.write(piece)
    print("| GB | what | seconds | MB/s | largest process, MB |\n|---|---|---|---|---|")
    tools = ROOT / "data_tools"
    for size in gigabytes:
        large, output = folder / "large.jsonl", folder / "large"
        with open(large, "wb") as file:
            while file.tell() < size * 1e9:
                file.write(piece.read_bytes())
        cost = run(tools / "preprocess_corpus.py", large, output, "sentencepiece", workers)
        report(size, "preprocess", large.stat().st_size, cost)
        large.unlink()
        made, log = Path(f"{output}_text_document"), folder / "log"
        total = sum(Path(f"{made}.{ending}").stat().st_size for ending in ("bin", "idx"))
        copy = f"cp {made}.bin {folder}/copy && sync {folder}/copy"
        merge = [sys.executable, tools / "merge_datasets.py", made, made, "--output-prefix", folder / "merged"]
        for what, count, command in (
                ("cp and sync", total, ["sh", "-c", copy]),
                ("verify", total, [sys.executable, tools / "verify_dataset.py", made]),
                ("merge with itself", 2 * total, merge)):
            what += " (cold)" if forget() else " (warm)"
            report(size, what, count, measure(command, log))
            (folder / "copy").unlink(missing_ok=True)
        for left in [*folder.glob("merged*"), *folder.glob("large*")]:
            left.unlink()


def forget() -> bool:
    """Whether the kernel could be asked to drop what it holds of files, so that they come from the disk again."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def report(size: float, what: str, total: int, cost: Cost) -> None:
    speed = total / 1e6 / cost.seconds
    print(f"| {size:g} | {what} | {cost.seconds:.1f} | {speed:.0f} | {cost.megabytes:.0f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatron", type=Path, help="working tree of Megatron-LM core_v0.16.1")
    parser.add_argument("--main", type=Path, help="working tree of its main branch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--copies", type=int, default=1, help="of the text, one after another, for tools that are "
                                                              "done with one before they can be timed")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--memory", type=float, nargs="+", default=[], metavar="GB")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="a disk with room")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        tools = {}
        if arguments.megatron is not None:
            tools = dict.fromkeys(KINDS[:-1], arguments.megatron.resolve() / "tools/preprocess_data.py")
        if arguments.main is not None:
            tools[HUGGING_FACE] = arguments.main.resolve() / "tools/preprocess_data_fast.py"
        if tools:
            compare(tools, folder, arguments.copies, arguments.repeats, arguments.workers, arguments.kinds)
        memory(folder, arguments.memory, arguments.workers)
    finally:
        shutil.rmtree(folder)
    if not (tools or arguments.memory):
        print("give --megatron, --main or --memory; see --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
