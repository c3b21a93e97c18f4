#!/usr/bin/env bash
# Train one phase of a recipe with torchrun, on the machine or machines you hold.
#
#   launch/local.sh RECIPE --phase NAME --run-dir DIR [other flags of `megatron-nca train`]
#
# Several machines: start it on each, with a run folder that all of them see, and
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine [MASTER_PORT=29400] launch/local.sh ...
#
# The number of processes follows from phases.NAME.parallel; NPROC_PER_NODE=N overrides it.
# DRY_RUN=1 prints the command instead. The initial checkpoint and the data must be there: `megatron-nca run --dry-run`
# lists the commands that make them.
set -euo pipefail

python=${PYTHON:-python3}
if [ -x "$(dirname "$0")/../.venv/bin/python" ] && [ -z "${PYTHON:-}" ]; then
    python=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin/python
fi
help=$([ $# -ge 1 ] || echo 2)
for word in "$@"; do
    if [ "$word" = -h ] || [ "$word" = --help ]; then help=0; fi
done
if [ -n "$help" ]; then
    sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"
    exit "$help"
fi

refuse() {
    echo "launch/local.sh: $1" >&2
    exit 2
}
has="import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, ('megatron_nca', 'torch'))))"
"$python" -c "$has" 2> /dev/null || refuse "PYTHON = '$python': is no Python that has megatron_nca and torch. Cure: give \
one that has, or run make setup and leave it out."

nnodes=${NNODES:-1}
per_node=${NPROC_PER_NODE:-$("$python" - "$nnodes" "$@" <<'PY'
import argparse
import sys

from megatron_nca.cli import train
from megatron_nca.config.recipe import load_recipe
from megatron_nca.errors import ConfigError, MegatronNcaError, explain

parser = argparse.ArgumentParser(prog="launch/local.sh", add_help=False)
train.add_arguments(parser)
nodes, arguments = sys.argv[1], parser.parse_args(sys.argv[2:])
try:
    if not nodes.isdecimal() or int(nodes) < 1:
        raise ConfigError(explain("NNODES", nodes, "is no number of machines.", "give 1 or more, or leave it out."))
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    train.choose(recipe, arguments.phase, arguments.arm, arguments.seed)
    size = recipe.phases[arguments.phase].parallel.world_size
    if size % int(nodes):
        reason = f"does not divide the {size} ranks of phase {arguments.phase!r}."
        raise ConfigError(explain("NNODES", int(nodes), reason, "take a divisor of it, or change the phase's parallel."))
    print(size // int(nodes))
except MegatronNcaError as error:
    print(f"launch/local.sh: {error}", file=sys.stderr)
    sys.exit(2)
PY
)}

number() {
    [[ $2 =~ ^[0-9]+$ ]] && [ "$2" -ge "$3" ] && [ "$2" -le "$4" ] ||
        refuse "$1 = '$2': is no number from $3 to $4. Cure: give one, or leave it out."
}
number NPROC_PER_NODE "$per_node" 1 1024
if [ "$nnodes" != 1 ]; then
    [ -n "${NODE_RANK:-}" ] || refuse "NNODES = $nnodes: set NODE_RANK to 0 on the first machine, 1 on the next"
    [ -n "${MASTER_ADDR:-}" ] || refuse "NNODES = $nnodes: set MASTER_ADDR to the first machine"
    number NODE_RANK "$NODE_RANK" 0 $((nnodes - 1))
    number MASTER_PORT "${MASTER_PORT:-29400}" 1 65535
    meeting=(--nnodes "$nnodes" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29400}")
else
    meeting=(--standalone)
fi
command=("$python" -m megatron_nca torchrun "${meeting[@]}" --nproc-per-node "$per_node" -m megatron_nca train "$@")
if [ "${DRY_RUN:-0}" != 0 ]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
exec "${command[@]}"
