"""Matching of anchors and proposals to ground-truth boxes, and sampling of those that enter a loss.

N ground-truth boxes (padded), A anchors or proposals, S samples.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from affect_jax.ops.boxes import box_area, box_intersection, box_iou

BACKGROUND = -1
"""Match of a box whose IoU with every ground-truth box is below the lower threshold."""
IGNORED = -2
"""Match of a box whose highest IoU is between the two thresholds."""


class GroundTruth(NamedTuple):
    """Ground-truth boxes of an image; of a batch, every array has B in front."""

    boxes: jax.Array
    """[N, 4]"""
    label: jax.Array
    """int [N]"""
    mask: jax.Array
    """bool [N], False for padding"""
    ignore: jax.Array
    """bool [N], True for a region that is neither an object nor background"""


class Samples(NamedTuple):
    """Candidates that enter the loss."""

    indices: jax.Array
    """int32 [S], positions among the candidates, positives first"""
    sampled: jax.Array
    """bool [S], False for unused places"""
    matched: jax.Array
    """int32 [S], index of the ground-truth box, negative for background"""


def match_boxes(
    iou: jax.Array, valid: jax.Array, fg_iou_thresh: float, bg_iou_thresh: float, allow_low_quality_matches: bool
) -> jax.Array:
    """Index of the ground-truth box that matches each candidate, or BACKGROUND or IGNORED: int32 [A].

    iou [N, A]; only boxes where valid [N] take part. A candidate matches the box of its highest IoU if that IoU is at
    least fg_iou_thresh, and is background if it is below bg_iou_thresh. With low-quality matches, the candidates of the
    highest IoU with a box match their best box at any IoU above 0. (In torchvision, every anchor matches a box outside
    the image, whose IoU is 0 everywhere.) Faster R-CNN, section 3.1.2.
    """
    iou = jnp.where(valid[:, None], iou, -1.0)
    best, best_iou = first_highest(iou)
    matched = jnp.where(best_iou < fg_iou_thresh, IGNORED, best)
    matched = jnp.where(best_iou < bg_iou_thresh, BACKGROUND, matched)
    if allow_low_quality_matches:
        highest = jnp.max(iou, axis=1, keepdims=True)
        matched = jnp.where(jnp.any((iou == highest) & (highest > 0), axis=0), best, matched)
    return matched


def first_highest(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the row of the highest of values [N, A] in each column, int32 [A], the first of equal ones, and its value.

    The values are not NaN. XLA on CPU vectorizes these two reductions, but not that of argmax.
    """
    rows, highest = jnp.arange(len(values), dtype=jnp.int32)[:, None], jnp.max(values, axis=0)
    return jnp.min(jnp.where(values == highest, rows, len(values)), axis=0), highest


def covered(candidates: jax.Array, boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """Return True for candidates [A, 4] of which at least half is inside one of boxes [N, 4] where valid [N]: [A]."""
    shared = jnp.max(jnp.where(valid[:, None], box_intersection(boxes, candidates), 0.0), axis=0, initial=0.0)
    return (shared > 0) & (shared >= 0.5 * box_area(candidates))


def sampling_priority(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random priorities in [0, 1) for sample_balanced, which prefers the highest."""
    return jax.random.uniform(key, shape)


def sample_balanced(
    priority: jax.Array, positive: jax.Array, negative: jax.Array, size: int, positive_fraction: float
) -> tuple[jax.Array, jax.Array]:
    """Sample up to size * positive_fraction of the positives, then negatives up to `size`.

    priority, positive, negative [A]. Returns indices int32 [size], positives first, and a mask bool [size], False where
    there were too few candidates.
    """
    max_positive = min(int(size * positive_fraction), len(priority))
    size = min(size, len(priority))
    # priorities are below 1: all positives come before all negatives, and these before all others
    candidates = jnp.where(positive, 2.0 + priority, -1.0)
    strength, indices = jax.lax.top_k(candidates, max_positive)
    chosen = jnp.zeros(len(priority), bool).at[indices].set(strength >= 0)
    ranked = jnp.where(chosen, candidates, jnp.where(negative & ~positive, priority, -1.0))
    strength, indices = jax.lax.top_k(ranked, size)
    return indices.astype(jnp.int32), strength >= 0


def match_by_iou(
    candidates: jax.Array,
    truth: GroundTruth,
    fg_iou_thresh: float,
    bg_iou_thresh: float,
    allow_low_quality_matches: bool,
) -> jax.Array:
    """Match candidates [A, 4] to the ground truth of an image: see match_boxes.

    Background that is covered by an ignored region is IGNORED.
    """
    iou = box_iou(truth.boxes, candidates)
    matched = match_boxes(iou, truth.mask & ~truth.ignore, fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches)
    in_ignored = covered(candidates, truth.boxes, truth.mask & truth.ignore)
    return jnp.where((matched == BACKGROUND) & in_ignored, IGNORED, matched)


def sample_matches(
    priority: jax.Array, matched: jax.Array, valid: jax.Array, size: int, positive_fraction: float
) -> Samples:
    """Sample candidates with matches [A] where valid [A], by priority [A]: see sample_balanced."""
    positive, negative = (matched >= 0) & valid, (matched == BACKGROUND) & valid
    indices, sampled = sample_balanced(priority, positive, negative, size, positive_fraction)
    return Samples(indices, sampled, matched[indices])
