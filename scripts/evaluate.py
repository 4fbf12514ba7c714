"""Evaluate a run's best checkpoint: python scripts/evaluate.py --workdir=runs/fer_vgg --split=test [--tta=flip]

Selection looks at val; read test once, at the end.
"""

import sys

from absl import app, flags, logging

from affect_jax.data import SPLITS

WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
SPLIT = flags.DEFINE_enum("split", "val", SPLITS, "The split to evaluate on.")
TTA = flags.DEFINE_enum(
    "tta",
    "none",
    ("none", "flip", "flip_shift"),
    "Views to average over: the picture; with its mirror image; both also moved to the four corners.",
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}?")
    from affect_jax.train.evaluation import evaluate_run
    from affect_jax.train.process import prepare_process
    from affect_jax.train.workdir import Workdir

    logging.set_verbosity(logging.ERROR)
    prepare_process()
    try:
        metrics = evaluate_run(WORKDIR.value, SPLIT.value, TTA.value)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    low, high = metrics["accuracy_ci95"]
    views = "" if TTA.value == "none" else f", test-time augmentation {TTA.value}"
    print(f"{SPLIT.value}: {metrics['num_examples']} images, checkpoint {metrics['checkpoint_step']}{views}")
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
    print(Workdir(WORKDIR.value).report)


if __name__ == "__main__":
    app.run(main)
