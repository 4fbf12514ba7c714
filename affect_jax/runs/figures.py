"""Figures of runs: learning curves, curves of several runs, and their scores with intervals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

TRAIN_COLOR, VAL_COLOR, MARK_COLOR = "#4878a8", "#d1605e", "#888888"
LONG_RUN = 3 * 3600
"""Seconds from which on wall time is shown in hours."""


class RunStyle(NamedTuple):
    """Color of a run and, for color-blind readers, its marker."""

    color: str
    marker: str
    glyph: str
    """The marker as a character, for text."""


RUN_STYLES = tuple(
    RunStyle(*style)
    for style in (
        ("#1845fb", "o", "●"),
        ("#ff5e02", "s", "■"),
        ("#c91f16", "^", "▲"),
        ("#c849a9", "D", "◆"),
        ("#adad7d", "v", "▼"),
        ("#86c8dd", "P", "✚"),
        ("#578dff", "X", "✖"),
        ("#656364", "*", "★"),
    )
)
"""Colors from Petroff 2021 (arXiv:2107.02270), distinguishable for color-blind readers too."""


def learning_curves(history: Sequence[Mapping[str, float]], selected_step: int | None, score: str, score_title: str):
    """Plot the recorded loss and score of train and val over epochs; a line marks the selected checkpoint."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, title, factor) in zip(
        figure.subplots(1, 2, sharex=True), (("loss", "Loss", 1), (score, score_title, 100)), strict=True
    ):
        for split, color in (("train", TRAIN_COLOR), ("val", VAL_COLOR)):
            epochs, values = series(history, "epoch", f"{split}/{name}")
            if len(values):
                look = {"marker": "o", "markersize": 3} if split == "val" else {"linewidth": 1}
                axes.plot(epochs, factor * values, color=color, label=split, **look)
        for record in history:
            if record["step"] == selected_step and "val/loss" in record:
                axes.axvline(record["epoch"], color=MARK_COLOR, linestyle=":", label="selected checkpoint")
        axes.set(title=title, xlabel="Epoch")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def series(history: Sequence[Mapping[str, float]], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of two metrics, from the records that have both."""
    pairs = [(record[x], record[y]) for record in history if x in record and y in record]
    return tuple(np.array(pairs, float).reshape(-1, 2).T)


def run_styles(names: Sequence[str]) -> dict[str, RunStyle]:
    """Return a style for each run; styles repeat after eight runs."""
    return {name: RUN_STYLES[index % len(RUN_STYLES)] for index, name in enumerate(names)}


def curves_of_runs(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    selected_steps: Mapping[str, int],
    styles: Mapping[str, RunStyle],
    score: str,
    score_title: str,
):
    """Plot the score and the losses of several runs, by name, over epochs and over wall time.

    A ring marks the checkpoint at the step of the run in `selected_steps`.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    longest = max((record["seconds"] for history in histories.values() for record in history), default=0.0)
    unit, seconds = ("hours", 3600) if longest >= LONG_RUN else ("minutes", 60)
    rows = (
        (f"val/{score}", f"{score_title} (val)", 100),
        ("val/loss", "Loss (val)", 1),
        ("train/loss", "Loss (train)", 1),
    )
    figure = Figure(figsize=(9.8, 9), layout="constrained")
    grid = figure.subplots(3, 2, sharex="col", sharey="row")
    for (left, right), (name, title, factor) in zip(grid, rows, strict=True):
        left.set_ylabel(title)
        for axes, (x, unit_of_x) in ((left, ("epoch", 1)), (right, ("seconds", seconds))):
            axes.grid(alpha=0.3)
            for run, history in histories.items():
                places, values = series(history, x, name)
                plot_run(axes, places / unit_of_x, factor * values, styles[run], dense=name == "train/loss")
                if name != "train/loss":
                    selected = [record for record in history if record["step"] == selected_steps.get(run)]
                    places, values = series(selected, x, name)
                    ring = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "linestyle": "none"}
                    axes.plot(places / unit_of_x, factor * values, color=styles[run].color, **ring)
    grid[-1, 0].set_xlabel("Epoch")
    grid[-1, 1].set_xlabel(f"Wall time, {unit}")
    keys = [Line2D([], [], color=styles[run].color, marker=styles[run].marker, label=run) for run in histories]
    columns = max(1, int(9 / (0.8 + 0.09 * max(map(len, histories)))))  # widths in inches
    figure.legend(handles=keys, loc="outside upper left", ncols=columns, frameon=False)
    return figure


def plot_run(axes, x: np.ndarray, y: np.ndarray, style: RunStyle, dense: bool) -> None:
    """Plot a run's line, with its marker at every point or, if points are `dense`, at the last."""
    axes.plot(x, y, color=style.color, linewidth=1 if dense else 1.5)
    marked = slice(-1 if dense else 0, None)
    axes.plot(x[marked], y[marked], color=style.color, marker=style.marker, markersize=4, linestyle="none")


def intervals_of_runs(scores: Mapping[str, tuple[float, Sequence[float]]], styles: Mapping[str, RunStyle], title: str):
    """Plot the score of each run, by name, and its 95 % interval (low, high), or () if it has none, in percent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.9 + 0.3 * len(scores)), layout="constrained")
    axes = figure.subplots()
    for row, (run, (score, interval)) in enumerate(scores.items()):
        color, marker, _ = styles[run]
        if interval:
            axes.plot(100 * np.asarray(interval), [row, row], color=color, linewidth=1.5)
        axes.plot(100 * score, row, color=color, marker=marker, markersize=7)
    axes.set_yticks(range(len(scores)), scores)
    axes.set(ylim=(len(scores) - 0.5, -0.5), xlabel=title)
    axes.grid(axis="x", alpha=0.3)
    return figure
