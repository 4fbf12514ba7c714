"""Metrics of a classifier's predictions, in NumPy and scikit-learn.

N examples, K classes, M bins. probs float [N, K] sum to 1 in each row; labels int [N] in [0, K).
"""

from collections.abc import Sequence

import numpy as np

CALIBRATION_BINS = 15
CONFIDENCES = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Thresholds of coverage_accuracy on the largest probability."""
Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def classification_metrics(probs: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict:
    """Return all metrics of the predictions of a split, JSON-able.

    num_examples, accuracy, accuracy_ci95 [low, high], macro_f1, absent_classes, nll (natural logarithm), ece, per_class
    {name: {precision, recall, f1, support}}, confusion_matrix [K][K] (rows are true classes), calibration {confidence
    [M], accuracy [M], count [M]}, coverage (from coverage_accuracy). A ratio without a denominator, such as the
    precision of a class that is never predicted, is 0, as in scikit-learn. macro_f1 is the mean over the classes that
    occur in the labels or the predictions, scikit-learn's default; absent_classes names the others. ValueError for
    invalid predictions.
    """
    from sklearn import metrics

    check_predictions(probs, labels, class_names)
    predicted = probs.argmax(axis=1)
    every = np.arange(len(class_names))
    table = metrics.precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0.0)
    present = np.isin(every, np.concatenate([labels, predicted]))
    correct = int((predicted == labels).sum())
    return {
        "num_examples": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_ci95": list(wilson_interval(correct, len(labels))),
        "macro_f1": float(table[2][present].mean()),
        "absent_classes": [name for name, occurs in zip(class_names, present, strict=True) if not occurs],
        "nll": float(-np.log(np.maximum(probs[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)).mean()),
        "ece": expected_calibration_error(probs, labels),
        "per_class": {
            name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
            for name, precision, recall, f1, support in zip(class_names, *table, strict=True)
        },
        "confusion_matrix": metrics.confusion_matrix(labels, predicted, labels=every).tolist(),
        "calibration": {
            name: values.tolist()
            for name, values in zip(("confidence", "accuracy", "count"), calibration_bins(probs, labels), strict=True)
        },
        "coverage": coverage_accuracy(probs, labels),
    }


def valence_arousal_metrics(predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Return ccc_valence, ccc_arousal, rmse_valence and rmse_arousal of predicted and targets [N, 2].

    CCC is the concordance correlation coefficient (Lin 1989) with moments over N; it is 0 if both are constant.
    """
    # float64: the variance of a constant is then exactly 0
    predicted, targets = np.asarray(predicted, np.float64), np.asarray(targets, np.float64)
    means, variances = (np.stack([f(x, axis=0) for x in (predicted, targets)]) for f in (np.mean, np.var))
    covariance = ((predicted - means[0]) * (targets - means[1])).mean(axis=0)
    scale = variances.sum(axis=0) + (means[0] - means[1]) ** 2
    ccc = np.divide(2 * covariance, scale, out=np.zeros_like(scale), where=scale > 0)
    rmse = np.sqrt(((predicted - targets) ** 2).mean(axis=0))
    names = ("ccc_valence", "ccc_arousal", "rmse_valence", "rmse_arousal")
    return dict(zip(names, map(float, (*ccc, *rmse)), strict=True))


def check_predictions(probs: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Raise ValueError if probs and labels are not valid predictions of these classes."""
    if len(labels) == 0:
        raise ValueError("no predictions: the split is empty")
    if probs.shape != (len(labels), len(class_names)):
        raise ValueError(f"probs are {probs.shape}; {len(labels)} labels and {len(class_names)} classes need [N, K]")
    bad = np.flatnonzero(~np.isfinite(probs).all(axis=1) | (np.abs(probs.sum(axis=1) - 1) > 1e-3))
    if len(bad):
        raise ValueError(f"{len(bad)} rows of probs are not distributions, the first is row {bad[0]}: {probs[bad[0]]}")
    outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(outside):
        raise ValueError(f"label {labels[outside[0]]} of row {outside[0]} is none of the {len(class_names)} classes")


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927), which stays within [0, 1]."""
    from scipy.stats import binomtest

    low, high = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(low), float(high)


def calibration_bins(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (confidence [M], accuracy [M], count [M]) of CALIBRATION_BINS equal bins of the largest probability.

    Confidence and accuracy are means. A bin includes its upper edge; an empty bin has zeros.
    """
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    total = np.maximum(count, 1)
    return (
        np.bincount(bins, confidence, CALIBRATION_BINS) / total,
        np.bincount(bins, correct, CALIBRATION_BINS) / total,
        count,
    )


def expected_calibration_error(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of |confidence - accuracy| over bins, weighted by count (Guo et al. 2017, arXiv:1706.04599)."""
    confidence, accuracy, count = calibration_bins(probs, labels)
    return float((count * np.abs(confidence - accuracy)).sum() / count.sum())


def coverage_accuracy(
    probs: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] = CONFIDENCES
) -> dict[str, list[float]]:
    """Return {confidence [T], coverage [T], accuracy [T]} for thresholds on the largest probability.

    coverage is the share of examples that reach the threshold, accuracy is the accuracy on them, 0 if there are none:
    the risk-coverage curve of selective classification (Geifman and El-Yaniv 2017, arXiv:1705.08500) at T points.
    """
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    covered = confidence >= np.asarray(thresholds)[:, None]
    accuracy = (covered & correct).sum(axis=1) / np.maximum(covered.sum(axis=1), 1)
    return {"confidence": list(thresholds), "coverage": covered.mean(axis=1).tolist(), "accuracy": accuracy.tolist()}


def most_confident_mistakes(probs: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of up to `count` wrong predictions, the most confident first."""
    wrong = np.flatnonzero(probs.argmax(axis=1) != labels)
    return wrong[np.argsort(-probs[wrong].max(axis=1), kind="stable")][:count]


def paired_test(correct_a: np.ndarray, correct_b: np.ndarray) -> dict[str, float]:
    """Compare two classifiers on the same images: correct_a, correct_b bool [N].

    only_a and only_b count the images that only one of them classifies correctly. p_value is that of McNemar's exact
    two-sided test (1947). difference is accuracy a minus accuracy b, and difference_ci95 its 95 % interval for paired
    shares (Agresti and Min 2005): the normal interval after half an image is added to each of the four outcomes.
    """
    from scipy.stats import binomtest

    if correct_a.shape != correct_b.shape or correct_a.ndim != 1 or len(correct_a) == 0:
        raise ValueError(
            f"paired predictions are {correct_a.shape} and {correct_b.shape}; both must be [N], of the same images"
        )
    count, only_a, only_b = len(correct_a), int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    difference = (only_a - only_b) / count
    adjusted = (only_a - only_b) / (count + 2)
    half = Z95 * np.sqrt(only_a + only_b + 1 - (count + 2) * adjusted**2) / (count + 2)
    return {
        "only_a": only_a,
        "only_b": only_b,
        "p_value": float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0,
        "difference": difference,
        "difference_ci95": [float(max(adjusted - half, -1.0)), float(min(adjusted + half, 1.0))],
    }
