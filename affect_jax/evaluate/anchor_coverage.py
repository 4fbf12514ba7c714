"""Coverage of boxes by the anchors of a detector. N boxes."""

import itertools
from collections.abc import Sequence

import numpy as np

from affect_jax.evaluate.detection import HEIGHT_EDGES, height_group
from affect_jax.ops.anchors import cell_anchors
from affect_jax.ops.boxes import paired_iou


def best_anchor_iou(
    boxes: np.ndarray,
    image_size: tuple[int, int],
    strides: Sequence[int],
    anchor_sizes: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float],
) -> np.ndarray:
    """Return the IoU [N] of each box [N, 4] with its best anchor, in images of image_size (H, W).

    A level has H / stride x W / stride cells, rounded up. As in the network, its anchors are H and W divided by these
    numbers apart, rounded down. Of all anchors of one shape, the anchor nearest to the box, in x and in y, has the
    highest IoU.
    """
    width_height = np.array(image_size[::-1])
    best = np.zeros(len(boxes))
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    for stride, sizes in zip(strides, anchor_sizes, strict=True):
        cells = -(-width_height // stride)
        distance = width_height // cells
        nearest = np.clip(np.rint(centers / distance), 0, cells - 1) * distance
        for anchor in np.asarray(cell_anchors(sizes, aspect_ratios), np.float64):
            candidates = np.concatenate([nearest, nearest], axis=1) + anchor
            best = np.maximum(best, paired_iou(boxes, candidates))
    return best


def coverage_by_height(boxes: np.ndarray, best: np.ndarray) -> dict[str, dict[str, float]]:
    """Return for each height group of boxes [N, 4] their number and shares and mean of best_anchor_iou [N].

    "at_50" and "at_70" are the shares of boxes with an IoU of at least 0.5 and 0.7.
    """
    heights = boxes[:, 3] - boxes[:, 1]
    groups = {}
    for low, high in [*itertools.pairwise(HEIGHT_EDGES), (0, np.inf)]:
        iou = best[(heights >= low) & (heights < high)]
        if len(iou):
            at_50, at_70 = (float(np.mean(iou >= thresh)) for thresh in (0.5, 0.7))
            name = "all" if (low, high) == (0, np.inf) else height_group(low, high)
            groups[name] = {"boxes": len(iou), "at_50": at_50, "at_70": at_70, "mean_best": float(np.mean(iou))}
    return groups
