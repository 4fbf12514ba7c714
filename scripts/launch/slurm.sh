#!/bin/bash
# Train on several nodes of a SLURM cluster:
#
#   sbatch scripts/launch/slurm.sh --config=configs/fer_vgg.py --workdir=/shared/runs/fer_vgg
#
# One task a GPU: JAX gives each task the GPU of its number. Without GPUs: one task a node, and no --gpus-per-node.
# The workdir has to be on storage that all nodes share.
#SBATCH --job-name=affect_jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Two minutes before the time is up, and when a more urgent job needs the nodes, all tasks get SIGTERM: the run saves
# behind its current update and ends with 143.
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 1

# A task that has saved and ended must not take those with it that still save.
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" .venv/bin/python scripts/train.py "$@"
code=$?

# Stopped and saved: the same command goes on where it was, as soon as there are nodes.
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
