"""Metrics, figures and images of a detector on the report pages."""

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from affect_jax.evaluate import figures
from affect_jax.evaluate.boxes import Detections, Truths
from affect_jax.evaluate.detection import mistakes_of, worst_images
from affect_jax.tasks.sections import (
    Breakdown,
    Column,
    Figure,
    Image,
    Images,
    Metrics,
    Note,
    Presentation,
    Section,
    breakdown_blocks,
    interval_column,
    number_column,
)

IMAGES_SHOWN = 12
IMAGE_SIDE = 900
"""Longest side of an image on the page, in pixels."""
BOXES_NOTE = (
    "Detections with a score of at least 0.5 are green if correct and red if false. Ground-truth boxes without a"
    " detection are yellow. Ignored boxes are not drawn."
)


def evaluated_images(metrics: Metrics) -> tuple[str, tuple]:
    """Return a description of the images of an evaluation, and the number of ignored boxes and the classes."""
    text = f"{metrics['num_boxes']:,} boxes in {metrics['num_pictures']:,} images"
    return f"{metrics['split']}: {text}", (metrics["num_ignored"], *metrics["per_class"])


def repeated_text(metrics: Metrics) -> str:
    """Return the number of repeated boxes, or "" for metrics of an older version."""
    repeated = metrics.get("repeated")
    return f"{repeated['repeated']} of {repeated['boxes']}" if repeated else ""


def several_classes(metrics: Metrics) -> dict[str, Metrics]:
    """Return the AP50 of each class; nothing for a single class."""
    classes = metrics["per_class"]
    return {name: {"ap50": ap50} for name, ap50 in classes.items()} if len(classes) > 1 else {}


REPEATED_COLUMN = Column(
    "Repeated",
    repeated_text,
    "ground-truth boxes that have two or more detections with a score of at least 0.5, among those that overlap no"
    " other; a detection belongs to a box if its center is in it, or if they share more than half of the smaller area",
)
PRESENTATION = Presentation(
    columns=(
        number_column("AP50", "ap50", ".2%", "area under the precision-recall curve at IoU 0.5"),
        interval_column("ap50_ci95"),
        number_column("AP50 (tools)", "ap50_tool", ".2%", "AP50 as the tools of WIDER FACE and DARK FACE compute it"),
        number_column("COCO AP", "coco_ap", ".2%", "mean AP over IoU thresholds from 0.5 to 0.95"),
        number_column("Recall", "recall", ".2%", "share of ground-truth boxes detected, at score 0.5 and IoU 0.5"),
        number_column("Precision", "precision", ".2%", "share of detections that are correct, at the same thresholds"),
        number_column(
            "Recall at P 90", "recall_at_precision_90", ".2%", "highest recall at a precision of at least 0.9"
        ),
        number_column(
            "Recall at P 80", "recall_at_precision_80", ".2%", "highest recall at a precision of at least 0.8"
        ),
        REPEATED_COLUMN,
        number_column("Boxes", "num_boxes", ",d"),
        number_column("Images", "num_pictures", ",d"),
        number_column("Checkpoint", "checkpoint_step", ",d", "training step of the checkpoint"),
    ),
    breakdowns=(
        Breakdown(
            "Height",
            lambda metrics: metrics["recall_by_height"],
            (
                number_column("Boxes", "boxes", ",d"),
                number_column("Recall", "recall", ".1%"),
                number_column("Recall at score 0.5", "recall_at_score_50", ".1%"),
            ),
        ),
        Breakdown("Class", several_classes, (number_column("AP50", "ap50", ".1%"),)),
    ),
    curves_note="train: means over the steps since the previous point, with augmentation. val: the whole split, without"
    " augmentation. The loss is the sum of the network's losses.",
    score_titles={"ap50": "AP50, %", "coco_ap": "COCO AP, %"},
    paired_columns=(),
    paired_note="The interval is a bootstrap over images, with the same samples for both runs. If it does not contain"
    " 0, the two runs differ.",
    images=evaluated_images,
)


def sections(
    evaluations: Mapping[str, Metrics],
    shown: str,
    truths: Truths,
    detections: Detections,
    read_image: Callable[[int], tuple[np.ndarray, str]],
) -> list[Section]:
    """Return the sections about a detector's predictions for the page of its run.

    evaluations: name -> detection_metrics. truths and detections, as detection_metrics takes them, belong to the
    evaluation `shown`; read_image(index) returns an image of it, uint8 [H, W, 3], and the image's name.
    """
    curves = figures.precision_recall_curves(evaluations)
    found = [Section("Precision and recall", [Figure(curves, "precision_recall")])]
    for name, metrics in evaluations.items():
        found.append(Section("Recall by height", breakdown_blocks(metrics, PRESENTATION.breakdowns), name))
    return found + mistakes_sections(shown, truths, detections, read_image)


def mistakes_sections(
    shown: str, truths: Truths, detections: Detections, read_image: Callable[[int], tuple[np.ndarray, str]]
) -> list[Section]:
    """Return a section of the images with the most mistakes, or no section if there are no mistakes."""
    images = []
    for index in worst_images(truths, detections, IMAGES_SHOWN):
        pixels, name = read_image(index)
        images.append(Image(draw_mistakes(pixels, truths[index], detections[index]), source=name))
    return (
        [Section("Images with the most mistakes", [Note(BOXES_NOTE), Images(images, "photos")], shown)]
        if images
        else []
    )


def draw_mistakes(image: np.ndarray, truth: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the image, at most IMAGE_SIDE wide and high, with correct, false and missed boxes drawn."""
    boxes = mistakes_of(truth, found)
    scale = min(1.0, IMAGE_SIDE / max(image.shape[:2]))
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return figures.draw_boxes(image, *(boxes[kind] * scale for kind in ("right", "wrong", "missed")))
