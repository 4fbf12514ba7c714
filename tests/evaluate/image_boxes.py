"""Ground truth and detections of an image, made from lists."""

import numpy as np


def truth(boxes, label=None, ignore=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    label = np.zeros(len(boxes), np.int32) if label is None else np.array(label, np.int32)
    return {
        "boxes": boxes,
        "label": label,
        "ignore": np.zeros(len(boxes), bool) if ignore is None else np.array(ignore, bool),
    }


def found(boxes, scores, label=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    label = np.zeros(len(boxes), np.int32) if label is None else np.array(label, np.int32)
    return {"boxes": boxes, "scores": np.array(scores, np.float32), "label": label}
