#!/usr/bin/env bash
#SBATCH --job-name=demo.demo.004-scratch.text
#SBATCH --output="/scratch/runs/demo/slurm/logs/004-scratch.text-%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --chdir="/scratch/clone"
#SBATCH --partition=gpu
#SBATCH --account=my-account
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=2
#SBATCH --mem=0
#SBATCH --time=1430
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --export=PATH,HOME,PYTHONPATH,SLURM_CONF,WANDB_API_KEY,HF_TOKEN
#SBATCH --array=0-2

set -eo pipefail
export NCCL_DEBUG=WARN
exec /scratch/clone/.venv/bin/python -m megatron_nca job /scratch/runs/demo 004-scratch.text
