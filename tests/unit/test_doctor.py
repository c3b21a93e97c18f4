"""`megatron-nca doctor`: each check on machines that are broken in one way, the probe on this one."""

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_nca.__main__ import main
from megatron_nca.doctor import probe, software, system
from megatron_nca.doctor.machine import Attempt, Folder, Gpu, Machine, Network, TorchFacts

GIB = 2**30
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory=79 * GIB, capability=(9, 0))
B200 = Gpu(name="NVIDIA B200", memory=178 * GIB, capability=(10, 0))
FOUND = {
    "torch": "2.13.0+cu130",
    "megatron.core": "0.19.2",
    "transformer_engine.pytorch": "2.20.2",
    "apex": "0.1",
    "apex.optimizers": "0.1",
    "amp_C": "0.1",
    "deepspeed": "0.19.8",
    "megatron_nca.ops": "0.1.0",
    "megatron_nca._generator_cuda": "0.1.0",
}
SOUND = Machine(
    python=(3, 12, 4),
    system="Linux",
    imports={name: Attempt(installed=True, version=FOUND.get(name)) for name in (*FOUND, *software.REQUIRED)},
    apex_has_optimizers=True,
    torch=TorchFacts(cuda_build="13.0", nccl="2.27.7", gpus=(H100, H100)),
    driver="580.65.06",
    kernels=("avx2", "portable"),
    cores=16,
    memory=100 * GIB,
    shared_memory=32 * GIB,
    open_files=(65_536, 65_536),
    folder=Folder(path="/data", writable=True, free=500 * GIB, kind="ext4"),
    network=Network(hostname="node1", address="10.0.0.1", loopback_port=True, master_address="10.0.0.1"),
    environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29400"},
)
CHECKS = (*software.CHECKS, *system.CHECKS)


def changed(**changes: object) -> Machine:
    """SOUND with a few things different; `imports` adds to what it has."""
    changes["imports"] = {**SOUND.imports, **changes.get("imports", {})}
    return dataclasses.replace(SOUND, **changes)


def without(*names: str) -> dict[str, Attempt]:
    return {name: Attempt() for name in names}


def broken(name: str, error: str = "ImportError: undefined symbol: _ZN2at4_ops") -> dict[str, Attempt]:
    return {name: Attempt(installed=True, version="1.0", error=error)}


def version(name: str, number: str) -> dict[str, Attempt]:
    return {name: Attempt(installed=True, version=number)}


def folder(**changes: object) -> Folder:
    return dataclasses.replace(SOUND.folder, **changes)


def network(**changes: object) -> Network:
    return dataclasses.replace(SOUND.network, **changes)


def torch_with(**changes: object) -> TorchFacts:
    return dataclasses.replace(SOUND.torch, **changes)


def environment(**changes: str) -> dict[str, str]:
    return {**SOUND.environment, **changes}


def test_a_sound_machine_has_no_problem_and_no_note():
    findings = [check(SOUND) for check in CHECKS]
    assert [finding for finding in findings if finding.level != "ok"] == []
    assert len({finding.subject for finding in findings}) == len(CHECKS)


def test_a_machine_with_nothing_optional_has_no_problem():
    bare = changed(
        imports=without("transformer_engine.pytorch", "apex", "apex.optimizers", "amp_C", "deepspeed",
                        "megatron_nca._generator_cuda"),
        apex_has_optimizers=False,
        torch=TorchFacts(),
        driver=None,
        environment={},
    )
    assert [finding.subject for check in CHECKS if (finding := check(bare)).level != "ok"] == ["GPUs"]


