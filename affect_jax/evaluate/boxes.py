"""Boxes of images as NumPy arrays: ground truth, detections and their overlap.

N ground-truth boxes of an image, D detections of an image. Boxes are [x1, y1, x2, y2] in pixels of the image.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Truths = Sequence[Mapping[str, np.ndarray]]
"""Ground truth of each image: boxes float32 [N, 4], label int [N] and ignore bool [N]."""
Detections = Sequence[Mapping[str, np.ndarray]]
"""Detections of each image, in the order of Truths: boxes [D, 4], scores [D] and label [D]."""


def box_intersection(a: np.ndarray, b: np.ndarray, border: float = 0.0) -> np.ndarray:
    """Return the areas [D, N] that boxes [D, 4] and [N, 4] share; `border` is added to widths and heights."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.maximum(bottom_right - top_left + border, 0), axis=2)


def box_iou(a: np.ndarray, b: np.ndarray, border: float = 0.0) -> np.ndarray:
    """Return the IoU [D, N] of boxes [D, 4] and [N, 4].

    `border` is added to widths and heights: 1 for tools that count the last pixel as inside.
    """
    intersection = box_intersection(a, b, border)
    area_a, area_b = (np.prod(boxes[:, 2:] - boxes[:, :2] + border, axis=1) for boxes in (a, b))
    union = area_a[:, None] + area_b - intersection
    return intersection / np.where(union > 0, union, 1)
