"""Comparison of several runs, from the files in their folders."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from affect_jax.config import differing_fields
from affect_jax.data import SPLITS
from affect_jax.files import explained
from affect_jax.runs import workdir
from affect_jax.runs.comparison_report import Comparison, Evaluation, Run, same_images, write_comparison
from affect_jax.runs.text import format_epochs
from affect_jax.tasks import TASKS, build_task

FACTS = ("Network and data", "Seed", "Epochs", "Minutes", "Checkpoint by", "Commit", "Hardware")
"""Columns of the page's table of runs."""
FACTS_OF_ENVIRONMENT = ("command", "commit", "devices")
"""Fields of the environment that the page shows elsewhere, not among the fields that differ."""


def write_runs(path: str | Path, folders: Sequence[str | Path]) -> tuple[list[Comparison], list[str]]:
    """Write the page of the runs in `folders`, finished, training or only recorded.

    Returns what it shows, and the reason for each folder that is left out because it has no run or cannot be read.
    ValueError if a folder is given twice or no run is left; then nothing is written.
    """
    paths, runs, problems = short_names(folders), [], []
    for name, folder in paths.items():
        try:
            runs.append(load_run(folder, name))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if not runs:
        raise ValueError("; ".join(problems))
    tasks = dict.fromkeys(run.task for run in runs)
    comparisons = [_compare([run for run in runs if run.task == task], paths) for task in tasks]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_comparison(path, comparisons)
    return comparisons, problems


def _compare(runs: Sequence[Run], paths: Mapping[str, Path]) -> Comparison:
    """Compare runs of one task, every run with the first that was evaluated on the same images."""
    presentation, evaluations = TASKS[runs[0].task].presentation, []
    for name, shown, metrics in same_images(runs, presentation):
        first, *others = metrics
        tests = {other: _test_or_reason(paths[other], paths[first], name) for other in others}
        evaluations.append(Evaluation(name, shown, metrics, tests))
    with_config = [run.name for run in runs if workdir.Workdir(paths[run.name]).config.exists()]
    fields = differing([_settings(paths[name]) for name in with_config])
    return Comparison(presentation, runs, evaluations, fields, with_config)


def short_names(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Map the shortest endings of the paths that differ to the folders: "C3" and "C4", or "C3/seed0", "C3/seed1"."""
    resolved = [Path(folder).resolve() for folder in folders]
    if repeated := [folder for index, folder in enumerate(resolved) if folder in resolved[:index]]:
        raise ValueError(f"{repeated[0]} is given twice")
    for count in itertools.count(1):
        names = ["/".join(folder.parts[-count:]) for folder in resolved]
        if len(set(names)) == len(names):
            return dict(zip(names, map(Path, folders), strict=True))


def load_run(path: str | Path, name: str) -> Run:
    """Load the run in `path` under a name: its config, metrics.jsonl and metrics.json as far as they exist.

    FileNotFoundError if there is neither a config nor a record.
    """
    run = workdir.Workdir(path)
    history, evaluations = workdir.load_history(run), workdir.load_metrics(run)
    last = history[-1] if history else {"epoch": 0.0, "seconds": 0.0}
    facts = dict.fromkeys(FACTS, "") | {
        "Epochs": format_epochs(last["epoch"]),
        "Minutes": f"{last['seconds'] / 60:.1f}",
    }
    if not run.config.exists():
        if not history:
            raise FileNotFoundError(
                f"{path} is not the folder of a run: it has neither {run.config.name} nor {run.history.name}"
            )
        task = task_of_history(history)
        check_evaluations(run, evaluations, task)
        return Run(name, task, TASKS[task].presentation.score, facts, "", history, evaluations)
    config, environment = workdir.load_config(run), workdir.load_environment(run)
    check_evaluations(run, evaluations, config.task)
    with explained(run.config):
        facts |= {
            "Network and data": f"{config.model.name} on {config.data.name}",
            "Seed": str(config.seed),
            "Epochs": format_epochs(last["epoch"], config.total_epochs),
            "Checkpoint by": config.select_on,
            "Commit": environment["commit"],
            "Hardware": environment["devices"],
        }
        selected = config.select_on.removeprefix("val/")
        presentation = TASKS[config.task].presentation
        score = selected if selected in presentation.score_titles else presentation.score
        return Run(name, config.task, score, facts, environment["command"], history, evaluations)


def check_evaluations(run: workdir.Workdir, evaluations: dict, task: str) -> None:
    """Raise ValueError if an evaluation lacks what the page shows of it."""
    presentation = TASKS[task].presentation
    with explained(run.metrics):
        for metrics in evaluations.values():
            presentation.images(metrics)
            for column in presentation.columns:
                column.text(metrics)


def task_of_history(history: Sequence[dict]) -> str:
    """Return the name of the task whose score is in the records; the first task if no record has a score."""
    for name, task in TASKS.items():
        if any(f"val/{task.presentation.score}" in record for record in history):
            return name
    return next(iter(TASKS))


def _settings(path: Path) -> dict:
    """Return the config and the versions of a run."""
    run = workdir.Workdir(path)
    versions = {key: value for key, value in workdir.load_environment(run).items() if key not in FACTS_OF_ENVIRONMENT}
    return {**workdir.load_config(run).to_dict(), "environment": versions}


def differing(settings: Sequence[dict]) -> dict[str, list]:
    """Return the dotted names of the fields in which nested dicts differ, with the value in each dict."""
    fields = {}
    for index, other in enumerate(settings[1:], 1):
        for name, value, others in differing_fields(settings[0], other):
            fields.setdefault(name, [value] * len(settings))[index] = others
    return dict(sorted(fields.items()))


def compare_runs(path_a: str | Path, path_b: str | Path, name: str) -> dict:
    """Test whether two runs differ in their evaluation called `name`, by the paired test of their task.

    FileNotFoundError, with the command to run, if a run has no predictions; ValueError if they are of other images, or
    of another checkpoint than the recorded metrics.
    """
    files = [_predictions(path, name) for path in (path_a, path_b)]
    task = build_task(workdir.load_config(workdir.Workdir(path_a)))
    for path, file in zip((path_a, path_b), files, strict=True):
        recorded = workdir.load_metrics(workdir.Workdir(path)).get(name, {}).get("checkpoint_step")
        with np.load(file) as stored:
            predicted = int(stored["checkpoint_step"]) if "checkpoint_step" in stored else recorded  # older files
        if recorded not in (None, predicted):  # training has found a better checkpoint since
            raise ValueError(f"{file} is of checkpoint {predicted}, the metrics of {recorded}: {_command(path, name)}")
    try:
        return task.paired_test(*files)
    except ValueError as error:
        raise ValueError(f"{name} of {path_a} and of {path_b}: {error}") from None


def _predictions(path: str | Path, name: str) -> Path:
    run = workdir.Workdir(path)
    file = run.predictions_file(name)
    if not file.is_file():
        hint = _command(path, name) if run.checkpoints.exists() else "only a record of the run is kept"
        raise FileNotFoundError(f"{file} is absent: {hint}")
    return file


def _command(path: str | Path, name: str) -> str:
    """Return the advice to evaluate the run in `path` again."""
    split, _, tta = name.partition("_tta_")
    if split not in SPLITS:
        return "run scripts/evaluate.py with the options of this name"
    return f"run\n  python scripts/evaluate.py --workdir={path} --split={split}{f' --tta={tta}' if tta else ''}"


def _test_or_reason(path: Path, first: Path, name: str) -> dict | str:
    """Return the result of compare_runs, or the reason why the runs cannot be compared."""
    try:
        return compare_runs(path, first, name)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
