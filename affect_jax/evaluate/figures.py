"""Figures of a run and of its predictions, as matplotlib Figures without any state of pyplot's."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

TRAIN_COLOR, VAL_COLOR, QUIET_COLOR = "#4878a8", "#d1605e", "#888888"
RIGHT_COLOR, WRONG_COLOR, MISSED_COLOR = (60, 220, 90), (240, 60, 60), (250, 210, 50)
SCORE_TITLES = {"accuracy": "Accuracy, %", "ap50": "AP50, %"}


def learning_curves(history: Sequence[dict], selected_step: int | None, score: str = "accuracy"):
    """Loss and score of train and val over epochs, as far as recorded; a line marks the selected checkpoint."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, title, factor) in zip(
        figure.subplots(1, 2), (("loss", "Loss", 1), (score, SCORE_TITLES[score], 100)), strict=True
    ):
        for split, color in (("train", TRAIN_COLOR), ("val", VAL_COLOR)):
            records = [record for record in history if f"{split}/{name}" in record]
            if not records:
                continue
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
    axes.legend(frameon=False, loc="lower left")
    return figure


def save_detection_figures(folder: Path, name: str, metrics: dict) -> None:
    """NAME_precision_recall.png of a detector's evaluation, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    precision_recall_curves({name: metrics}).savefig(folder / f"{name}_precision_recall.png", dpi=120)


def draw_boxes(image: np.ndarray, right: np.ndarray, wrong: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """The picture RGB uint8 [H, W, 3] with boxes [*, 4] over it: right green, wrong red, missed yellow."""
    image = np.ascontiguousarray(image)
    thickness = max(1, round(max(image.shape[:2]) / 500))
    for boxes, color in ((missed, MISSED_COLOR), (wrong, WRONG_COLOR), (right, RIGHT_COLOR)):
        for x1, y1, x2, y2 in np.rint(boxes).astype(int).tolist():
            cv2.rectangle(image, (x1, y1), (x2, y2), color, thickness)
    return image
