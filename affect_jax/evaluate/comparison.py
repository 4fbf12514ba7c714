"""A page of several runs: curves on the same axes, numbers, tests on the same pictures, and what differs in configs."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from affect_jax.evaluate import figures, page
from affect_jax.evaluate.report import NUMBERS_NOTES, numbers_table

SCORES = {"classification": "accuracy", "detection": "ap50"}
"""By task, the figure that has an interval and is tested."""
CURVES_NOTE = (
    "Rings mark the checkpoints that were evaluated; wall time has evaluation and compiling in it. Curves of val can be"
    " compared between runs with the same val, train losses where augmentation, dropout, label smoothing and mixup are"
    " the same too."
)
PAIRED_NOTES = {
    "classification": "p is McNemar's exact one, of the images that just one of the two has right; it is not corrected"
    " for the number of runs.",
    "detection": "The interval is a bootstrap over pictures, the same draws for both; where 0 is outside, they differ.",
}


class Run(NamedTuple):
    """What is known of a run."""

    name: str
    task: str
    score: str
    """The figure of val that its curve is drawn of: "accuracy", "ap50" ..."""
    facts: Mapping[str, str]
    """How it was made, "" what is not known."""
    command: str
    history: Sequence[dict]
    """The records of metrics.jsonl."""
    evaluations: Mapping[str, dict]
    """Of metrics.json."""


class Evaluation(NamedTuple):
    """An evaluation that runs have of the same pictures."""

    name: str
    pictures: str
    """Which pictures, for people."""
    metrics: Mapping[str, dict]
    """By run."""
    against_first: Mapping[str, dict | str]
    """By run behind the first: difference, difference_ci95 and what else the paired test says; or why there is none."""


class Comparison(NamedTuple):
    """Runs of one task side by side."""

    runs: Sequence[Run]
    evaluations: Sequence[Evaluation]
    differing: Mapping[str, Sequence[object]]
    """Fields that are not alike, with their value in each run of `with_config`."""
    with_config: Sequence[str]
    """The runs, by name, whose config is known."""


def same_pictures(runs: Sequence[Run]) -> list[tuple[str, str, dict[str, dict]]]:
    """(name of an evaluation, its pictures, {run: metrics}); runs that saw other pictures under a name stand apart."""
    groups: dict[tuple, dict[str, dict]] = {}
    for run in runs:
        for name, metrics in run.evaluations.items():
            groups.setdefault((name, *_pictures(metrics)), {})[run.name] = metrics
    order = {name: place for place, name in enumerate(dict.fromkeys(name for name, *_ in groups))}
    groups = dict(sorted(groups.items(), key=lambda group: order[group[0][0]]))
    return [(name, shown, metrics) for (name, shown, _), metrics in groups.items()]


def _pictures(metrics: dict) -> tuple[str, object]:
    """What an evaluation looked at: for people, and all that tells it from another."""
    if "split" in metrics and "num_boxes" in metrics:
        shown = f"{metrics['split']}: {metrics['num_boxes']:,} boxes in {metrics['num_pictures']:,} pictures"
        return shown, (metrics["num_ignored"], *metrics["per_class"])
    supports = tuple((name, row["support"]) for name, row in metrics["per_class"].items())
    return f"{metrics['num_examples']:,} images of {len(supports)} classes", supports


def write_comparison(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write the page; runs of another task have a part of their own."""
    names = [run.name for comparison in comparisons for run in comparison.runs]
    parts = [f"<h1>{escape(names[0]) if len(names) == 1 else f'{len(names)} runs side by side'}</h1>"]
    if len(comparisons) > 1:
        parts.append(page.quiet("Runs of different tasks stand apart: their numbers cannot be compared."))
    for comparison in comparisons:
        task = comparison.runs[0].task
        if len(comparisons) > 1:
            parts.append(f"<h1>{escape(task.capitalize())}</h1>")
        parts += _comparison(comparison, task)
    page.write_page(path, ", ".join(names), parts)