TINY = (Gpu(name="V100", memory=16 * GIB, capability=(7, 0)),)
OLD_CORE = version("megatron.core", "0.16.1")
BROKEN = [
    ("problem", "Python", {"python": (3, 9, 1)}, "is not 3.10 to 3.12"),
    ("problem", "Python", {"python": (3, 13, 0)}, "is not 3.10 to 3.12"),
    ("problem", "Python", {"system": "Darwin"}, "only Linux"),
    ("problem", "torch", {"imports": without("torch"), "torch": None}, "is not installed"),
    ("problem", "torch", {"imports": broken("torch", "it crashed by SIGILL."), "torch": None}, "SIGILL"),
    ("problem", "torch", {"imports": version("torch", "2.9.1")}, "weights_only"),
    ("note", "GPUs", {"imports": broken("torch"), "torch": None}, "not known"),
    ("note", "GPUs", {"torch": torch_with(gpus=()), "driver": None}, "none"),
    ("problem", "GPUs", {"torch": TorchFacts()}, "this torch is a CPU build"),
    ("problem", "GPUs", {"torch": torch_with(gpus=())}, "sees no device"),
    ("problem", "GPUs", {"torch": torch_with(nccl=None)}, "no NCCL"),
    ("note", "GPUs", {"torch": torch_with(gpus=TINY)}, "bf16 is emulated"),
    ("problem", "Megatron-Core", {"imports": without("megatron.core")}, "is not installed"),
    ("problem", "Megatron-Core", {"imports": version("megatron.core", "0.15.3")}, "is not one of 0.16.1 to 0.19"),
    ("problem", "Megatron-Core", {"imports": version("megatron.core", "0.20.0")}, "is not one of 0.16.1 to 0.19"),
    ("problem", "Megatron-Core", {"imports": OLD_CORE}, "can run its maker's code"),
    ("note", "Megatron-Core", {"imports": OLD_CORE, "python": (3, 11, 7)}, "can run its maker's code"),
    ("problem", "packages", {"imports": without("psutil", "yaml")}, "yaml (for recipes), psutil (without it"),
    ("problem", "Transformer Engine", {"imports": broken("transformer_engine.pytorch")}, "undefined symbol"),
    ("problem", "NVIDIA Apex", {"apex_has_optimizers": False}, "a dead project of that name on PyPI"),
    ("problem", "NVIDIA Apex", {"imports": without("amp_C")}, "amp_C does not load (not installed)"),
    ("problem", "NVIDIA Apex", {"imports": broken("apex.optimizers")}, "undefined symbol"),
    ("problem", "DeepSpeed", {"imports": broken("deepspeed")}, "undefined symbol"),
    ("problem", "generator", {"imports": broken("megatron_nca.ops", "Error: none. Cure: it")}, "Error: none."),
    ("note", "generator", {"kernels": ("portable",)}, "no AVX2"),
    ("problem", "generator on CUDA", {"imports": broken("megatron_nca._generator_cuda")}, "built, but does not load"),
    ("note", "cores", {"cpu_quota": 1.5}, "grants the time of 1.5"),
    ("note", "cores", {"cores": 1}, "ranks of a phase share it"),
    ("problem", "memory", {"memory": GIB}, "less than 2.0 GiB"),
    ("problem", "memory", {"memory_limit": GIB}, "the cgroup's limit is 1.0 GiB"),
    ("note", "memory", {"memory": None}, "not known"),
    ("problem", "shared memory", {"shared_memory": None}, "/dev/shm is not there"),
    ("problem", "shared memory", {"shared_memory": 2**26}, "64 MiB free"),
    ("note", "shared memory", {"shared_memory": 2**26, "torch": TorchFacts()}, "64 MiB free"),
    ("problem", "disk", {"folder": folder(writable=False)}, "cannot be written"),
    ("problem", "disk", {"folder": folder(free=GIB // 2)}, "0.5 GiB free"),
    ("note", "disk", {"folder": folder(free=5 * GIB)}, "5.0 GiB free"),
    ("note", "disk", {"folder": folder(kind="tmpfs")}, "takes main memory"),
    ("note", "disk", {"folder": folder(kind="overlay")}, "gone with the container"),
    ("note", "disk", {"folder": folder(kind="nfs4")}, "over the network"),
    ("note", "disk", {"folder": folder(kind="fuse.sshfs")}, "over the network"),
    ("problem", "open files", {"open_files": (128, 4096)}, "at most 128"),
    ("note", "open files", {"open_files": (512, 4096)}, "at most 512"),
    ("problem", "OMP_NUM_THREADS", {"environment": environment(OMP_NUM_THREADS="all")}, "is no number of threads"),
    ("problem", "OMP_NUM_THREADS", {"environment": environment(OMP_NUM_THREADS="0")}, "is no number of threads"),
    ("note", "OMP_NUM_THREADS", {"environment": environment(OMP_NUM_THREADS="17")}, "wait for each other"),
    ("note", "OMP_NUM_THREADS", {"environment": environment(OMP_NUM_THREADS="4"), "cpu_quota": 2.0}, "on 2 cores"),
    ("note", "CUDA_DEVICE_MAX_CONNECTIONS", {"environment": {}}, "not set"),
    ("note", "CUDA_DEVICE_MAX_CONNECTIONS", {"environment": {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}}, "'8'"),
    ("problem", "rendezvous", {"network": network(loopback_port=False)}, "listen on localhost"),
    ("problem", "rendezvous", {"network": network(master_address=None)}, "MASTER_ADDR = 'node1' does not resolve"),
    ("problem", "rendezvous", {"environment": environment(MASTER_PORT="http")}, "is not a port"),
    ("problem", "rendezvous", {"environment": environment(MASTER_PORT="80")}, "is not a port"),
    ("note", "rendezvous", {"environment": environment(MASTER_PORT="40000")}, "may be taken"),
    ("note", "rendezvous", {"network": network(address=None)}, "does not resolve: Gloo"),
    ("note", "rendezvous", {"network": network(address="127.0.1.1")}, "stands for 127.0.1.1"),
]


@pytest.mark.parametrize(("level", "subject", "changes", "words"), BROKEN)
def test_what_is_wrong_is_found_and_has_a_cure(level, subject, changes, words):
    machine = changed(**changes)
    [finding] = [finding for check in CHECKS if (finding := check(machine)).subject == subject]
    assert finding.level == level
    assert words in finding.says
    assert "Cure:" not in finding.says and (finding.cure or level == "note")


def test_newer_gpus_need_no_single_queue():
    machine = changed(torch=torch_with(gpus=(B200,)), environment={})
    assert system.connections(machine).level == "ok"


@pytest.mark.parametrize(("sick", "status"), [(False, 0), (True, 1)])
def test_the_exit_code_says_whether_there_is_a_problem(sick, status, monkeypatch, capsys):
    seen = []
    machine = changed(python=(3, 9, 0), kernels=("portable",)) if sick else SOUND
    monkeypatch.setattr(probe, "probe", lambda folder: seen.append(folder) or machine)
    assert main(["doctor", "--folder", "some/where"]) == status
    said = capsys.readouterr().out
    assert seen == [Path("some/where")]
    assert said.endswith("\n1 problem, 1 note\n" if sick else "\n0 problems, 0 notes\n")
    assert ("Cure: make PYTHON=python3.12" in said) == sick
    assert main(["doctor", "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == status and found["machine"]["cores"] == 16
    assert {finding["level"] for finding in found["findings"]} == ({"ok", "note", "problem"} if sick else {"ok"})


def test_this_machine_is_looked_at(tmp_path):
    machine = probe.probe(tmp_path / "not" / "there")
    assert machine.imports["torch"].loads and machine.imports["megatron.core"].loads
    assert machine.imports["psutil"].installed and machine.torch is not None
    assert "portable" in machine.kernels and machine.cores >= 1
    assert machine.memory > 0 and machine.open_files[0] <= machine.open_files[1]
    assert machine.folder.path == str(tmp_path) and machine.folder.writable and machine.folder.free > 0
    assert machine.folder.kind not in ("", "an unknown file system")
    assert machine.network.loopback_port
    assert all(check(machine).level in ("ok", "note", "problem") for check in CHECKS)


def test_a_module_that_crashes_is_a_fact(tmp_path, monkeypatch):
    """Also when it takes the process with it, or is not there, or is there in part."""
    (tmp_path / "segfaults.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    (tmp_path / "mismatched.py").write_text("raise ImportError('undefined symbol: x')\n")
    (tmp_path / "pyramids").mkdir()
    (tmp_path / "pyramids" / "optimizers.pyi").write_text("")
    (tmp_path / "pyramids" / "__init__.py").write_text("raise RuntimeError('must not run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe.attempt("segfaults") == Attempt(installed=True, error="it crashed by SIGSEGV.")
    assert probe.attempt("mismatched") == Attempt(installed=True, error="ImportError: undefined symbol: x")
    assert probe.attempt("pyramids.optimizers") == probe.attempt("nowhere") == Attempt()
    assert probe.attempt("json.decoder").loads


def test_a_module_that_hangs_is_a_fact(tmp_path, monkeypatch):
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probe, "PATIENCE_SECONDS", 0.3)
    assert probe.attempt("sleeps").error == "it was not done after 0.3 seconds."


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_limits_of_cgroups_of_both_versions(tmp_path):
    two = write(tmp_path / "2", job__cpuDOTmax="150000 100000\n", job__memoryDOTmax="4096\n", memoryDOTmax="max\n")
    assert probe.cpu_quota(two, "0::/job\n") == 1.5
    assert probe.memory_limit(two, "0::/job\n") == 4096
    free = write(tmp_path / "free", cpuDOTmax="max 100000\n", memoryDOTmax="max\n")
    assert probe.cpu_quota(free, "0::/\n") is None and probe.memory_limit(free, "0::/\n") is None
    one = write(
        tmp_path / "1",
        cpu__cpuDOTcfs_quota_us="250000\n",
        cpu__cpuDOTcfs_period_us="100000\n",
        memory__memoryDOTlimit_in_bytes="9223372036854771712\n",
        memory__job__memoryDOTlimit_in_bytes="8192\n",
    )
    assert probe.cpu_quota(one, "3:cpu,cpuacct:/\n") == 2.5
    assert probe.memory_limit(one, "4:memory:/job\n") == 8192
    assert probe.memory_limit(one, "4:memory:/\n") is None
    assert probe.cpu_quota(tmp_path / "none", "") is None


def test_a_file_is_no_folder_to_write_to_nor_is_what_would_be_below_it(tmp_path):
    path = tmp_path / "file"
    path.touch()
    for folder in (path, path / "runs"):
        seen = probe.look_at_folder(folder)
        assert seen.path == str(path) and not seen.writable
    assert probe.look_at_folder(tmp_path / "new" / "runs").writable
