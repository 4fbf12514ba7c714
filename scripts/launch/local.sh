#!/bin/bash
# Run a script as several processes on this machine, to try what happens on a cluster:
#
#   scripts/launch/local.sh 2 scripts/train.py --config=configs/fer_vgg.py:demo --workdir=runs/two_processes
#
# Each process has one CPU device. Ctrl-C, or SIGTERM to this script, stops all processes after the same step.
set -uo pipefail
number=${1:?give the number of processes} script=${2:?give the script}
shift 2
python=${PYTHON:-.venv/bin/python}

export JAX_PLATFORMS=cpu
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])') || exit 1
processes=()
for ((id = 0; id < number; id++)); do
    "$python" "$script" "$@" --coordinator_address="localhost:$port" --num_processes="$number" --process_id="$id" &
    processes+=($!)
done
trap 'kill -TERM "${processes[@]}" 2>/dev/null' INT TERM

code=0
for process in "${processes[@]}"; do
    wait "$process"
    while kill -0 "$process" 2>/dev/null; do wait "$process"; done # a trapped signal ends `wait` before the process ends
    wait "$process" || code=$?
done
exit "$code"
