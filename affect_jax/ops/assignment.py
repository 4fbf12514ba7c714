"""Assignment of ground-truth boxes to the cells of detectors with one anchor per cell.

N ground-truth boxes (padded), A cells of all levels.
"""

import jax
import jax.numpy as jnp
from jax import lax

from affect_jax.ops.boxes import box_iou
from affect_jax.ops.matching import BACKGROUND, IGNORED, GroundTruth

FAR = 1e5
"""Cost of a cell outside the box or outside its center region; above every other cost."""


def assign_by_cost(
    log_scores: jax.Array,
    boxes: jax.Array,
    anchors: jax.Array,
    truth: GroundTruth,
    center_radius: float = 2.5,
    max_cells: int = 10,
    iou_weight: float = 3.0,
) -> jax.Array:
    """Assign by SimOTA (Ge et al. 2021, arXiv:2107.08430, section 2.3).

    Returns int32 [A]: the index of the ground-truth box of each cell, or BACKGROUND, or IGNORED for background that an
    ignored region touches.

    log_scores [A] and boxes [A, 4] are the predictions; anchors [A, 4], whose width is the stride of the cell. A ground
    truth box takes its k cheapest cells, where k is the sum of its `max_cells` highest IoUs with predicted boxes,
    at least 1. Cells take part if their center is inside the box or at most center_radius strides from its center. The
    cost is the cross-entropy of the score plus iou_weight times -log IoU, plus FAR unless both conditions hold. A cell
    that several boxes take goes to the box of the lowest cost.
    """
    centers, strides = _centers(anchors), anchors[:, 2] - anchors[:, 0]
    objects = (truth.mask & ~truth.ignore)[:, None]
    in_box = _inside(centers, truth.boxes)
    distance = jnp.abs(_centers(truth.boxes)[:, None] - centers).max(-1)
    in_center = distance < center_radius * strides
    candidate = (in_box | in_center).any(0, where=objects) & objects  # [N, A]
    iou = jnp.where(candidate, box_iou(truth.boxes, boxes), 0.0)
    cost = -log_scores - iou_weight * jnp.log(iou + 1e-7) + FAR * ~(in_box & in_center)
    cost = jnp.where(candidate, cost, jnp.inf)

    max_cells = min(max_cells, len(anchors))
    highest, _ = lax.top_k(iou, max_cells)
    count = jnp.maximum(highest.sum(1).astype(jnp.int32), 1)
    lowest, cheapest = lax.top_k(-cost, max_cells)
    taken = (jnp.arange(max_cells) < count[:, None]) & jnp.isfinite(lowest)
    rows = jnp.arange(len(cost))[:, None]
    takes = jnp.zeros(cost.shape, bool).at[rows, cheapest].set(taken)
    takers = takes.sum(0)  # [A]
    matched = jnp.where(takers > 1, jnp.argmin(cost, axis=0), takes.argmax(0))
    touched = ((anchors[:, 2:] > truth.boxes[:, None, :2]) & (anchors[:, :2] < truth.boxes[:, None, 2:])).all(-1)
    in_ignored = touched.any(0, where=(truth.mask & truth.ignore)[:, None])
    return jnp.where(takers > 0, matched, jnp.where(in_ignored, IGNORED, BACKGROUND)).astype(jnp.int32)


def _centers(boxes: jax.Array) -> jax.Array:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _inside(points: jax.Array, boxes: jax.Array) -> jax.Array:
    """Return True for points [A, 2] inside boxes [N, 4], without their edges: [N, A]."""
    return ((points > boxes[:, None, :2]) & (points < boxes[:, None, 2:])).all(-1)
