"""Evaluation of a run's checkpoint: metrics, predictions, figures and the report, all in its folder."""

import json
from pathlib import Path

import jax
import numpy as np

from affect_jax.data.pipeline import InMemorySplit
from affect_jax.evaluate.classification import (
    classification_metrics,
    most_confident_mistakes,
    paired_test,
    valence_arousal_metrics,
)
from affect_jax.evaluate.figures import save_figures
from affect_jax.evaluate.report import write_report
from affect_jax.files import write_atomically
from affect_jax.train import builders, workdir
from affect_jax.train.checkpoint import check_fit
from affect_jax.train.classification import predict_split
from affect_jax.train.mesh import data_mesh
from affect_jax.train.state import init_variables, make_apply

MISTAKES_SHOWN = 24
SAMPLES_SHOWN, DRAWS_SHOWN = 4, 7


def evaluate_run(path: str | Path, split_name: str, tta: str = "none") -> dict:
    """Metrics of the best checkpoint of the run in `path` on a split, by classification_metrics; written down there.

    They join metrics.json under the split's name, with "_tta_NAME" behind it where `tta` is not "none";
    predictions/NAME.npz gets probabilities and labels, figures/ the figures, and report.html is made anew.
    """
    run = workdir.Workdir(path)
    config = workdir.load_config(run)
    mesh = data_mesh()
    split = InMemorySplit(builders.build_split(config, split_name), split_name)
    model = builders.build_network(config, len(split.class_names))
    step, variables = builders.load_best_variables(run)
    shapes = jax.eval_shape(lambda key: init_variables(model, key, split.image_shape), jax.random.key(0))
    check_fit(shapes, variables, f"checkpoint {step}")

    predict = builders.build_predict(config, make_apply(model), len(split.class_names), mesh, tta)
    predictions = predict_split(predict, variables, split, config.eval_batch_size, mesh)
    metrics = {"split": split_name, "tta": tta, "checkpoint_step": step, **prediction_metrics(predictions, split)}
    if jax.process_index() == 0:
        name = split_name if tta == "none" else f"{split_name}_tta_{tta}"
        run.predictions.mkdir(exist_ok=True)
        np.savez_compressed(run.predictions / f"{name}.npz", labels=split.arrays["label"], **predictions)
        write_atomically(run.metrics, json.dumps({**workdir.load_metrics(run), name: metrics}, indent=2))
        save_figures(run.figures, name, metrics, split.class_names)
        write_run_report(run, split, split_name, predictions["probs"])
    return metrics


def prediction_metrics(predictions: dict[str, np.ndarray], split: InMemorySplit) -> dict:
    """classification_metrics of predict_split's predictions, and valence_arousal_metrics where there are such."""
    metrics = classification_metrics(predictions["probs"], split.arrays["label"], split.class_names)
    if predictions["valence_arousal"].size:
        metrics.update(valence_arousal_metrics(predictions["valence_arousal"], split.arrays["valence_arousal"]))
    return metrics


def compare_runs(path_a: str | Path, path_b: str | Path, name: str) -> dict:
    """paired_test of two runs' predictions called `name` ("val", "test", "test_tta_flip"), with both accuracies.

    FileNotFoundError, with the command to run, where one has none; ValueError where they are not of the same pictures.
    """
    right, labels = [], []
    for path in (path_a, path_b):
        file = workdir.Workdir(path).predictions / f"{name}.npz"
        if not file.is_file():
            split, _, tta = name.partition("_tta_")
            views = f" --tta={tta}" if tta else ""
            raise FileNotFoundError(
                f"{file}: run\n  python scripts/evaluate.py --workdir={path} --split={split}{views}"
            )
        with np.load(file) as predictions:
            right.append(predictions["probs"].argmax(axis=1) == predictions["labels"])
            labels.append(predictions["labels"])
    if not np.array_equal(*labels):
        raise ValueError(f"{name} of {path_a} and of {path_b} are not the same pictures: their labels differ")
    accuracies = {f"accuracy_{run}": float(correct.mean()) for run, correct in zip("ab", right, strict=True)}
    return {"num_examples": len(labels[0]), **accuracies, **paired_test(*right)}


def write_run_report(run: workdir.Workdir, split: InMemorySplit, split_name: str, probs: np.ndarray) -> None:
    """report.html of the run, with the mistakes of these predictions on `split`."""
    config, environment = workdir.load_config(run), workdir.load_environment(run)
    history = workdir.load_history(run)
    labels = split.arrays["label"]
    mistakes = [
        {
            "image": split.arrays["image"][index],
            "true": split.class_names[labels[index]],
            "predicted": split.class_names[int(np.argmax(probs[index]))],
            "confidence": float(np.max(probs[index])),
            "id": f"{split_name} {index}",
        }
        for index in most_confident_mistakes(probs, labels, MISTAKES_SHOWN)
    ]
    samples = builders.augmented_samples(config, builders.build_split(config, "train"), SAMPLES_SHOWN, DRAWS_SHOWN)
    protocol = {
        "data": config.data.name,
        "trained on": f"train, {config.total_epochs:g} epochs",
        "checkpoint selected by": config.select_on,
        "seed": str(config.seed),
        "command": environment["command"],
        "commit": environment["commit"],
        "hardware": environment["devices"],
        "wall time": f"{history[-1]['seconds'] / 60:.1f} minutes",
    }
    write_report(
        run.report,
        title=f"{config.model.name} on {config.data.name}",
        protocol=protocol,
        history=history,
        evaluations=workdir.load_metrics(run),
        mistakes=mistakes,
        class_names=split.class_names,
        config=config.to_dict(),
        environment=environment,
        samples=samples,
    )