def _comparison(comparison: Comparison, task: str) -> list[str]:
    runs = comparison.runs
    styles = figures.run_styles([run.name for run in runs])
    labels = {
        name: f'<span style="color: {style.color}">{style.glyph}</span> {escape(name)}'
        for name, style in styles.items()
    }
    facts = [title for title in runs[0].facts if any(run.facts[title] for run in runs)]
    rows = [[labels[run.name], *(escape(run.facts[title]) or "–" for title in facts)] for run in runs]
    parts = ["<h2>Runs</h2>", page.table(["Run", *facts], rows, "words")]
    if unknown := [run.name for run in runs if run.name not in comparison.with_config]:
        parts.append(page.quiet(f"Only the record is kept, without a config: {', '.join(unknown)}."))
    if waiting := [run.name for run in runs if not run.evaluations]:
        parts.append(page.quiet(f"Still going, or stopped, and not evaluated yet: {', '.join(waiting)}."))
    names = [evaluation.name for evaluation in comparison.evaluations]
    parts += _curves(runs, styles)
    if names.count("val") > 1 or "data.name" in comparison.differing:
        parts.append(page.quiet("Not all have the same val: its curves cannot be compared between those that differ."))
    for evaluation in comparison.evaluations:
        parts += _evaluation(evaluation, task, styles, labels, apart=names.count(evaluation.name) > 1)
    if comparison.evaluations:
        parts.append(page.quiet(NUMBERS_NOTES[task]))
    if len(comparison.with_config) > 1:
        rows = [[escape(field), *(escape(str(v)) for v in values)] for field, values in comparison.differing.items()]
        told = page.table(["Field", *comparison.with_config], rows, "words") if rows else page.quiet("Nothing.")
        parts += ["<h2>What differs in config and versions</h2>", told]
    if commands := {run.name: run.command for run in runs if run.command}:
        parts += ["<h2>Commands</h2>", page.pairs(commands)]
    return parts


def _curves(runs: Sequence[Run], styles: Mapping[str, figures.RunStyle]) -> list[str]:
    histories = {run.name: run.history for run in runs if run.history}
    if not histories:
        return []
    selected = {run.name: next(iter(run.evaluations.values()))["checkpoint_step"] for run in runs if run.evaluations}
    figure = figures.curves_of_runs(histories, selected, styles, runs[0].score)
    return ["<h2>Learning curves</h2>", page.svg(figure), page.quiet(CURVES_NOTE)]


def _evaluation(
    evaluation: Evaluation, task: str, styles: Mapping[str, figures.RunStyle], labels: Mapping[str, str], apart: bool
) -> list[str]:
    shown = ", ".join(evaluation.metrics)
    parts = [f"<h2>{escape(evaluation.name)}{f' of {escape(shown)}' if apart else ''}</h2>"]
    about = [evaluation.pictures]
    if apart:
        about.append(f"{evaluation.name} of other runs has other pictures or classes and cannot be compared")
    if evaluation.name == "val":
        about.append("checkpoints were chosen by it, which makes its numbers a little too good")
    parts.append(page.quiet("; ".join(about)))
    parts.append(numbers_table("Run", [(labels[name], metrics) for name, metrics in evaluation.metrics.items()], task))
    if len(evaluation.metrics) > 1:
        score = SCORES[task]
        scores = {name: (one[score], one.get(f"{score}_ci95", ())) for name, one in evaluation.metrics.items()}
        parts.append(page.svg(figures.intervals_of_runs(scores, styles, figures.SCORE_TITLES[score])))
        parts += _against_first(evaluation, task, labels)
    return parts


def _against_first(evaluation: Evaluation, task: str, labels: Mapping[str, str]) -> list[str]:
    first = next(iter(evaluation.metrics))
    rows, reasons = [], []
    for name, found in evaluation.against_first.items():
        if isinstance(found, str):
            reasons.append(page.quiet(f"{name} and {first} cannot be tested: {found}"))
            continue
        low, high = (f"{100 * end:+.2f}" for end in found["difference_ci95"])
        row = [labels[name], f"{100 * found['difference']:+.2f}", f"{low} to {high}"]
        if task == "classification":
            row += [f"{found['only_a']:,}", f"{found['only_b']:,}", f"{found['p_value']:.2g}"]
        rows.append(row)
    heads = ["Run", "Difference, points", "95 % interval"]
    if task == "classification":
        heads += ["Right by it alone", "Right by the first alone", "p"]
    heading = f"<h3>Against {escape(first)} on the same pictures</h3>"
    tested = [heading, page.table(heads, rows), page.quiet(PAIRED_NOTES[task])] if rows else []
    return [*tested, *reasons]
