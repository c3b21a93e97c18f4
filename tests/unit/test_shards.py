"""One dataset by many processes: the same bytes as by one, whatever is killed meanwhile."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_nca.__main__ import main
from megatron_nca.config.law import NcaLaw
from megatron_nca.errors import DataError
from megatron_nca.sources.nca import NcaSource, generate
from megatron_nca.sources.shards import Parts

LAW = NcaLaw(num_states=3, height=6, width=6, sequence_length=64, band=(0.3, 1.0), score_frames=5)
"""Of its candidates 47 % pass."""
SEQUENCES = 700
WORDS = ["--sequences", SEQUENCES, "--num-states", 3, "--grid", 6, 6, "--sequence-length", 64, "--score-frames", 5]
WORDS += ["--band", 0.3, 1.0, "--allocated-vocab-size", "none", "--threads", 1]


def files_of(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}.{ending}").read_bytes() for ending in ("bin", "idx", "json")]


def words(prefix: Path, num_rules: int | None, *more: object) -> list[str]:
    return ["generate", *map(str, (*WORDS, "--num-rules", num_rules or "none", "--output", prefix, *more))]


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "megatron_nca", *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def law_of(num_rules: int | None) -> NcaLaw:
    return NcaLaw(**{**LAW.__dict__, "num_rules": num_rules})


def source(num_rules: int | None = None) -> NcaSource:
    return NcaSource(law_of(num_rules), SEQUENCES, 0)


@pytest.fixture(scope="module", params=[None, 150])
def one(request, tmp_path_factory) -> tuple[int | None, list[bytes]]:
    """Number of rules, and the dataset as one process makes it."""
    prefix = tmp_path_factory.mktemp("one") / "x"
    generate(source(request.param), prefix)
    return request.param, files_of(prefix)


def test_eight_processes_on_two_nodes(one, tmp_path):
    """Each node has a folder of its own; a process of each is killed and its share is made again."""
    num_rules, expected = one
    folders = [tmp_path / "node0", tmp_path / "node1"]
    commands = [words(tmp_path / "x", num_rules, "--parts", folders[i % 2], "--shard", f"{i}/8") for i in range(8)]
    processes = [start(command) for command in commands]
    for process in processes[:2]:
        process.kill()
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes[2:]] == [0] * 6, said
    merge = words(tmp_path / "x", num_rules, "--merge", "--parts", *folders)
    assert main(merge) == 2, "two shares are missing"
    assert not (tmp_path / "x.bin").exists()
    assert [main(command) for command in commands[:2]] == [0, 0]
    assert main(merge) == 0
    assert files_of(tmp_path / "x") == expected
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize("shards", [1, 3])
def test_any_number_of_shards_in_turn(one, tmp_path, shards, capsys):
    num_rules, expected = one
    prefix = tmp_path / "x"
    assert [main(words(prefix, num_rules, "--shard", f"{i}/{shards}")) for i in range(shards)] == [0] * shards
    assert main(words(prefix, num_rules, "--shard", f"0/{shards}")) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" 0 made now")
    assert main(words(prefix, num_rules, "--merge")) == 0
    assert files_of(prefix) == expected


def test_what_is_missing_is_named_and_alone_made_again(tmp_path):
    parts = Parts(source(), [tmp_path / "parts"])
    assert parts.make_share(0, 1) == parts.num_chunks == 64
    (tmp_path / "parts/sequences-5.npy").unlink()
    with pytest.raises(DataError, match=r"1 of 64 chunks of sequences are missing \(5; "):
        parts.merge(tmp_path / "x")
    again = Parts(source(), [tmp_path / "parts"])
    (tmp_path / "parts/rules-2.npy").unlink()
    assert again.make_share(5, 8) == 1
    damaged = tmp_path / "parts/sequences-9.npy"
    for content in (damaged.read_bytes()[:100], damaged.read_bytes()[:-3], b""):
        damaged.write_bytes(content)
        with pytest.raises(DataError, match=r"sequences-9.npy: .* Cure: remove it and run its shard again"):
            again.merge(tmp_path / "x")
        assert not (tmp_path / "x.bin").exists()
    np.save(damaged, np.zeros((3, 66), dtype=np.uint16))
    with pytest.raises(DataError, match=r"holds tokens of shape \(3, 66\)"):
        again.merge(tmp_path / "x")


def test_refused_commands_leave_nothing_that_blocks_the_next(tmp_path, capsys):
    other = [*words(tmp_path / "x", None), "--seed", "5"]
    for more in (["--shard", "8/8"], ["--shard", "0/0"], ["--shard", "a/b"], ["--merge"],
                 ["--shard", "8/8", "--dry-run"]):
        assert main([*other, *more]) == 2
    assert "chunks of sequences are missing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(words(tmp_path / "x", None, "--shard", "7/64")) == 0


def test_a_disk_too_small_for_a_share_is_seen_before(tmp_path, capsys, monkeypatch):
    """A share of 88 sequences of 66 tokens in two bytes."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10_000, 0, 10_000))
    assert main(words(tmp_path / "x", None, "--shard", "0/8")) == 2
    said = capsys.readouterr().err
    assert "shard = '0/8': needs " in said and "10.0 kB are free. Cure: free some" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_said(tmp_path, monkeypatch):
    """numpy itself tells how many bytes it asked for and wrote, and not why."""
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith(".sequences-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"sequences-0.npy: cannot be written \(No space left.* Cure: free some space"):
        Parts(source(), [tmp_path / "parts"]).make_share(0, 8)


def test_parts_of_other_settings_are_refused(tmp_path):
    Parts(source(), [tmp_path / "parts"]).make_share(0, 64)
    with pytest.raises(DataError, match="made with other settings"):
        Parts(NcaSource(LAW, SEQUENCES, 1), [tmp_path / "parts"])
    (tmp_path / "else").mkdir()
    (tmp_path / "else/file").write_text("a user's")
    with pytest.raises(DataError, match="made with other settings"):
        Parts(source(), [tmp_path / "else"])


@pytest.mark.parametrize(("more", "message"), [
    (["--shard", "8/8"], "shard = '8/8'"),
    (["--shard", "x"], "is not I/N"),
    (["--parts", "here"], "belongs to --shard or --merge"),
    (["--shard", "0/2", "--merge"], "comes after all shards are made"),
])
def test_refusals(tmp_path, capsys, more, message):
    assert main(words(tmp_path / "x", None, *more)) == 2
    assert message in capsys.readouterr().err
    assert main(["generate", "--source", "dyck", "--sequences", "5", "--output", str(tmp_path / "y"), "--merge"]) == 2
    assert "are for automata" in capsys.readouterr().err


@pytest.mark.long
def test_fifty_kills_at_random_moments(one, tmp_path):
    """Eight processes over two folders, started again wherever one was killed, until all shares are made."""
    num_rules, expected = one
    folders = [tmp_path / "node0", tmp_path / "node1"]
    commands = [words(tmp_path / "x", num_rules, "--parts", folders[i % 2], "--shard", f"{i}/8") for i in range(8)]
    dice = random.Random(f"{num_rules}")
    kills = 0
    processes = {i: start(command) for i, command in enumerate(commands)}
    while kills < 50:
        time.sleep(dice.uniform(0, 0.4))
        victim = dice.randrange(8)
        if processes[victim].poll() is None:
            processes[victim].send_signal(signal.SIGKILL)
            kills += 1
        else:
            for path in folders[victim % 2].glob("sequences-*.npy"):  # its work is done: lose some of it
                if dice.random() < 0.1:
                    path.unlink(missing_ok=True)
        processes[victim].communicate()
        processes[victim] = start(commands[victim])
    for process in processes.values():
        process.communicate(timeout=300)
    for command in commands:
        assert main(command) == 0
    assert main(words(tmp_path / "x", num_rules, "--merge", "--parts", *folders)) == 0
    assert files_of(tmp_path / "x") == expected
    assert os.listdir(tmp_path) and not any(folder.exists() for folder in folders)
