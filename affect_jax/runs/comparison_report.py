"""The page of several runs: curves on the same axes, metrics, tests on the same images, and differences in configs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from affect_jax.runs import figures
from affect_jax.runs.page import write_page
from affect_jax.tasks.sections import (
    Column,
    Definitions,
    Figure,
    Metrics,
    Note,
    Presentation,
    Section,
    Table,
    columns_note,
    metrics_table,
)

CURVES_NOTE = (
    "Rings mark the evaluated checkpoints. Wall time includes evaluation and compilation. Curves of val can be compared"
    " between runs with the same val split, train losses only if the loss and the augmentation are the same too."
)
VAL_NOTE = (
    "Curves of val can be compared only between runs with the same val split, and not all of these runs have the same."
)
DIFFERENCE_COLUMNS = (
    Column("Difference, points", lambda test: f"{100 * test['difference']:+.2f}"),
    Column("95 % interval", lambda test: " to ".join(f"{100 * end:+.2f}" for end in test["difference_ci95"])),
)


class Run(NamedTuple):
    """One run of a comparison."""

    name: str
    task: str
    score: str
    """Metric of val whose curve is drawn, such as "accuracy" or "ap50"."""
    facts: Mapping[str, str]
    """Properties of the run by title; "" if unknown."""
    command: str
    history: Sequence[Mapping[str, float]]
    """The records of metrics.jsonl."""
    evaluations: Mapping[str, Metrics]
    """The content of metrics.json."""


class Evaluation(NamedTuple):
    """An evaluation of several runs on the same images."""

    name: str
    images: str
    """Description of the images."""
    metrics: Mapping[str, Metrics]
    """Metrics by run."""
    against_first: Mapping[str, dict | str]
    """Result of the paired test of each run after the first, or the reason why there is none."""


class Comparison(NamedTuple):
    """Runs of one task."""

    presentation: Presentation
    runs: Sequence[Run]
    evaluations: Sequence[Evaluation]
    differing: Mapping[str, Sequence[object]]
    """Config fields and versions that differ, with their value in each run of `with_config`."""
    with_config: Sequence[str]
    """Names of the runs whose config is known."""


def same_images(runs: Sequence[Run], presentation: Presentation) -> list[tuple[str, str, dict[str, Metrics]]]:
    """Group the evaluations of runs by name and images: (name, description of the images, metrics by run)."""
    groups: dict[tuple, dict[str, Metrics]] = {}
    for run in runs:
        for name, metrics in run.evaluations.items():
            groups.setdefault((name, *presentation.images(metrics)), {})[run.name] = metrics
    order = {name: index for index, name in enumerate(dict.fromkeys(name for name, *_ in groups))}
    groups = dict(sorted(groups.items(), key=lambda group: order[group[0][0]]))
    return [(name, images, metrics) for (name, images, _), metrics in groups.items()]


def write_comparison(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write the page; each task has its own part."""
    names = [run.name for comparison in comparisons for run in comparison.runs]
    content = []
    if len(comparisons) > 1:
        note = "Runs of different tasks are shown separately: their metrics cannot be compared."
        content.append(Section("", [Note(note)]))
    for comparison in comparisons:
        if len(comparisons) > 1:
            content.append(Section(comparison.runs[0].task.capitalize(), [], level=1))
        content += comparison_sections(comparison)
    write_page(path, names[0] if len(names) == 1 else f"Comparison of {len(names)} runs", content)


def comparison_sections(comparison: Comparison) -> list[Section]:
    """Return the sections about the runs of one task."""
    styles = figures.run_styles([run.name for run in comparison.runs])
    content = [runs_section(comparison, styles), *curves_sections(comparison, styles)]
    names = [evaluation.name for evaluation in comparison.evaluations]
    for evaluation in comparison.evaluations:
        ambiguous = names.count(evaluation.name) > 1
        content += evaluation_sections(evaluation, comparison.presentation, styles, ambiguous)
    if comparison.evaluations:
        shown = [metrics for evaluation in comparison.evaluations for metrics in evaluation.metrics.values()]
        content.append(Section("", [columns_note(comparison.presentation.columns, shown)]))
    content += differences_sections(comparison)
    if commands := {run.name: run.command for run in comparison.runs if run.command}:
        content.append(Section("Commands", [Definitions(commands)]))
    return content


