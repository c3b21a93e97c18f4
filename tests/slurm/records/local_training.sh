#!/usr/bin/env bash
#SBATCH --job-name=demo.demo.005-nca.nca
#SBATCH --output="/scratch/runs/demo/slurm/logs/005-nca.nca-%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --chdir="/scratch/clone"
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=30
#SBATCH --signal=B:USR2@20
#SBATCH --requeue
#SBATCH --export=PATH,HOME,PYTHONPATH,SLURM_CONF
#SBATCH --array=0-2

set -eo pipefail
exec /scratch/clone/.venv/bin/python -m megatron_nca job /scratch/runs/demo 005-nca.nca
