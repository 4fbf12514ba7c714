"""Several runs side by side, from what they left in their folders."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from affect_jax.data import SPLITS
from affect_jax.evaluate.classification import paired_test
from affect_jax.evaluate.detection import paired_bootstrap
from affect_jax.runs.comparison_report import Comparison, Evaluation, Run, same_images, write_comparison
from affect_jax.tasks import classification_report, detection_report
from affect_jax.train import workdir
from affect_jax.runs.evaluation import read_detections

PRESENTATIONS = {
    "classification": classification_report.PRESENTATION,
    "detection": detection_report.PRESENTATION,
}

FACTS = ("Network and data", "Seed", "Epochs", "Minutes", "Checkpoint by", "Commit", "Hardware")
"""What the page says of every run."""
FACTS_OF_ENVIRONMENT = ("command", "commit", "devices")
"""What is said of a run already, and need not be told among the fields that differ."""


def write_runs(path: str | Path, folders: Sequence[str | Path]) -> list[Comparison]:
    """Write the page of the runs in `folders`, which may be going on or records alone, and give back what it shows."""
    comparisons = compare(folders)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_comparison(path, comparisons)
    return comparisons


def compare(folders: Sequence[str | Path]) -> list[Comparison]:
    """The runs in `folders`, those of a task together and each tested against the first that saw the same pictures.

    ValueError where a folder stands there twice, FileNotFoundError where one holds no run.
    """
    paths = short_names(folders)
    runs = [load_run(path, name) for name, path in paths.items()]
    tasks = dict.fromkeys(run.task for run in runs)
    return [_compare([run for run in runs if run.task == task], paths) for task in tasks]


def _compare(runs: Sequence[Run], paths: Mapping[str, Path]) -> Comparison:
    presentation, evaluations = PRESENTATIONS[runs[0].task], []
    for name, shown, metrics in same_images(runs, presentation):
        first, *others = metrics
        tests = {other: _test_or_reason(paths[other], paths[first], name) for other in others}
        evaluations.append(Evaluation(name, shown, metrics, tests))
    known = [run.name for run in runs if workdir.Workdir(paths[run.name]).config.exists()]
    return Comparison(presentation, runs, evaluations, differing([_settings(paths[name]) for name in known]), known)


def short_names(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Each folder by the last parts of its path, as few as tell all apart: "C3" and "C4", or "C3/seed0", "C3/seed1"."""
    resolved = [Path(folder).resolve() for folder in folders]
    if twice := [folder for place, folder in enumerate(resolved) if folder in resolved[:place]]:
        raise ValueError(f"{twice[0]} is given twice")
    for count in itertools.count(1):
        names = ["/".join(folder.parts[-count:]) for folder in resolved]
        if len(set(names)) == len(names):
            return dict(zip(names, map(Path, folders), strict=True))


def load_run(path: str | Path, name: str) -> Run:
    """The run in `path`, called `name`: config.json and what metrics.jsonl and metrics.json have by now.

    FileNotFoundError where neither config nor record is there.
    """
    run = workdir.Workdir(path)
    history, evaluations = workdir.load_history(run), workdir.load_metrics(run)
    last = history[-1] if history else {"epoch": 0.0, "seconds": 0.0}
    epochs, minutes = f"{last['epoch']:.3g}", f"{last['seconds'] / 60:.1f}"
    if not run.config.exists():
        if not history:
            raise FileNotFoundError(f"{path} holds no run: neither {run.config.name} nor {run.history.name} is in it")
        task = "detection" if any("train/loss_objectness" in record for record in history) else "classification"
        facts = dict.fromkeys(FACTS, "") | {"Epochs": epochs, "Minutes": minutes}
        return Run(name, task, PRESENTATIONS[task].score, facts, "", history, evaluations)
    config, environment = workdir.load_config(run), workdir.load_environment(run)
    values = (
        f"{config.model.name} on {config.data.name}",
        str(config.seed),
        f"{epochs} of {config.total_epochs:g}",
        minutes,
        config.select_on,
        environment["commit"],
        environment["devices"],
    )
    selected = config.select_on.removeprefix("val/")
    presentation = PRESENTATIONS[config.task]
    score = selected if selected in presentation.score_titles else presentation.score
    facts = dict(zip(FACTS, values, strict=True))
    return Run(name, config.task, score, facts, environment["command"], history, evaluations)


def _settings(path: Path) -> dict:
    """Config and versions of a run."""
    run = workdir.Workdir(path)
    versions = {key: value for key, value in workdir.load_environment(run).items() if key not in FACTS_OF_ENVIRONMENT}
    return {**workdir.load_config(run).to_dict(), "environment": versions}


def differing(settings: Sequence[dict]) -> dict[str, list]:
    """Dotted names of the fields in which nested dicts are not all alike, with the value in each."""
    fields = {}
    for place, other in enumerate(settings[1:], 1):
        for name, value, others in workdir.differing_fields(settings[0], other):
            fields.setdefault(name, [value] * len(settings))[place] = others
    return dict(sorted(fields.items()))


def compare_runs(path_a: str | Path, path_b: str | Path, name: str) -> dict:
    """Do two runs differ in their evaluation called `name`? paired_test of classifiers, paired_bootstrap of detectors.

    FileNotFoundError, with the command to run, where one has no predictions; ValueError where they are not of the same
    pictures.
    """
    files = [_predictions(path, name) for path in (path_a, path_b)]
    with np.load(files[0]) as predictions:
        test = _test_classifiers if "probs" in predictions else _test_detectors
    try:
        return test(*files)
    except ValueError as error:
        raise ValueError(f"{name} of {path_a} and of {path_b}: {error}") from None


def _predictions(path: str | Path, name: str) -> Path:
    run = workdir.Workdir(path)
    file = run.predictions / f"{name}.npz"
    if not file.is_file():
        split, _, tta = name.partition("_tta_")
        if not run.config.exists():
            hint = "only a record of the run is kept"
        elif split in SPLITS:
            hint = f"run\n  python scripts/evaluate.py --workdir={path} --split={split}{f' --tta={tta}' if tta else ''}"
        else:
            hint = "run scripts/evaluate.py with the options of this name"
        raise FileNotFoundError(f"{file} is absent: {hint}")
    return file


def _test_classifiers(*files: Path) -> dict:
    right, labels = [], []
    for file in files:
        with np.load(file) as predictions:
            right.append(predictions["probs"].argmax(axis=1) == predictions["labels"])
            labels.append(predictions["labels"])
    if not np.array_equal(*labels):
        raise ValueError("not the same pictures: their labels differ")
    return paired_test(*right)


def _test_detectors(*files: Path) -> dict:
    (truths, found_a), (others, found_b) = (read_detections(file) for file in files)
    if len(truths) != len(others) or not all(
        np.array_equal(one[key], other[key]) for one, other in zip(truths, others, strict=True) for key in one
    ):
        raise ValueError("not the same pictures: their true boxes differ")
    return paired_bootstrap(truths, found_a, found_b)


def _test_or_reason(path: Path, first: Path, name: str) -> dict | str:
    """compare_runs, or why it cannot be had."""
    try:
        return compare_runs(path, first, name)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
