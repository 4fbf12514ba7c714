"""Boxes without another box nearby. Every detection near such a box is a detection of its object.

N boxes of an image, M other boxes of the same image. `truths` and `detections` are those of affect_jax.evaluate.boxes.
"""

from collections.abc import Mapping

import numpy as np

from affect_jax.evaluate.boxes import Detections, Truths, box_intersection

SAME_FACE = 0.5
"""Share of the smaller of two boxes above which they show the same object."""


def same_object(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which of boxes [N, 4] and others [M, 4] show the same object, bool [N, M].

    They do if the center of the other is in the box, or if they share more than SAME_FACE of the smaller area.
    """
    centers = (others[:, :2] + others[:, 2:]) / 2
    inside = ((centers >= boxes[:, None, :2]) & (centers < boxes[:, None, 2:])).all(axis=2)
    areas, other_areas = (np.prod(some[:, 2:] - some[:, :2], axis=1) for some in (boxes, others))
    return inside | (box_intersection(boxes, others) > SAME_FACE * np.minimum(areas[:, None], other_areas))


def single_boxes(truth: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the indices of the single boxes of an image.

    They are not ignored, and show the same object as no other box: see same_object.
    """
    near = same_object(truth["boxes"], truth["boxes"])
    near |= near.T
    return np.flatnonzero((near.sum(axis=1) == 1) & ~truth["ignore"])


def largest_single_boxes(truths: Truths, count: int) -> list[tuple[int, int]]:
    """Return (image, position) of the `count` single boxes of the largest shorter side, largest first."""
    single = [(image, int(at)) for image, truth in enumerate(truths) for at in single_boxes(truth)]
    sides = [np.min(np.diff(truths[image]["boxes"][at].reshape(2, 2), axis=0)) for image, at in single]
    return [single[index] for index in np.argsort(-np.array(sides), kind="stable")[:count]]


def count_repeated(truths: Truths, detections: Detections, score_thresh: float) -> dict[str, int]:
    """Return the number of single boxes, and how many have two or more detections with at least score_thresh."""
    counts = []
    for truth, found in zip(truths, detections, strict=True):
        boxes = truth["boxes"][single_boxes(truth)]
        counts.append(same_object(boxes, found["boxes"][found["scores"] >= score_thresh]).sum(axis=1))
    counts = np.concatenate(counts)
    return {"boxes": len(counts), "repeated": int(np.sum(counts > 1))}
