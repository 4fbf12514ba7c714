"""The IoU of two boxes, written without arrays of boxes."""

import numpy as np


def iou(a, b):
    """Return the IoU of boxes a and b [4], 0 if neither has an area."""
    shared = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    union = np.prod(np.maximum(a[2:] - a[:2], 0)) + np.prod(np.maximum(b[2:] - b[:2], 0)) - shared
    return shared / union if union > 0 else 0.0
