"""Figures of a model's metrics, as matplotlib Figures that do not use pyplot's state."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

ACCURACY_COLOR, COUNT_COLOR = "#4878a8", "#888888"
RIGHT_COLOR, WRONG_COLOR, MISSED_COLOR = (60, 220, 90), (240, 60, 60), (250, 210, 50)


def confusion_matrix(counts: Sequence[Sequence[int]], class_names: Sequence[str]):
    """Plot counts [K, K], one true class per row, colored by their share of the row."""
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


def calibration(bins: Mapping[str, Sequence[float]], ece: float):
    """Plot accuracy over confidence by bin, with the diagonal of perfect calibration, and the counts below."""
    from matplotlib.figure import Figure

    accuracy, count = (np.asarray(bins[key]) for key in ("accuracy", "count"))
    centers = (np.arange(len(count)) + 0.5) / len(count)
    figure = Figure(figsize=(4.2, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(centers, accuracy, width=0.9 / len(count), color=ACCURACY_COLOR)
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="perfect calibration")
    figure.legend(frameon=False, loc="outside lower center")  # inside it would cover a bar
    upper.set(ylabel="Accuracy", ylim=(0, 1), title=f"Expected calibration error {ece:.3f}")
    lower.bar(centers, count, width=0.9 / len(count), color=COUNT_COLOR)
    lower.set(xlabel="Confidence", ylabel="Images", xlim=(0, 1))
    return figure


def precision_recall_curves(evaluations: Mapping[str, Mapping]):
    """Plot precision over recall for each evaluation of a detector, from the metrics of detection_metrics."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, metrics in evaluations.items():
        reached = np.asarray(metrics["curve"]["precision"]) > 0
        recall, precision = (np.asarray(metrics["curve"][key])[reached] for key in ("recall", "precision"))
        axes.plot(recall, precision, label=f"{name}: AP50 {metrics['ap50']:.1%}")
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def draw_boxes(image: np.ndarray, right: np.ndarray, wrong: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """Return the image, uint8 [H, W, 3] RGB, with boxes [*, 4] drawn: right ones green, wrong red, missed yellow."""
    image = np.ascontiguousarray(image)
    thickness = max(1, round(max(image.shape[:2]) / 500))
    for boxes, color in ((missed, MISSED_COLOR), (wrong, WRONG_COLOR), (right, RIGHT_COLOR)):
        for x1, y1, x2, y2 in np.rint(boxes).astype(int).tolist():
            cv2.rectangle(image, (x1, y1), (x2, y2), color, thickness)
    return image
