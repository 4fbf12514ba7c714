"""Evaluate a run's best checkpoint: python scripts/evaluate.py --workdir=runs/fer_vgg --split=test [--tta=flip]

    python scripts/evaluate.py --workdir=runs/widerface_rcnn [--dark] [--brighten=clahe] [--data=darkface]
    python scripts/evaluate.py --workdir=runs/widerface_rcnn --centerface=centerface.onnx

Selection looks at val; read test once, at the end. Several processes share the work as they do in training.
"""

import sys

import jax
from absl import app, flags, logging

from affect_jax.data import SPLITS
from affect_jax.process import define_process_flags, join_processes, prepare_process

WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
SPLIT = flags.DEFINE_enum("split", "val", SPLITS, "The split to evaluate on.")
PROCESSES = define_process_flags()
OPTIONS = {
    "classification": (
        flags.DEFINE_enum(
            "tta",
            "none",
            ("none", "flip", "flip_shift"),
            "Classifiers: views to average over: the picture; with its mirror image; both also moved to the corners.",
        ),
    ),
    "detection": (
        flags.DEFINE_bool("dark", False, "Detectors: take the pictures through the low-light simulator first."),
        flags.DEFINE_enum(
            "brighten", "none", ("none", "equalize", "clahe"), "Detectors: brighten the pictures before the search."
        ),
        flags.DEFINE_string("data", "", "Detectors: another prepared set than the run's own."),
        flags.DEFINE_string("data_dir", "", "Detectors: where that set is, if not where the run's is."),
        flags.DEFINE_string("centerface", "", "Detectors: CenterFace's ONNX file, to evaluate it too."),
    ),
}


def print_classifier(metrics: dict) -> None:
    low, high = metrics["accuracy_ci95"]
    views = "" if metrics["tta"] == "none" else f", test-time augmentation {metrics['tta']}"
    print(f"{metrics['split']}: {metrics['num_examples']} images, checkpoint {metrics['checkpoint_step']}{views}")
    print(
        f"accuracy {metrics['accuracy']:.2%}, 95 % interval {low:.2%} to {high:.2%}; macro-F1 {metrics['macro_f1']:.4f}"
    )
    print(f"NLL {metrics['nll']:.4f}; ECE {metrics['ece']:.4f}")
    for name in ("valence", "arousal"):
        if f"ccc_{name}" in metrics:
            print(f"{name}: CCC {metrics[f'ccc_{name}']:.3f}, RMSE {metrics[f'rmse_{name}']:.3f}")
    for name, row in metrics["per_class"].items():
        print(
            f"  {name:10} recall {row['recall']:7.2%}  precision {row['precision']:7.2%}  F1 {row['f1']:7.2%}"
            f"  of {row['support']}"
        )


def print_detector(metrics: dict) -> None:
    low, high = metrics.get("ap50_ci95", (None, None))
    interval = "" if low is None else f", 95 % interval {low:.2%} to {high:.2%}"
    print(
        f"{metrics['split']}: {metrics['num_boxes']} boxes in {metrics['num_pictures']} pictures,"
        f" checkpoint {metrics['checkpoint_step']}"
    )
    print(f"AP50 {metrics['ap50']:.2%}{interval}; by WIDER FACE's and DARK FACE's tool {metrics['ap50_tool']:.2%}")
    print("  ".join(f"{name} {value:.2%}" for name, value in metrics.items() if name.startswith("coco_")))
    print(f"at score 0.5: recall {metrics['recall']:.2%}, precision {metrics['precision']:.2%}")
    for name, row in metrics["recall_by_height"].items():
        print(
            f"  {name:16} {row['boxes']:6} boxes, recall {row['recall']:7.2%}, at score 0.5"
            f" {row['recall_at_score_50']:7.2%}"
        )


def print_both(mine: dict, centerface: dict) -> None:
    headings = "".join(f"{heading:>10}" for heading in ("AP50", "COCO AP", "recall", "precision"))
    print(f"{'on the same pictures':>20}{headings}  AP50's 95 % interval")
    for name, metrics in (("this run", mine), ("CenterFace", centerface)):
        figures = "".join(f"{metrics[key]:10.2%}" for key in ("ap50", "coco_ap", "recall", "precision"))
        print(f"{name:>20}{figures}  " + " to ".join(f"{end:.2%}" for end in metrics["ap50_ci95"]))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}?")
    from affect_jax.evaluate.centerface import CenterFace
    from affect_jax.runs.evaluation import evaluate_function, evaluate_run
    from affect_jax.runs.workdir import Workdir, load_config

    logging.set_verbosity(logging.ERROR)
    prepare_process()
    run = Workdir(WORKDIR.value)
    try:
        join_processes(*(flag.value for flag in PROCESSES))
        task = load_config(run).task
        if others := [flag for other in OPTIONS if other != task for flag in OPTIONS[other] if flag.present]:
            raise ValueError(f"--{others[0].name} is not for {task}")
        options = {flag.name: flag.value for flag in OPTIONS[task]}
        file = options.pop("centerface", "")
        if file and jax.process_count() > 1:
            raise ValueError("--centerface is for one process")
        centerface = CenterFace(file) if file else None
        metrics = evaluate_run(run.path, SPLIT.value, **options)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if jax.process_index() > 0:
        return
    (print_detector if task == "detection" else print_classifier)(metrics)
    if centerface:
        print_both(metrics, evaluate_function(centerface, run.path, SPLIT.value, **options))
    print(run.report)


if __name__ == "__main__":
    app.run(main)
