#!/bin/bash
# Train on all workers of a Cloud TPU pod slice:
#
#   scripts/launch/tpu_pod.sh NAME ZONE --config=configs/fer_vgg.py --workdir=/mnt/shared/runs/fer_vgg
#
# On every worker, clone the repository to ~/affect_jax and run `make EXTRAS=tpu .venv/.installed`. The workdir must be on
# storage that all workers mount, for example a Filestore share. After a preemption, wait until the TPU is available and
# rerun the command to resume.
set -euo pipefail
name=${1:?give the name of the TPU} zone=${2:?give its zone}
shift 2

printf -v arguments ' %q' "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="cd affect_jax && .venv/bin/python scripts/train.py$arguments"
