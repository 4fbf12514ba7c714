"""report.html: one page that stands alone, figures and pictures inside, the protocol beside the numbers."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from affect_jax.evaluate import figures, page
from affect_jax.evaluate.detection import mistakes_of

PICTURE_SIDE = 900
CURVES_NOTES = {
    "classification": "train: means over the updates since the last point, with augmentation and dropout, of what is"
    " minimized. val: the whole split as it is; its loss is the mean negative log likelihood.",
    "detection": "train: means over the updates since the last point, pictures changed as for training. val: the whole"
    " split as it is. The loss is the sum of the four: objectness, proposals' boxes, classes, boxes.",
}
CONFUSION_NOTE = (
    "Rows of the matrix are the truth, its colors are shares of a row. A bar of the calibration above the dashed line:"
    " the network is more often right than its confidence says; below: less often."
)


def write_report(
    path: str | Path,
    *,
    title: str,
    protocol: Mapping[str, str],
    history: Sequence[dict],
    evaluations: Mapping[str, dict],
    shown: str,
    mistakes: Sequence[dict],
    class_names: Sequence[str],
    config: Mapping,
    environment: Mapping[str, str],
    samples: np.ndarray,
) -> None:
    """Write the page of a run.

    history: the records of metrics.jsonl. evaluations: name -> classification_metrics with "tta" and "checkpoint_step".
    mistakes: {image uint8 [H, W, C], true, predicted, confidence, id} each, of the evaluation that is `shown`.
    samples: uint8 [rows, columns, H, W, C], a picture a row, first as it is and then as the network sees it.
    """
    parts = _opening(title, evaluations, "classification", protocol)
    if history:
        parts += _learning_curves(history, evaluations, "classification", "accuracy")
    for name, metrics in evaluations.items():
        parts += [
            f"<h2>Confusion and calibration: {escape(name)}</h2>",
            page.quiet(CONFUSION_NOTE),
            page.svg(figures.confusion_matrix(metrics["confusion_matrix"], class_names)),
            page.svg(figures.calibration(metrics["calibration"], metrics["ece"])),
            _class_table(metrics["per_class"]),
            _coverage_table(metrics["coverage"]) if "coverage" in metrics else "",  # younger than many a run
        ]
    if mistakes:
        parts += [f"<h2>Most confident mistakes: {escape(shown)}</h2>", _mistakes(mistakes)]
    parts += ["<h2>What the network sees</h2>", _samples(samples)]
    page.write_page(path, title, [*parts, page.details("Config", config), page.details("Environment", environment)])


def write_detection_report(
    path: str | Path,
    *,
    title: str,
    protocol: Mapping[str, str],
    history: Sequence[dict],
    evaluations: Mapping[str, dict],
    shown: str,
    pictures: Sequence[dict],
    config: Mapping,
    environment: Mapping[str, str],
) -> None:
    """Write the page of a detector's run.

    history: the records of metrics.jsonl. evaluations: name -> detection_metrics with "split" and "checkpoint_step".
    pictures: {image uint8 [H, W, 3], truth and found as detection_metrics takes them, id} each, of the evaluation that
    is `shown`.
    """
    parts = _opening(title, evaluations, "detection", protocol)
    if history:
        parts += _learning_curves(history, evaluations, "detection", "ap50")
    parts += ["<h2>Precision and recall</h2>", page.svg(figures.precision_recall_curves(evaluations))]
    for name, metrics in evaluations.items():
        parts += [f"<h2>Recall by height: {escape(name)}</h2>", _height_table(metrics["recall_by_height"])]
        if len(metrics["per_class"]) > 1:
            parts.append(_ap_table(metrics["per_class"]))
    if pictures:
        parts += [f"<h2>Pictures with most mistakes: {escape(shown)}</h2>", _boxed_pictures(pictures)]
    page.write_page(path, title, [*parts, page.details("Config", config), page.details("Environment", environment)])


def numbers_table(first: str, rows: Sequence[tuple[str, dict]], task: str) -> str:
    """The figures of evaluations, one a row: (its name in HTML, metrics); `first` heads the names."""
    cells = {title: [cell(metrics) for _, metrics in rows] for title, cell in COLUMNS[task].items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    body = zip((name for name, _ in rows), *cells.values(), strict=True)
    return page.table([first, *cells], [[name, *(cell or "–" for cell in row)] for name, *row in body])


def score_text(metrics: dict, task: str) -> str:
    """The score that an evaluation is known by, with its 95 % interval: "66.01% (64.44% to 67.54%)"."""
    score, interval = (cell(metrics) for cell in list(COLUMNS[task].values())[:2])
    return f"{score} ({interval})" if interval else score


def _number(name: str, form: str) -> Callable[[dict], str]:
    return lambda metrics: format(metrics[name], form) if name in metrics else ""


def _interval(name: str) -> Callable[[dict], str]:
    return lambda metrics: " to ".join(f"{end:.2%}" for end in metrics.get(name, ()))


COLUMNS: Mapping[str, Mapping[str, Callable[[dict], str]]] = {
    "classification": {
        "Accuracy": _number("accuracy", ".2%"),
        "95 % interval": _interval("accuracy_ci95"),
        "Macro-F1": _number("macro_f1", ".2%"),
        "NLL": _number("nll", ".4f"),
        "ECE": _number("ece", ".4f"),
        **{
            f"{title} {name}": _number(f"{title.lower()}_{name}", ".3f")
            for title in ("CCC", "RMSE")
            for name in ("valence", "arousal")
        },
        "Images": _number("num_examples", ",d"),
        "TTA": _number("tta", "s"),
        "Checkpoint": _number("checkpoint_step", ",d"),
    },
    "detection": {
        "AP50": _number("ap50", ".2%"),
        "95 % interval": _interval("ap50_ci95"),
        "AP50, tools": _number("ap50_tool", ".2%"),
        "COCO AP": _number("coco_ap", ".2%"),
        "Found": _number("accuracy", ".2%"),
        "Right": _number("precision", ".2%"),
        "Boxes": _number("num_boxes", ",d"),
        "Pictures": _number("num_pictures", ",d"),
        "Checkpoint": _number("checkpoint_step", ",d"),
    },
}
"""By task, the columns of a table of evaluations: title -> the cell of an evaluation's metrics, "" where it has none.