def runs_section(comparison: Comparison, styles: Mapping[str, figures.RunStyle]) -> Section:
    """Return the table of the runs' properties."""
    runs = comparison.runs
    facts = [title for title in runs[0].facts if any(run.facts[title] for run in runs)]
    rows = [[run.name, *(run.facts[title] or "–" for title in facts)] for run in runs]
    blocks = [Table(["Run", *facts], rows, "words", styles)]
    if unknown := [run.name for run in runs if run.name not in comparison.with_config]:
        blocks.append(Note(f"Only the records are kept, without a config: {', '.join(unknown)}."))
    if pending := [run.name for run in runs if not run.evaluations]:
        blocks.append(Note(f"Unfinished, not evaluated yet: {', '.join(pending)}."))
    return Section("Runs", blocks)


def curves_sections(comparison: Comparison, styles: Mapping[str, figures.RunStyle]) -> list[Section]:
    """Return a section of learning curves, or no section if nothing is recorded yet."""
    runs = comparison.runs
    histories = {run.name: run.history for run in runs if run.history}
    if not histories:
        return []
    selected = {
        run.name: max(metrics["checkpoint_step"] for metrics in run.evaluations.values())
        for run in runs
        if run.evaluations
    }
    score = runs[0].score
    curves = figures.curves_of_runs(histories, selected, styles, score, comparison.presentation.score_titles[score])
    blocks = [Figure(curves, "learning_curves"), Note(CURVES_NOTE)]
    different_val = [evaluation.name for evaluation in comparison.evaluations].count("val") > 1
    if different_val or "data.name" in comparison.differing:
        blocks.append(Note(VAL_NOTE))
    return [Section("Learning curves", blocks)]


def evaluation_sections(
    evaluation: Evaluation, presentation: Presentation, styles: Mapping[str, figures.RunStyle], ambiguous: bool
) -> list[Section]:
    """Return the metrics of runs in one evaluation and their paired tests.

    `ambiguous`: the page has another evaluation of this name, on other images.
    """
    remarks = [f"{evaluation.images}."]
    if ambiguous:
        remarks.append(
            f"The {evaluation.name} evaluations of the other runs have other images or classes and cannot be compared."
        )
    if evaluation.name == "val":
        remarks.append("Checkpoints were selected on val, so its metrics are slightly optimistic.")
    blocks = [
        Note(" ".join(remarks)),
        metrics_table("Run", evaluation.metrics, presentation.columns, styles),
    ]
    title = f"{evaluation.name} of {', '.join(evaluation.metrics)}" if ambiguous else evaluation.name
    if len(evaluation.metrics) == 1:
        return [Section(title, blocks)]
    score = presentation.score
    scores = {name: (metrics[score], metrics.get(f"{score}_ci95", ())) for name, metrics in evaluation.metrics.items()}
    intervals = figures.intervals_of_runs(scores, styles, presentation.score_titles[score])
    blocks.append(Figure(intervals, "intervals"))
    return [Section(title, blocks), tests_section(evaluation, presentation, styles)]


def tests_section(
    evaluation: Evaluation, presentation: Presentation, styles: Mapping[str, figures.RunStyle]
) -> Section:
    """Return the paired tests of runs against the first one, and the reasons where there is no test."""
    first = next(iter(evaluation.metrics))
    tests = {name: test for name, test in evaluation.against_first.items() if not isinstance(test, str)}
    reasons = {name: test for name, test in evaluation.against_first.items() if isinstance(test, str)}
    blocks = []
    if tests:
        columns = [*DIFFERENCE_COLUMNS, *presentation.paired_columns]
        blocks += [metrics_table("Run", tests, columns, styles), Note(presentation.paired_note)]
    blocks += [Note(f"{name} and {first} cannot be compared: {reason}") for name, reason in reasons.items()]
    return Section(f"Difference from {first} on the same images", blocks, level=3)


def differences_sections(comparison: Comparison) -> list[Section]:
    """Return a section of differing config fields and versions, or no section if fewer than two configs are known."""
    if len(comparison.with_config) < 2:
        return []
    rows = [[field, *map(str, values)] for field, values in comparison.differing.items()]
    table = Table(["Field", *comparison.with_config], rows, "words")
    return [Section("Differences in config and versions", [table if rows else Note("None.")])]
