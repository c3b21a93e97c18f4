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
if [ $# -lt 1 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
    sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"
    [ $# -ge 1 ]
    exit
fi

nnodes=${NNODES:-1}
per_node=${NPROC_PER_NODE:-$("$python" - "$nnodes" "$@" <<'PY'
import sys

from megatron_nca.config.recipe import load_recipe
from megatron_nca.errors import MegatronNcaError

nodes, recipe, words = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
try:
    phase = words[words.index("--phase") + 1] if "--phase" in words else sys.exit("launch/local.sh: --phase is missing.")
    phases = load_recipe(recipe, [word for word in words if "=" in word and not word.startswith("-")]).phases
    if phase not in phases:
        sys.exit(f"launch/local.sh: --phase = {phase!r}: not in {recipe}. Known: {', '.join(phases)}.")
    size = phases[phase].parallel.world_size
    if size % nodes:
        sys.exit(f"launch/local.sh: NNODES = {nodes}: does not divide the {size} ranks of phase {phase!r}.")
    print(size // nodes)
except MegatronNcaError as error:
    sys.exit(f"launch/local.sh: {error}")
PY
)}

if [ "$nnodes" -gt 1 ]; then
    : "${NODE_RANK:?NNODES is above 1: set NODE_RANK to 0 on the first machine, 1 on the next}"
    : "${MASTER_ADDR:?NNODES is above 1: set MASTER_ADDR to the first machine}"
    meeting=(--nnodes "$nnodes" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29400}")
else
    meeting=(--standalone)
fi
command=("$python" -m megatron_nca torchrun "${meeting[@]}" --nproc-per-node "$per_node" -m megatron_nca train "$@")
if [ "${DRY_RUN:-0}" = 1 ]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
exec "${command[@]}"
