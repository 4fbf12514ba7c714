"""Evaluation of runs, model files and other detectors, and the record of a run's evaluations in its folder."""

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from affect_jax.files import locked, whole_file, write_atomically
from affect_jax.runs import workdir
from affect_jax.runs.model_file import Trained, check_weights, load_trained, load_trained_run
from affect_jax.runs.report import save_figures, write_report
from affect_jax.runs.text import format_epochs
from affect_jax.runs.workdir import Workdir
from affect_jax.tasks import build_task
from affect_jax.tasks.detection import Detection
from affect_jax.tasks.interface import Evaluation, Task, same_classes
from affect_jax.tasks.sections import Table
from affect_jax.train.mesh import data_mesh
from affect_jax.train.prediction import compile_predict, predict_split
from affect_jax.train.state import make_apply


def evaluate_run(path: str | Path, split_name: str, **options: Any) -> dict:
    """Evaluate the best checkpoint of the run in `path` on a split and record the result in the folder.

    `options` are those of the task's `evaluation` method. Returns the metrics, with "checkpoint_step".
    """
    trained = load_trained_run(path)
    task, evaluation, predictions = predict(trained, path, split_name, options)
    return record_evaluation(Workdir(path), task, evaluation, trained.about["step"], predictions)


def evaluate_model(path: str | Path, split_name: str, **options: Any) -> dict:
    """Return the metrics of a model file, computed in float32, on a split of the data set that it was trained on.

    Nothing is recorded. `options` are those of the task's `evaluation` method.
    """
    trained = load_trained(path)
    trained.config.dtype = "float32"  # bfloat16 is slow on CPU
    task, evaluation, predictions = predict(trained, path, split_name, options)
    return {**evaluation.about, **task.metrics(predictions, evaluation)}


def predict(
    trained: Trained, path: str | Path, split_name: str, options: Mapping[str, Any]
) -> tuple[Task, Evaluation, Any]:
    """Return the task of the network in `path`, its evaluation on a split, and the predictions.

    ValueError if the weights do not fit the network, or the data has other classes or is another version than that of
    training.
    """
    check_weights(trained)
    task = build_task(trained.config)
    evaluation = task.evaluation(split_name, **options)
    if evaluation.identity is not None:
        recorded = workdir.splits_of(trained.about.get("splits", {}))
        if not recorded and jax.process_index() == 0:
            print(f"{path} does not name the version of its data: only the classes are compared", file=sys.stderr)
        data = trained.config.data
        folder = evaluation.data_dir or data.data_dir
        workdir.check_splits(str(path), data.name, folder, recorded, {split_name: evaluation.identity})
    return task, evaluation, predictions_of(task, trained, evaluation)


def predictions_of(task: Task, trained: Trained, evaluation: Evaluation) -> Any:
    """Return the predictions of a network on all examples of an evaluation; ValueError if the classes differ.

    A single class may have another name.
    """
    known, given = trained.data.class_names, tuple(evaluation.split.class_names)
    if not same_classes(known, given):
        raise ValueError(f"the network was trained for {', '.join(known)}; the data has {', '.join(given)}")
    mesh, apply = data_mesh(), make_apply(task.build_network(trained.data))
    compiled = compile_predict(task.predict_fn(apply, trained.data, evaluation.options), mesh)
    return predict_split(compiled, trained.variables, task, evaluation, mesh)


def record_evaluation(run: Workdir, task: Task, evaluation: Evaluation, step: int, predictions: Any) -> dict:
    """Compute the metrics of predictions of checkpoint `step` and record them; return the metrics.

    metrics.json gets the metrics under the evaluation's name, predictions/NAME.npz and NAME.csv the predictions,
    figures/ the figures, and report.html is written again.
    """
    metrics = {**evaluation.about, "checkpoint_step": step, **task.metrics(predictions, evaluation)}
    if jax.process_index() == 0:
        _record(run, task, evaluation, evaluation.name, metrics, predictions, shown=predictions)
    multihost_utils.sync_global_devices("the evaluation is written")
    return metrics


