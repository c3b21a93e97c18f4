#!/usr/bin/env bash
#SBATCH --job-name=demo.demo.005-nca.nca
#SBATCH --output="/scratch/runs/demo/slurm/logs/005-nca.nca-%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --chdir="/scratch/clone"
#SBATCH --account=def-someone
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=h100:2
#SBATCH --mem=0
#SBATCH --time=180
#SBATCH --signal=B:USR2@120
#SBATCH --no-requeue
#SBATCH --export=PATH,HOME,PYTHONPATH,SLURM_CONF
#SBATCH --array=0-2%20

set -eo pipefail
module load StdEnv/2023
module load gcc
module load cuda/12.6
module load python/3.11
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
export WANDB_MODE=offline
export NCCL_SOCKET_IFNAME=ib0
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
exec /scratch/clone/.venv/bin/python -m megatron_nca job /scratch/runs/demo 005-nca.nca --of-series 2