The first two are the score and its interval.
"""
NUMBERS_NOTES = {
    "classification": "Macro-F1 is the mean of the classes' F1, NLL the mean negative log likelihood, ECE the expected"
    " calibration error, TTA test-time augmentation; the checkpoint is named by the updates behind it.",
    "detection": "AP50 is the area under precision over recall at IoU 0.5, also by WIDER FACE's and DARK FACE's tools."
    " At score 0.5, Found is the share of boxes that are found, Right that of detections that are right. The checkpoint"
    " is named by the updates behind it.",
}
"""By task, what the columns mean."""


def _opening(title: str, evaluations: Mapping[str, dict], task: str, protocol: Mapping[str, str]) -> list[str]:
    parts = [f"<h1>{escape(title)}</h1>"]
    if evaluations:
        rows = [(f"<b>{escape(name)}</b>", metrics) for name, metrics in evaluations.items()]
        parts += [numbers_table("Evaluation", rows, task), page.quiet(NUMBERS_NOTES[task])]
    return [*parts, page.pairs(protocol)]


def _learning_curves(history: Sequence[dict], evaluations: Mapping[str, dict], task: str, score: str) -> list[str]:
    selected = next((metrics["checkpoint_step"] for metrics in evaluations.values()), None)
    curves = page.svg(figures.learning_curves(history, selected, score))
    return ["<h2>Learning curves</h2>", curves, page.quiet(CURVES_NOTES[task])]


def _class_table(per_class: Mapping[str, dict]) -> str:
    rows = [
        [escape(name), *(f"{row[key]:.1%}" for key in ("recall", "precision", "f1")), f"{row['support']:,}"]
        for name, row in per_class.items()
    ]
    return page.table(["Class", "Recall", "Precision", "F1", "Images"], rows)


def _ap_table(per_class: Mapping[str, float]) -> str:
    return page.table(["Class", "AP50"], [[escape(name), f"{ap:.1%}"] for name, ap in per_class.items()])


def _height_table(groups: Mapping[str, dict]) -> str:
    rows = [
        [escape(name), f"{row['boxes']:,}", f"{row['recall']:.1%}", f"{row['recall_at_score_50']:.1%}"]
        for name, row in groups.items()
    ]
    return page.table(["Height", "Boxes", "Found", "Found at score 0.5"], rows)


def _boxed_pictures(pictures: Sequence[dict]) -> str:
    shown = "".join(
        f"<figure>{_boxed_picture(one)}<figcaption>{escape(one['id'])}</figcaption></figure>" for one in pictures
    )
    legend = "At score 0.5: green boxes are right, red ones wrong; yellow ones are missed, and ignored ones not drawn."
    return f'{page.quiet(legend)}<div class="scenes">{shown}</div>'


def _boxed_picture(picture: dict) -> str:
    image, boxes = picture["image"], mistakes_of(picture["truth"], picture["found"])
    scale = min(1.0, PICTURE_SIDE / max(image.shape[:2]))
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return page.jpeg(figures.draw_boxes(image, *(boxes[kind] * scale for kind in ("right", "wrong", "missed"))))


def _coverage_table(coverage: Mapping[str, Sequence[float]]) -> str:
    rows = [
        [f"{confidence:.0%}", f"{named:.1%}", f"{right:.1%}"]
        for confidence, named, right in zip(*coverage.values(), strict=True)
    ]
    return page.table(["Named from this probability on", "Share named", "Right of these"], rows)


def _mistakes(mistakes: Sequence[dict]) -> str:
    faces = "".join(
        f"<figure>{page.png(mistake['image'])}<figcaption>{escape(mistake['true'])} taken for "
        f"<b>{escape(mistake['predicted'])}</b><br>{mistake['confidence']:.1%}"
        f' <span class="quiet">{escape(mistake["id"])}</span></figcaption></figure>'
        for mistake in mistakes
    )
    return f'<div class="faces">{faces}</div>'


def _samples(samples: np.ndarray) -> str:
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in samples])
    picture = page.png(sheet, "width: 100%; max-width: 40rem")
    return page.quiet("Left as it is, then as the training step changes it.") + picture
