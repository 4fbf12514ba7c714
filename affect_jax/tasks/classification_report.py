"""Metrics, figures and images of a classifier on the report pages.

N images, K classes.
"""

from collections.abc import Mapping

import numpy as np

from affect_jax.data.pipeline import InMemorySplit
from affect_jax.evaluate import figures
from affect_jax.evaluate.classification import most_confident_mistakes
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

MISTAKES_SHOWN = 24
CONFUSION_NOTE = (
    "Rows of the matrix are true classes, and colors show shares of a row. Where a bar of the calibration plot is above"
    " the dashed line, the network is more often correct than its confidence says; where it is below, less often."
)
SAMPLES_NOTE = "Left: the original image. Right: the same image as augmented by the training step."


def evaluated_images(metrics: Metrics) -> tuple[str, tuple]:
    """Return a description of the images of an evaluation, and the number of images of each class."""
    supports = tuple((name, row["support"]) for name, row in metrics["per_class"].items())
    return f"{metrics['num_examples']:,} images of {len(supports)} classes", supports


def absent_classes(metrics: Metrics) -> str:
    """Return the names of the classes that macro-F1 leaves out."""
    return ", ".join(metrics.get("absent_classes", []))


def confidence_thresholds(metrics: Metrics) -> dict[str, Metrics]:
    """Return coverage and accuracy by confidence threshold, from coverage_accuracy; metrics of older runs have none."""
    found = metrics.get("coverage", {"confidence": [], "coverage": [], "accuracy": []})
    rows = zip(found["coverage"], found["accuracy"], strict=True)
    return {
        f"{confidence:.0%}": {"coverage": coverage, "accuracy": accuracy}
        for confidence, (coverage, accuracy) in zip(found["confidence"], rows, strict=True)
    }


PRESENTATION = Presentation(
    columns=(
        number_column("Accuracy", "accuracy", ".2%"),
        interval_column("accuracy_ci95"),
        number_column("Macro-F1", "macro_f1", ".2%", "unweighted mean of the F1 of the classes"),
        Column("Absent classes", absent_classes, "not in the labels or the predictions, and left out of macro-F1"),
        number_column("NLL", "nll", ".4f", "mean negative log-likelihood"),
        number_column("ECE", "ece", ".4f", "expected calibration error"),
        number_column("CCC valence", "ccc_valence", ".3f", "concordance correlation coefficient"),
        number_column("CCC arousal", "ccc_arousal", ".3f"),
        number_column("RMSE valence", "rmse_valence", ".3f", "root mean squared error"),
        number_column("RMSE arousal", "rmse_arousal", ".3f"),
        number_column("Images", "num_examples", ",d"),
        number_column("TTA", "tta", "s", "test-time augmentation"),
        number_column("Checkpoint", "checkpoint_step", ",d", "training step of the checkpoint"),
    ),
    breakdowns=(
        Breakdown(
            "Class",
            lambda metrics: metrics["per_class"],
            (
                number_column("Recall", "recall", ".1%"),
                number_column("Precision", "precision", ".1%"),
                number_column("F1", "f1", ".1%"),
                number_column("Images", "support", ",d"),
            ),
        ),
        Breakdown(
            "Confidence threshold",
            confidence_thresholds,
            (number_column("Coverage", "coverage", ".1%"), number_column("Accuracy", "accuracy", ".1%")),
            "Predictions whose confidence (their largest probability) reaches a threshold: their share of all images"
            " (coverage), and the accuracy on these images.",
        ),
    ),
    curves_note="train: means over the steps since the previous point, with augmentation and dropout; the loss is the"
    " one that is minimized. val: the whole split, without augmentation; the loss is the mean negative"
    " log-likelihood.",
    score_titles={"accuracy": "Accuracy, %", "macro_f1": "Macro-F1, %"},
    paired_columns=(
        number_column("Only this run correct", "only_a", ",d"),
        number_column("Only the first run correct", "only_b", ",d"),
        number_column("p-value", "p_value", ".2g"),
    ),
    paired_note="The p-value is that of McNemar's exact test, on the images that only one of the two runs classifies"
    " correctly. It is not corrected for the number of runs.",
    images=evaluated_images,
)


def sections(
    evaluations: Mapping[str, Metrics],
    shown: str,
    split: InMemorySplit,
    probs: np.ndarray,
    samples: np.ndarray,
) -> list[Section]:
    """Return the sections about a classifier's predictions for the page of its run.

    evaluations: name -> classification_metrics. The split of N images and probs [N, K] belong to the evaluation
    `shown`. samples: uint8 [rows, columns, H, W, C], each row an image followed by augmented versions.
    """
    return [
        *(evaluation_section(name, metrics) for name, metrics in evaluations.items()),
        *mistakes_sections(shown, split, probs),
        samples_section(samples),
    ]


def evaluation_section(name: str, metrics: Metrics) -> Section:
    """Return the confusion matrix, calibration and tables by class and by confidence of an evaluation."""
    matrix = figures.confusion_matrix(metrics["confusion_matrix"], tuple(metrics["per_class"]))
    calibration = figures.calibration(metrics["calibration"], metrics["ece"])
    blocks = [
        Note(CONFUSION_NOTE),
        Figure(matrix, "confusion_matrix"),
        Figure(calibration, "calibration"),
        *breakdown_blocks(metrics, PRESENTATION.breakdowns),
    ]
    return Section("Confusion and calibration", blocks, name)


def mistakes_sections(shown: str, split: InMemorySplit, probs: np.ndarray) -> list[Section]:
    """Return a section of the most confident mistakes, or no section if there are no mistakes."""
    mistakes, names, labels = [], split.class_names, split.labels()
    indices = most_confident_mistakes(probs, labels, MISTAKES_SHOWN)
    for index, name in zip(indices, split.image_names(indices), strict=True):
        caption = f"{names[labels[index]]} classified as {names[probs[index].argmax()]}, {probs[index].max():.1%}"
        mistakes.append(Image(split.arrays["image"][index], caption, source=name))
    return [Section("Most confident mistakes", [Images(mistakes, "faces")], shown)] if mistakes else []


def samples_section(samples: np.ndarray) -> Section:
    """Return a sheet of images and their augmented versions, uint8 [rows, columns, H, W, C]."""
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in samples])
    return Section("What the network sees", [Note(SAMPLES_NOTE), Images([Image(sheet)], "sheet")])
