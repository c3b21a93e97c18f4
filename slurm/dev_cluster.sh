#!/usr/bin/env bash
# A real Slurm on this machine alone, with its own daemons, keys and ports, for developing and for the tests.
#
#   slurm/dev_cluster.sh up FOLDER [NODES]     start NODES nodes (2), n1, n2, ...; waits until they are idle
#   eval "$(slurm/dev_cluster.sh env FOLDER)"  so that sbatch, squeue and the rest speak to it
#   slurm/dev_cluster.sh stop|start FOLDER ctld|n1|n2|...   one daemon, as a crash would: its jobs live on
#   slurm/dev_cluster.sh down FOLDER           end all of it, jobs too; logs stay in FOLDER
#
# Each node has 4 CPUs and 4 GPUs, whatever this machine has; the GPUs are empty files. Needs Debian's packages
# slurm-wlm and munge. No accounting database: sacct answers nothing. FOLDER must be on a path without spaces.
set -euo pipefail

usage() {
    sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"
}

configure() {
    local ports node
    mkdir -p "$folder"/{state,gpus}
    chmod 700 "$folder"
    touch "$folder"/gpus/gpu{0,1,2,3}
    # Below the range from which the system takes the ports of connections.
    read -ra ports < <(python3 - $((nodes + 1)) <<'PY'
import random, socket, sys
found = []
while len(found) < int(sys.argv[1]):
    with socket.socket() as probe:
        port = random.randrange(12000, 20000)
        try:
            probe.bind(("", port))
        except OSError:
            continue
    if port not in found:
        found.append(port)
print(*found)
PY
    )
    # Ranks meet at a port that follows from their job's number; so that of another such cluster is another one.
    cat > "$folder/slurm.conf" <<CONF
ClusterName=dev
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/ctld.pid
SlurmctldLogFile=$folder/ctld.log
SlurmdPidFile=$folder/%n.pid
SlurmdLogFile=$folder/%n.log
SlurmdSpoolDir=$folder/spool.%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
GresTypes=gpu
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=15
KillWait=20
MinJobAge=300
MaxArraySize=1001
FirstJobId=$((RANDOM % 8000 + 1))
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2,requeue_setup_env_fail
CONF
    for ((node = 1; node <= nodes; node++)); do
        echo "NodeName=n$node NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=${ports[node]} CPUs=4 Gres=gpu:4 State=UNKNOWN"
    done >> "$folder/slurm.conf"
    echo "PartitionName=dev Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP" >> "$folder/slurm.conf"
    echo "NodeName=n[1-$nodes] Name=gpu File=$folder/gpus/gpu[0-3]" > "$folder/gres.conf"
}

start() {
    case $1 in
        munge)
            [ -s "$folder/munge.key" ] || (umask 077; head -c 128 /dev/urandom > "$folder/munge.key")
            munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --num-threads=2 \
                --pid-file="$folder/munge.pid" --log-file="$folder/munge.log" --seed-file="$folder/munge.seed" ;;
        ctld) slurmctld -f "$folder/slurm.conf" ;;
        *) slurmd -N "$1" -f "$folder/slurm.conf" ;;
    esac
}

stop() {
    local pid
    [ -s "$folder/$1.pid" ] || return 0
    pid=$(cat "$folder/$1.pid")
    kill -"${2:-KILL}" "$pid" 2> /dev/null || return 0
    for _ in {1..100}; do
        kill -0 "$pid" 2> /dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2> /dev/null || true
}

wait_until_idle() {
    for _ in {1..150}; do
        if [ "$(sinfo -h -N -t idle -o %N 2> /dev/null | sort -u | wc -l)" -eq "$nodes" ]; then
            return
        fi
        sleep 0.2
    done
    echo "slurm/dev_cluster.sh: the nodes did not become idle in 30 s; see the logs in $folder" >&2
    exit 1
}

up() {
    local program node
    for program in munged slurmctld slurmd; do
        if ! command -v "$program" > /dev/null; then
            echo "slurm/dev_cluster.sh: $program is not installed. Cure: apt-get install slurm-wlm munge" >&2
            exit 1
        fi
    done
    if [ -s "$folder/ctld.pid" ] && kill -0 "$(cat "$folder/ctld.pid")" 2> /dev/null; then
        echo "slurm/dev_cluster.sh: one is running in $folder" >&2
        exit 1
    fi
    configure
    start munge
    start ctld
    for ((node = 1; node <= nodes; node++)); do
        start "n$node"
    done
    wait_until_idle
}

down() {
    local name
    scancel --quiet --state=PENDING --user="$(id -un)" 2> /dev/null || true
    scancel --quiet --user="$(id -un)" 2> /dev/null || true
    for _ in {1..50}; do
        [ -n "$(squeue -h 2> /dev/null)" ] || break
        sleep 0.2
    done
    for name in ctld $(grep -o '^NodeName=n[0-9]*' "$folder/slurm.conf" | cut -d= -f2); do
        stop "$name" TERM &  # each takes two seconds
    done
    wait
    stop munge TERM
}

if [ $# -lt 2 ]; then
    usage
    exit 2
fi
PATH=$PATH:/usr/sbin:/sbin
verb=$1
refuse() {
    echo "slurm/dev_cluster.sh: $1" >&2
    exit 2
}
nodes=${3:-2}
if [ "$verb" = up ]; then
    [[ $nodes =~ ^[1-9][0-9]?$ ]] || refuse "NODES = '$nodes': is no number from 1 to 99. Cure: give one, or leave it out."
    [[ $(realpath -m "$2") =~ [[:space:]] ]] && refuse "FOLDER = '$2': Slurm takes no blanks. Cure: choose another folder."
    mkdir -p "$2"
elif [ ! -s "$2/slurm.conf" ]; then
    refuse "FOLDER = '$2': no cluster was started there. Cure: start one with slurm/dev_cluster.sh up '$2'."
fi
folder=$(cd "$2" && pwd)
export SLURM_CONF=$folder/slurm.conf
case $verb in
    up) up ;;
    down) down ;;
    env) echo "export SLURM_CONF=$(printf %q "$folder/slurm.conf")" ;;
    stop | start)
        [ "${3:-}" = ctld ] || grep -qF "NodeName=${3:-} " "$SLURM_CONF" ||
            refuse "DAEMON = '${3:-}': is none of this cluster. Cure: give ctld, or one of its nodes, such as n1."
        "$verb" "$3" ;;
    *) usage; exit 2 ;;
esac
