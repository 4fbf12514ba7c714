"""Figures of a run and of its predictions, as matplotlib Figures without any state of pyplot's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from affect_jax.files import whole_file

TRAIN_COLOR, VAL_COLOR, QUIET_COLOR = "#4878a8", "#d1605e", "#888888"
RIGHT_COLOR, WRONG_COLOR, MISSED_COLOR = (60, 220, 90), (240, 60, 60), (250, 210, 50)
SCORE_TITLES = {"accuracy": "Accuracy, %", "macro_f1": "Macro-F1, %", "ap50": "AP50, %", "coco_ap": "COCO AP, %"}
LONG_RUN = 3 * 3600
"""Seconds from which on wall time is told in hours."""


class RunStyle(NamedTuple):
    """How a run is told from others: by color and, for those who see few of them, by marker."""

    color: str
    marker: str
    glyph: str
    """The marker as a letter, for text."""


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
"""Colors of Petroff 2021 (arXiv 2107.02270), chosen for color-blind readers too."""


def learning_curves(history: Sequence[dict], selected_step: int | None, score: str = "accuracy"):
    """Loss and score of train and val over epochs, as far as recorded; a line marks the selected checkpoint."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, title, factor) in zip(
        figure.subplots(1, 2, sharex=True), (("loss", "Loss", 1), (score, SCORE_TITLES[score], 100)), strict=True
    ):
        for split, color in (("train", TRAIN_COLOR), ("val", VAL_COLOR)):
            epochs, values = series(history, "epoch", f"{split}/{name}")
            if len(values):
                look = {"marker": "o", "markersize": 3} if split == "val" else {"linewidth": 1}
                axes.plot(epochs, factor * values, color=color, label=split, **look)
        for record in history:
            if record["step"] == selected_step and "val/loss" in record:
                axes.axvline(record["epoch"], color=QUIET_COLOR, linestyle=":", label="selected checkpoint")
        axes.set(title=title, xlabel="Epoch")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def series(history: Sequence[dict], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of two names in the records that have both."""
    pairs = [(record[x], record[y]) for record in history if x in record and y in record]
    return tuple(np.array(pairs, float).reshape(-1, 2).T)


def run_styles(names: Sequence[str]) -> dict[str, RunStyle]:
    """A style for each of up to eight runs; beyond, styles come again."""
    return {name: RUN_STYLES[place % len(RUN_STYLES)] for place, name in enumerate(names)}


def curves_of_runs(
    histories: Mapping[str, Sequence[dict]],
    selected_steps: Mapping[str, int],
    styles: Mapping[str, RunStyle],
    score: str,
):
    """The score and the losses of several runs, by name, over epochs and over wall time.

    A ring marks the checkpoint of a run that stands in `selected_steps`.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    longest = max((record["seconds"] for history in histories.values() for record in history), default=0.0)
    unit, seconds = ("hours", 3600) if longest >= LONG_RUN else ("minutes", 60)
    rows = (
        (f"val/{score}", f"{SCORE_TITLES[score]} (val)", 100),
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
    columns = max(1, int(9 / (0.8 + 0.09 * max(map(len, histories)))))  # inches; of a letter too
    figure.legend(handles=keys, loc="outside upper left", ncols=columns, frameon=False)
    return figure


def plot_run(axes, x: np.ndarray, y: np.ndarray, style: RunStyle, dense: bool) -> None:
    """A run's line with its marker at every point, or where points are `dense` at the last."""
    axes.plot(x, y, color=style.color, linewidth=1 if dense else 1.5)
    marked = slice(-1 if dense else 0, None)
    axes.plot(x[marked], y[marked], color=style.color, marker=style.marker, markersize=4, linestyle="none")


def intervals_of_runs(scores: Mapping[str, tuple[float, Sequence[float]]], styles: Mapping[str, RunStyle], title: str):
    """The score of each run, by name, with its 95 % interval (low, high), or () where it has none; in percent."""
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


def confusion_matrix(counts: Sequence[Sequence[int]], class_names: Sequence[str]):
    """Counts [K, K], rows the truth, colored by the share of their row."""
    from matplotlib.figure import Figure

    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 1.8 + 0.55 * len(class_names)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=8)
    ticks = range(len(class_names))
    axes.set_xticks(ticks, class_names, rotation=45, ha="right")
    axes.set_yticks(ticks, class_names)
    axes.set(xlabel="Predicted", ylabel="True")
    return figure


def calibration(bins: dict[str, Sequence[float]], ece: float):
    """Accuracy against confidence by bin, beside the diagonal of perfect calibration; counts below."""
    from matplotlib.figure import Figure

    accuracy, count = (np.asarray(bins[key]) for key in ("accuracy", "count"))
    centres = (np.arange(len(count)) + 0.5) / len(count)
    figure = Figure(figsize=(4.2, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(centres, accuracy, width=0.9 / len(count), color=TRAIN_COLOR)
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="as right as confident")
    upper.legend(frameon=False, loc="upper left")
    upper.set(ylabel="Accuracy", ylim=(0, 1), title=f"Expected calibration error {ece:.3f}")
    lower.bar(centres, count, width=0.9 / len(count), color=QUIET_COLOR)
    lower.set(xlabel="Confidence", ylabel="Images", xlim=(0, 1))
    return figure


def save(figure, path: Path) -> None:
    """Write a figure as PNG."""
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def save_figures(folder: Path, name: str, metrics: dict, class_names: Sequence[str]) -> None:
    """NAME_confusion_matrix.png and NAME_calibration.png of an evaluation's metrics, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save(confusion_matrix(metrics["confusion_matrix"], class_names), folder / f"{name}_confusion_matrix.png")
    save(calibration(metrics["calibration"], metrics["ece"]), folder / f"{name}_calibration.png")


def precision_recall_curves(evaluations: Mapping[str, dict]):
    """Precision over recall of each evaluation of a detector."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, metrics in evaluations.items():
        reached = np.asarray(metrics["curve"]["precision"]) > 0
        recall, precision = (np.asarray(metrics["curve"][key])[reached] for key in ("recall", "precision"))
        axes.plot(recall, precision, label=f"{name}: AP50 {100 * metrics['ap50']:.1f} %")
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def save_detection_figures(folder: Path, name: str, metrics: dict) -> None:
    """NAME_precision_recall.png of a detector's evaluation, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save(precision_recall_curves({name: metrics}), folder / f"{name}_precision_recall.png")


def draw_boxes(image: np.ndarray, right: np.ndarray, wrong: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """The picture RGB uint8 [H, W, 3] with boxes [*, 4] over it: right green, wrong red, missed yellow."""
    image = np.ascontiguousarray(image)
    thickness = max(1, round(max(image.shape[:2]) / 500))
    for boxes, color in ((missed, MISSED_COLOR), (wrong, WRONG_COLOR), (right, RIGHT_COLOR)):
        for x1, y1, x2, y2 in np.rint(boxes).astype(int).tolist():
            cv2.rectangle(image, (x1, y1), (x2, y2), color, thickness)
    return image
