"""Processor time, memory, disk, limits, environment and network."""

from megatron_nca.doctor.machine import Finding, Machine, note, ok, problem

GIB = 2**30
LEAST_MEMORY, LEAST_DISK, LITTLE_DISK = 2 * GIB, 1 * GIB, 10 * GIB
LEAST_SHARED_MEMORY = 1 * GIB
LEAST_OPEN_FILES, FEW_OPEN_FILES = 256, 1024
NETWORK_KINDS = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "fuse", "cifs", "smb", "9p", "panfs", "wekafs")
BLACKWELL = (10, 0)


def cores(machine: Machine) -> Finding:
    if machine.cpu_quota is not None and machine.cpu_quota < machine.cores:
        says = f"{machine.cores} cores, but the cgroup grants the time of {machine.cpu_quota:g}."
        wanted = max(1, int(machine.cpu_quota))
        return note("cores", says, f"start no more than {wanted} threads in all (OMP_NUM_THREADS, --threads).")
    if machine.cores < 2:
        return note("cores", "1; ranks of a phase share it, so more than one rank is slow.")
    return ok("cores", f"{machine.cores}")


def memory(machine: Machine) -> Finding:
    known = [size for size in (machine.memory, machine.memory_limit) if size is not None]
    if not known:
        return note("memory", "not known: /proc/meminfo is not there.")
    limit = f", the cgroup's limit is {_gib(machine.memory_limit)}" if machine.memory_limit is not None else ""
    says = f"{_gib(known[0])} available{limit}"
    if min(known) < LEAST_MEMORY:
        cure = "end other programs, or ask for more memory for the job or container."
        return problem("memory", f"{says}: less than {_gib(LEAST_MEMORY)}, which two ranks and their data need.", cure)
    return ok("memory", says)


def shared_memory(machine: Machine) -> Finding:
    if machine.shared_memory is None:
        return problem("shared memory", "/dev/shm is not there; NCCL and processes that share tensors need it.",
                       "mount it: mount -t tmpfs tmpfs /dev/shm.")
    says = f"{_gib(machine.shared_memory)} free in /dev/shm"
    if machine.shared_memory < LEAST_SHARED_MEMORY:
        cure = "give the container more: --shm-size=8g, or --ipc=host."
        weigh = problem if len(machine.gpus) > 1 else note
        return weigh("shared memory", f"{says}; NCCL needs some for every pair of GPUs.", cure)
    return ok("shared memory", says)


def disk(machine: Machine) -> Finding:
    folder = machine.folder
    says = f"{_gib(folder.free)} free on {folder.kind} at {folder.path}"
    if not folder.writable:
        says = f"{folder.path} is no folder, or cannot be written to."
        return problem("disk", says, "name another folder with --folder.")
    if folder.free < LEAST_DISK:
        return problem("disk", f"{says}.", "free some, or name another folder; see `megatron-nca estimate` for sizes.")
    if folder.kind in ("tmpfs", "ramfs"):
        return note("disk", f"{says}: it takes main memory, and what is written is gone when the machine restarts.")
    if folder.kind == "overlay":
        says += ": a container's own disk, gone with the container."
        return note("disk", says, "mount a folder for runs.")
    if folder.free < LITTLE_DISK:
        return note("disk", f"{says}.", "compare with the disk that `megatron-nca estimate` says.")
    if folder.kind.startswith(NETWORK_KINDS):
        return note("disk", f"{says}: over the network; all machines of a run must see it, and it may be slow.")
    return ok("disk", says)


def open_files(machine: Machine) -> Finding:
    soft, hard = machine.open_files
    says = f"at most {soft:,} at a time"
    cure = f"ulimit -n {hard}." if hard > soft else "raise nofile in /etc/security/limits.conf, or for the container."
    if soft < LEAST_OPEN_FILES:
        return problem("open files", f"{says}; a rank and its checkpoint need hundreds.", cure)
    if soft < FEW_OPEN_FILES:
        return note("open files", f"{says}; many ranks on one machine need more.", cure)
    return ok("open files", says)


def threads(machine: Machine) -> Finding:
    text = machine.environment.get("OMP_NUM_THREADS")
    if text is None:
        return ok("OMP_NUM_THREADS", "not set: `run` gives each rank its share of the cores, torchrun alone gives 1")
    if not text.isdigit() or int(text) < 1:
        return problem("OMP_NUM_THREADS", f"{text!r} is no number of threads.", "unset OMP_NUM_THREADS.")
    if int(text) > machine.usable_cores:
        says = f"{text} threads a rank on {machine.usable_cores:g} cores wait for each other."
        return note("OMP_NUM_THREADS", says, "unset it, or set cores / ranks.")
    return ok("OMP_NUM_THREADS", text)


def connections(machine: Machine) -> Finding:
    """Megatron orders communication before compute of tensor and context parallelism by one hardware queue."""
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    text = machine.environment.get(name)
    if not machine.gpus or all(gpu.capability >= BLACKWELL for gpu in machine.gpus):
        return ok(name, "of no matter here")
    if text != "1":
        says = f"{'not set' if text is None else text!r}; with tensor or context parallelism Megatron asks for 1 here."
        return note(name, says, f"export {name}=1.")
    return ok(name, text)


def rendezvous(machine: Machine) -> Finding:
    """Whether ranks can find each other: on this machine by localhost, on several by MASTER_ADDR and MASTER_PORT."""
    network, subject = machine.network, "rendezvous"
    if not network.loopback_port:
        cure = "let `localhost` stand for 127.0.0.1 in /etc/hosts, and bring the interface up: ip link set lo up."
        return problem(subject, "no process can listen on localhost, so torchrun cannot start ranks.", cure)
    master, port = machine.environment.get("MASTER_ADDR"), machine.environment.get("MASTER_PORT")
    if master is not None and network.master_address is None:
        return problem(subject, f"MASTER_ADDR = {master!r} does not resolve.", "give the first machine's address.")
    if port is not None and not (port.isdigit() and 1024 <= int(port) < 65_536):
        return problem(subject, f"MASTER_PORT = {port!r} is not a port of 1024 to 65535.", "for example 29400.")
    if network.address is None:
        says = f"the hostname {network.hostname!r} does not resolve: Gloo falls back to this machine alone."
        return note(subject, says, "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME to the interface's name.")
    if network.address.startswith("127.") and not (network.master_address or "127.").startswith("127."):
        says = f"MASTER_ADDR is another machine's, but this one's hostname stands for {network.address}."
        return note(subject, says, "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface between them.")
    low, high = network.ephemeral_ports
    if port is not None and low <= int(port) <= high:
        says = f"MASTER_PORT = {port} is one that the kernel hands out ({low} to {high}) and may be taken."
        return note(subject, says, "choose one below, for example 29400.")
    where = f", MASTER_ADDR {master} is {network.master_address}" if master is not None else ""
    return ok(subject, f"localhost works, {network.hostname} is {network.address}{where}")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


CHECKS = (cores, memory, shared_memory, disk, open_files, threads, connections, rendezvous)
