#!/usr/bin/env bash
# Run the measurements that need one NVIDIA GPU, the most useful first:
#
#   FER2013=PATH/fer2013.csv FERPLUS=PATH/fer2013new.csv bash scripts/launch/gpu_session.sh
#
# Each part writes a log. When it is finished, runs/gpu_session/parts.tsv gets a line with its name and its seconds. Rerun
# the command to resume: finished parts are skipped, and a part that failed is tried again. A failed part does not stop the
# others. How long the parts take has not been measured yet.
#
# Optional variables: MOBILENET is a file of ImageNet weights for MobileNetV2 (default: download from the hub). EXTRAS is
# cuda12 (default) or cuda13. The detector is measured if WIDER FACE is prepared in data/.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=runs/gpu_session
EXTRAS=${EXTRAS:-cuda12}
PYTHON=.venv/bin/python
mkdir -p $OUT
touch $OUT/parts.tsv

part() { # NAME COMMAND...
    local name=$1 started=$SECONDS
    shift
    if grep -q "^$name"$'\t' $OUT/parts.tsv; then return; fi
    echo "== $name: $OUT/$name.log"
    if "$@" >>"$OUT/$name.log" 2>&1; then
        printf '%s\t%s\n' "$name" $((SECONDS - started)) >>$OUT/parts.tsv
    else
        echo "   failed; rerun the command to try it again"
    fi
}

train() { # NAME CONFIG FIELDS...
    local name=$1 config=$2
    shift 2
    $PYTHON scripts/train.py --config="configs/$config.py" --workdir="$OUT/$name" "$@" &&
        $PYTHON scripts/evaluate.py --workdir="$OUT/$name" --split=test &&
        $PYTHON scripts/evaluate.py --workdir="$OUT/$name" --split=test --tta=flip
}

bench() { # NAME CONFIG FIELDS...; half of the GPU memory is left to PyTorch
    local name=$1 config=$2
    shift 2
    XLA_PYTHON_CLIENT_MEM_FRACTION=0.5 $PYTHON scripts/benchmark.py --config="configs/$config.py" --compare=torch \
        --out="$OUT/$name.json" "$@"
}

twice() { # train twice with the same seed and deterministic operations: the probabilities must be equal bit for bit
    $PYTHON scripts/train.py --deterministic --config=configs/fer_vgg.py:demo --workdir=$OUT/twice_a &&
        $PYTHON scripts/train.py --deterministic --config=configs/fer_vgg.py:demo --workdir=$OUT/twice_b &&
        $PYTHON -c 'import sys, numpy
a, b = (numpy.load(f"{run}/predictions/val.npz")["probs"] for run in sys.argv[1:])
assert (a == b).all(), f"they differ by up to {abs(a - b).max()}"' $OUT/twice_a $OUT/twice_b
}

make EXTRAS="$EXTRAS" .venv/.installed
$PYTHON -m pip install --quiet torch torchvision
$PYTHON -c 'import jax; assert jax.default_backend() == "gpu", f"JAX sees no GPU but {jax.devices()}"'
nvidia-smi >$OUT/nvidia-smi.txt
test -d data/fer2013 || $PYTHON scripts/prepare_data.py fer2013 --source="$FER2013"
test -d data/ferplus || $PYTHON scripts/prepare_data.py ferplus --source="$FER2013" --votes="$FERPLUS"

part speedrun $PYTHON scripts/sweep.py --workdir=$OUT/speedrun --seeds=0,1,2,3,4 --marks=68,70,72 \
    --run="68 = configs/fer_speedrun.py:68" --run="70 = configs/fer_speedrun.py:70" \
    --run="72 = configs/fer_speedrun.py:72"

from_imagenet=${MOBILENET:+--config.init_from=$MOBILENET}
part fer_vgg train fer_vgg fer_vgg
part fer_vgg_best train fer_vgg_best fer_vgg_best
part fer_mobilenet train fer_mobilenet fer_mobilenet $from_imagenet
part ferplus_vgg train ferplus_vgg ferplus_vgg
part ferplus_mobilenet train ferplus_mobilenet ferplus_mobilenet $from_imagenet

for dtype in float32 bfloat16; do
    for batch in 64 512; do
        fields=(--config.dtype=$dtype --config.batch_size=$batch)
        part bench_vgg_${dtype}_$batch bench bench_vgg_${dtype}_$batch fer_vgg "${fields[@]}"
        part bench_mobilenet_${dtype}_$batch bench bench_mobilenet_${dtype}_$batch fer_finetune "${fields[@]}"
    done
    if [ -d data/widerface ]; then
        part bench_detector_$dtype bench bench_detector_$dtype widerface_rcnn --config.dtype=$dtype
    fi
done

part twice twice
