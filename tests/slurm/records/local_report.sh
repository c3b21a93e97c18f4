#!/usr/bin/env bash
#SBATCH --job-name=demo.demo.008-report
#SBATCH --output="/scratch/runs/demo/slurm/logs/008-report-%j.log"
#SBATCH --open-mode=append
#SBATCH --chdir="/scratch/clone"
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=30
#SBATCH --signal=B:USR2@20
#SBATCH --requeue
#SBATCH --export=PATH,HOME,PYTHONPATH,SLURM_CONF

set -eo pipefail
exec /scratch/clone/.venv/bin/python -m megatron_nca job /scratch/runs/demo 008-report
