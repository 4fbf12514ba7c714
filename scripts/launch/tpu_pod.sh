#!/bin/bash
# Train on all workers of a Cloud TPU pod slice; they find one another:
#
#   scripts/launch/tpu_pod.sh NAME ZONE --config=configs/fer_vgg.py --workdir=/mnt/shared/runs/fer_vgg
#
# On every worker the repository is in ~/affect_jax with `make EXTRAS=tpu .venv/.installed` done, and the workdir is on
# storage that all workers mount, such as a Filestore share. After a preemption, once the TPU is there again, the same
# line goes on where the run was.
set -euo pipefail
name=${1:?name of the TPU} zone=${2:?its zone}
shift 2

printf -v arguments ' %q' "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="cd affect_jax && .venv/bin/python scripts/train.py$arguments"