def write_csv(path: Path, table: Table) -> None:
    """Write a table as a CSV file, completely or not at all."""
    with whole_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        csv.writer(text, lineterminator="\n").writerows(chain([table.heads], table.rows))
        text.detach()  # written out, but left open for whole_file


def evaluate_function(
    detect: Callable[[np.ndarray], dict[str, np.ndarray]], task: Detection, evaluation: Evaluation
) -> dict:
    """Return the metrics of `detect`, image uint8 [H, W, 3] -> detections, on the images of an evaluation."""
    return task.metrics({"detections": task.detections_of(detect, evaluation)}, evaluation)


def evaluate_beside(
    run: Workdir,
    detect: Callable[[np.ndarray], dict[str, np.ndarray]],
    task: Detection,
    evaluation: Evaluation,
    suffix: str,
) -> dict:
    """Evaluate `detect` on the images of an evaluation that the run has, and record the result beside it.

    It is recorded as by record_evaluation, under the evaluation's name with `_suffix`; the report shows the detections
    of the evaluation. Returns the metrics.
    """
    predictions = {"detections": task.detections_of(detect, evaluation)}
    metrics = {
        "split": f"{evaluation.about['split']}, {suffix.replace('_', ' ')}",
        "checkpoint_step": workdir.load_metrics(run)[evaluation.name]["checkpoint_step"],
        **task.metrics(predictions, evaluation),
    }
    _, shown = task.read_predictions(run.predictions_file(evaluation.name))
    _record(run, task, evaluation, f"{evaluation.name}_{suffix}", metrics, predictions, shown)
    return metrics


def _record(
    run: Workdir,
    task: Task,
    evaluation: Evaluation,
    name: str,
    metrics: Mapping[str, Any],
    predictions: Any,
    shown: Any,
) -> None:
    """Write predictions, add their metrics under a name to metrics.json, and write the report with those `shown`.

    Evaluations of the run at the same time wait for each other.
    """
    run.predictions.mkdir(exist_ok=True)
    file = run.predictions_file(name)
    task.write_predictions(file, predictions, evaluation, metrics["checkpoint_step"])
    with locked(run.metrics_lock):
        write_atomically(run.metrics, json.dumps({**workdir.load_metrics(run), name: metrics}, indent=2))
        write_run_report(run, task, evaluation, shown)
    write_csv(file.with_suffix(".csv"), task.prediction_table(predictions, evaluation))


def write_run_report(run: Workdir, task: Task, evaluation: Evaluation, predictions: Any) -> None:
    """Write report.html, with these predictions, and the figures of the evaluation."""
    config, history, environment = task.config, workdir.load_history(run), workdir.load_environment(run)
    evaluations = workdir.load_metrics(run)
    sections = task.sections(evaluations, evaluation, predictions)
    save_figures(run.figures, sections, evaluation.name)
    write_report(
        run.report,
        title=f"{config.model.name} on {config.data.name}",
        protocol=protocol(config, history, environment),
        history=history,
        evaluations=evaluations,
        presentation=task.presentation,
        sections=sections,
        config=config.to_dict(),
        environment=environment,
    )


def protocol(config: ConfigDict, history: list[dict], environment: dict[str, str]) -> dict[str, str]:
    """Return how the numbers of a run were obtained, for its report."""
    return {
        "data": config.data.name,
        "trained on": f"train, {format_epochs(history[-1]['epoch'] if history else 0, config.total_epochs)} epochs",
        "checkpoint selected by": config.select_on,
        "seed": str(config.seed),
        "command": environment["command"],
        "commit": environment["commit"],
        "hardware": environment["devices"],
        "wall time": f"{history[-1]['seconds'] / 60:.1f} minutes" if history else "unknown",
    }
