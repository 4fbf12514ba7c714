"""Evaluate a run's best checkpoint: python scripts/evaluate.py --workdir=runs/fer_vgg --split=test [--tta=flip]

    python scripts/evaluate.py --workdir=runs/widerface_rcnn [--dark] [--brighten=clahe] [--data=darkface]
    python scripts/evaluate.py --workdir=runs/widerface_rcnn --peer=yunet,centerface --peer_file=yunet.onnx,center.onnx
    python scripts/evaluate.py --model=affect_jax/predict/weights/ferplus_vgg.safetensors --split=val
    python scripts/evaluate.py --model=affect_jax/predict/weights/widerface_yunet.safetensors --as_predicted

The result is printed and recorded in the workdir: metrics.json, predictions/, figures/ and report.html; that of a model
file is only printed. Choose between runs by val; evaluate on test once, at the end. Several processes share the work,
as in training.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import os
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from affect_jax.data import SPLITS
from affect_jax.data.transforms import BRIGHTENINGS
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
            "brighten",
            "none",
            BRIGHTENINGS,
            "Detectors: brighten the images before detection; exposure raises dark images to a mean of 60 of 255.",
        ),
        flags.DEFINE_string("data", "", "Detectors: evaluate on this prepared data set instead of the run's own."),
        flags.DEFINE_list("buckets", [], "Detectors: sizes of the input in place of the config's, such as 640x640."),
        flags.DEFINE_float(
            "enlarge",
            1.0,
            "Detectors: enlarge the images by this factor after they are resized; the sides must stay multiples of 32.",
            1.0,
        ),
        flags.DEFINE_bool("large_faces", False, "Detectors: evaluate on crops around the 40 largest faces."),
    ),
}
"""Flags by task: the arguments of its `evaluation` method."""
AS_PREDICTED = flags.DEFINE_bool("as_predicted", False, "Detectors: also evaluate the searches that predict.py makes.")
PEER = flags.DEFINE_list("peer", [], "Detectors: published detectors to evaluate as well: yunet, centerface.")
PEER_FILE = flags.DEFINE_list("peer_file", [], "Detectors: the ONNX file of each peer, in the same order.")
OTHERS = (AS_PREDICTED, PEER, PEER_FILE)
"""Flags for detectors: what is evaluated for comparison."""
MIN_SCORE = 0.005
"""Detections of predict.py with a lower score are dropped. It is below the 0.02 of the peers, because the score is a
mean over searches, in which a search that missed the face counts 0."""


def main(argv):
    command_line.reject_arguments(argv)
    if bool(WORKDIR.value) == bool(MODEL.value):
        raise app.UsageError("give a run as --workdir=FOLDER or a model file as --model=FILE, one of the two")
    from affect_jax.evaluate.peers import load_peers
    from affect_jax.runs.model_file import load_trained
    from affect_jax.runs.text import compare_evaluations, describe_evaluation
    from affect_jax.runs.workdir import Workdir, load_config
    from affect_jax.tasks import TASKS

    logging.set_verbosity(logging.ERROR)
    prepare_process()
    join_processes(*(flag.value for flag in PROCESSES))
    config = load_trained(MODEL.value).config if MODEL.value else load_config(Workdir(WORKDIR.value))
    given = {**OPTIONS, "detection": OPTIONS["detection"] + OTHERS}
    if wrong := [flag.name for task in given if task != config.task for flag in given[task] if flag.present]:
        raise ValueError(f"--{wrong[0]} is not an option for {config.task}")
    options = {flag.name: flag.value for flag in OPTIONS[config.task]} | {"data_dir": DATA_DIR.value}
    peers = load_peers(PEER.value, PEER_FILE.value)
    if (peers or AS_PREDICTED.value) and jax.process_count() > 1:
        raise ValueError("--peer and --as_predicted need a single process")
    metrics = evaluate_network(options)
    if jax.process_index() > 0:
        return
    presentation = TASKS[config.task].presentation
    print(describe_evaluation(metrics, presentation))
    if peers or AS_PREDICTED.value:
        title = "this run" if WORKDIR.value else "this model"
        print(compare_evaluations({title: metrics, **evaluate_others(config, options, peers)}, presentation))
    if WORKDIR.value:
        print(f"report: {Workdir(WORKDIR.value).report}")


def evaluate_network(options: dict) -> dict:
    """Return the metrics of the run, which are recorded in its folder, or of the model file."""
    from affect_jax.runs.evaluation import evaluate_model, evaluate_run

    if MODEL.value:
        return evaluate_model(MODEL.value, SPLIT.value, **options)
    if not os.access(WORKDIR.value, os.W_OK):
        raise ValueError(
            f"the result cannot be recorded: {WORKDIR.value} is not writable; copy the run to a folder that is"
        )
    return evaluate_run(WORKDIR.value, SPLIT.value, **options)


def evaluate_others(config: ConfigDict, options: dict, peers: dict[str, Callable]) -> dict[str, dict]:
    """Return the metrics of the searches of predict.py, which a run records, and of published detectors."""
    from affect_jax.runs.evaluation import evaluate_beside, evaluate_function
    from affect_jax.runs.workdir import Workdir
    from affect_jax.tasks import build_task

    task = build_task(config)
    evaluation, metrics = task.evaluation(SPLIT.value, **options), {}
    if AS_PREDICTED.value:
        from affect_jax.predict.networks import image_detector

        detect = image_detector(MODEL.value or WORKDIR.value, MIN_SCORE)
        if WORKDIR.value:
            found = evaluate_beside(Workdir(WORKDIR.value), detect, task, evaluation, "as_predicted")
        else:
            found = evaluate_function(detect, task, evaluation)
        metrics["predict.py"] = found
    return metrics | {name: evaluate_function(peer, task, evaluation) for name, peer in peers.items()}


if __name__ == "__main__":
    command_line.run(main)
