#!/bin/bash
# Train on several nodes of a SLURM cluster:
#
#   sbatch scripts/launch/slurm.sh --config=configs/fer_vgg.py --workdir=/shared/runs/fer_vgg
#
# There is one task per GPU; JAX assigns the GPUs to the tasks. Without GPUs, use one task per node and remove
# --gpus-per-node. The workdir must be on storage that all nodes share.
#SBATCH --job-name=affect_jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# SLURM sends SIGTERM to all tasks two minutes before the time limit, and when a job of higher priority needs the nodes.
# The run then saves after its current step and exits with status 143.
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 1

# A task that has saved and exited must not end the tasks that are still saving.
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" .venv/bin/python scripts/train.py "$@"
code=$?

# The run was stopped and has saved: requeue the job, which resumes the run when nodes are free.
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
