#!/usr/bin/env bash
#SBATCH --job-name=a_b_c_d_HOME__id____touch_pwned___j__x__.007-nca__.text
#SBATCH --output="/scratch/a b'c\"d$HOME `id` $(touch pwned) %%j #x ü;&|/slurm/logs/007-nca__.text-%j.log"
#SBATCH --open-mode=append
#SBATCH --chdir="/scratch/clone"
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=60
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --export=PATH,HOME,PYTHONPATH,SLURM_CONF

set -eo pipefail
export GREETING='a b'"'"'c"d$HOME `id` $(touch pwned) %j #x ü;&|'
exec /scratch/clone/.venv/bin/python -m megatron_nca job '/scratch/a b'"'"'c"d$HOME `id` $(touch pwned) %j #x ü;&|' 007-nca__.text
