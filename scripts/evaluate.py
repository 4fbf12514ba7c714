"""Evaluate a run's best checkpoint: python scripts/evaluate.py --workdir=runs/fer_vgg --split=test [--tta=flip]

    python scripts/evaluate.py --workdir=runs/widerface_rcnn [--dark] [--brighten=clahe] [--data=darkface]
    python scripts/evaluate.py --workdir=runs/widerface_rcnn --peer=yunet,centerface --peer_file=yunet.onnx,center.onnx
    python scripts/evaluate.py --model=affect_jax/predict/weights/ferplus_vgg.safetensors --split=val

The result is printed and recorded in the workdir: metrics.json, predictions/, figures/ and report.html; that of a model
file is only printed. Choose between runs by val; evaluate on test once, at the end. Several processes share the work,
as in training.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import os

import jax
from absl import app, flags, logging

from affect_jax.data import SPLITS
from affect_jax.evaluate.tta import TTA
from affect_jax.process import define_process_flags, join_processes, prepare_process

WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
MODEL = flags.DEFINE_string("model", None, "A model file to evaluate instead of a run, in float32.")
SPLIT = flags.DEFINE_enum("split", "val", SPLITS, "The split to evaluate on.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the data set, if it is not the run's or the model's.")
PROCESSES = define_process_flags()
OPTIONS = {
    "classification": (
        flags.DEFINE_enum(
            "tta",
            "none",
            TTA,
            "Classifiers: average over views. flip: the image and its mirror image; flip_shift: both, also shifted.",
        ),
    ),
    "detection": (
        flags.DEFINE_bool("dark", False, "Detectors: apply the low-light simulator to the images."),
        flags.DEFINE_enum(
            "brighten", "none", ("none", "equalize", "clahe", "exposure"), "Detectors: brighten the images."
        ),
        flags.DEFINE_string("data", "", "Detectors: evaluate on this prepared data set instead of the run's own."),
        flags.DEFINE_list("buckets", [], "Detectors: sizes of the input in place of the config's, such as 640x640."),
        flags.DEFINE_float("enlarge", 1.0, "Detectors: enlarge the images before detection.", 1.0),
        flags.DEFINE_bool("large_faces", False, "Detectors: evaluate on crops around the 40 largest faces."),
        flags.DEFINE_bool("as_predicted", False, "Detectors: also evaluate the searches that predict.py makes."),
        flags.DEFINE_list("peer", [], "Detectors: published detectors to evaluate as well: yunet, centerface."),
        flags.DEFINE_list("peer_file", [], "Detectors: the ONNX file of each peer, in the same order."),
    ),
}
"""Flags by task: the arguments of its `evaluation` method, and what is evaluated for comparison."""
MIN_SCORE = 0.005
"""Detections of predict.py with a lower score are dropped. It is below the 0.02 of the peers, because the score is a
mean over searches, in which a search that missed the face counts 0."""


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if bool(WORKDIR.value) == bool(MODEL.value):
        raise app.UsageError("give a run as --workdir=FOLDER or a model file as --model=FILE, one of the two")
    from affect_jax.evaluate.peers import load_peers
    from affect_jax.runs.evaluation import evaluate_function, evaluate_model, evaluate_run
    from affect_jax.runs.model_file import read
    from affect_jax.runs.text import compare_evaluations, describe_evaluation
    from affect_jax.runs.workdir import Workdir, load_config
    from affect_jax.tasks import TASKS

    logging.set_verbosity(logging.ERROR)
    prepare_process()
    join_processes(*(flag.value for flag in PROCESSES))
    name = read(MODEL.value).config.task if MODEL.value else load_config(Workdir(WORKDIR.value)).task
    if wrong := [flag.name for task in OPTIONS if task != name for flag in OPTIONS[task] if flag.present]:
        raise ValueError(f"--{wrong[0]} is not an option for {name}")
    task, options = TASKS[name], {flag.name: flag.value for flag in OPTIONS[name]}
    peers = load_peers(options.pop("peer", []), options.pop("peer_file", []))
    as_predicted = options.pop("as_predicted", False)
    options["data_dir"] = DATA_DIR.value
    if MODEL.value:
        if peers or as_predicted:
            raise ValueError("--peer and --as_predicted need --workdir")
        metrics = evaluate_model(MODEL.value, SPLIT.value, **options)
        if jax.process_index() == 0:
            print(describe_evaluation(metrics, task))
        return
    if (peers or as_predicted) and jax.process_count() > 1:
        raise ValueError("--peer and --as_predicted need a single process")
    run = Workdir(WORKDIR.value)
    if not os.access(run.path, os.W_OK):
        raise ValueError(f"the result cannot be recorded: {run.path} is not writable; copy the run to a folder that is")
    metrics = evaluate_run(run.path, SPLIT.value, **options)
    if jax.process_index() > 0:
        return
    print(describe_evaluation(metrics, task))
    others = {}
    if as_predicted:
        from affect_jax.predict.reader import image_detector  # needs PyAV

        detect = image_detector(run.path, MIN_SCORE)
        others["predict.py"] = evaluate_function(detect, run.path, SPLIT.value, "as_predicted", **options)
    others |= {name: evaluate_function(peer, run.path, SPLIT.value, **options) for name, peer in peers.items()}
    if others:
        print(compare_evaluations({"this run": metrics, **others}, task))
    print(run.report)


if __name__ == "__main__":
    command_line.run(main)
