"""Figures of a run and of its predictions, as matplotlib Figures without any state of pyplot's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

TRAIN_COLOR, VAL_COLOR, QUIET_COLOR = "#4878a8", "#d1605e", "#888888"


def learning_curves(history: Sequence[dict], selected_step: int | None):
    """Loss and accuracy of train and val over epochs; a line marks the checkpoint that was selected."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, title, factor) in zip(
        figure.subplots(1, 2), (("loss", "Loss", 1), ("accuracy", "Accuracy, %", 100)), strict=True
    ):
        for split, color in (("train", TRAIN_COLOR), ("val", VAL_COLOR)):
            records = [record for record in history if f"{split}/{name}" in record]
            epochs = [record["epoch"] for record in records]
            values = [factor * record[f"{split}/{name}"] for record in records]
            axes.plot(epochs, values, color=color, label=split, marker="o" if split == "val" else None, markersize=3)
        for record in history:
            if record["step"] == selected_step and "val/loss" in record:
                axes.axvline(record["epoch"], color=QUIET_COLOR, linestyle=":", label="selected")
        axes.set(title=title, xlabel="Epoch")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def confusion_matrix(counts: Sequence[Sequence[int]], class_names: Sequence[str]):
    """Counts [K, K], rows the truth, coloured by the share of their row."""
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

    confidence, accuracy, count = (np.asarray(bins[key]) for key in ("confidence", "accuracy", "count"))
    centres = (np.arange(len(count)) + 0.5) / len(count)
    figure = Figure(figsize=(4.2, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=QUIET_COLOR, linestyle="--", linewidth=1)
    filled = count > 0
    upper.bar(centres[filled], accuracy[filled], width=0.9 / len(count), color=TRAIN_COLOR)
    upper.plot(confidence[filled], accuracy[filled], color=VAL_COLOR, marker="o", markersize=3, linewidth=1)
    upper.set(ylabel="Accuracy", ylim=(0, 1), title=f"Expected calibration error {ece:.3f}")
    lower.bar(centres, count, width=0.9 / len(count), color=QUIET_COLOR)
    lower.set(xlabel="Confidence", ylabel="Images", xlim=(0, 1))
    return figure


def save_figures(folder: Path, name: str, metrics: dict, class_names: Sequence[str]) -> None:
    """NAME_confusion_matrix.png and NAME_calibration.png of an evaluation's metrics, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    confusion_matrix(metrics["confusion_matrix"], class_names).savefig(folder / f"{name}_confusion_matrix.png", dpi=120)
    calibration(metrics["calibration"], metrics["ece"]).savefig(folder / f"{name}_calibration.png", dpi=120)
