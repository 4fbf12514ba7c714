"""Boxes: areas, intersection over union, clipping, and offsets between boxes.

N, M, A boxes, [..., 4] as [x1, y1, x2, y2], absolute pixels, half-open: area = (x2 - x1)(y2 - y1). Values and gradients
are finite for boxes without area too, because padded arrays contain them.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

MAX_LOG_SCALE = math.log(1000 / 16)
"""Logarithm of the largest growth of a decoded box over its reference."""
MIN_SIDE = 1e-3
"""Pixels; keeps the offsets of boxes without area finite."""
MIN_AREA = 1e-6
"""Square pixels; keeps quotients of areas and their gradients finite for boxes with hardly any area."""


def box_area(boxes: jax.Array) -> jax.Array:
    """Return the area of each box, [...]; 0 where x2 < x1 or y2 < y1."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def box_intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the area of the intersection of each pair of a [N, 4] and b [M, 4]: [N, M]."""
    # two arrays rather than a last axis of two: XLA can then keep [N, M] in vector registers
    widths = jnp.minimum(a[:, None, 2], b[None, :, 2]) - jnp.maximum(a[:, None, 0], b[None, :, 0])
    heights = jnp.minimum(a[:, None, 3], b[None, :, 3]) - jnp.maximum(a[:, None, 1], b[None, :, 1])
    return jnp.maximum(widths, 0.0) * jnp.maximum(heights, 0.0)


def box_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the IoU of each pair of a [N, 4] and b [M, 4]: [N, M] in [0, 1], 0 if neither box has an area."""
    intersection = box_intersection(a, b)
    union = box_area(a)[:, None] + box_area(b)[None, :] - intersection
    return intersection / jnp.maximum(union, MIN_AREA)


def paired_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the IoU of boxes a and b [..., 4] with the same index: [...] in [0, 1], 0 if neither has an area."""
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    intersection = jnp.maximum(sides, 0.0).prod(-1)
    union = box_area(a) + box_area(b) - intersection
    return intersection / jnp.maximum(union, MIN_AREA)


def enlarge_boxes(boxes: jax.Array, factor: float) -> jax.Array:
    """Return boxes [..., 4] with the same centers and `factor` times the sides."""
    centers, sides = _centers_and_sides(boxes)
    return jnp.concatenate([centers - 0.5 * factor * sides, centers + 0.5 * factor * sides], -1)


def clip_boxes(boxes: jax.Array, image_size: jax.Array) -> jax.Array:
    """Clip boxes [..., 4] to an image of image_size [2] (height, width)."""
    height, width = image_size[0], image_size[1]
    limits = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0.0, limits)


def _centers_and_sides(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides


def encode_boxes(boxes: jax.Array, references: jax.Array, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> jax.Array:
    """Return the offsets (dx, dy, dw, dh) [N, 4] from references to boxes, multiplied by weights.

    Girshick et al. 2014 (R-CNN, arXiv:1311.2524), appendix C. Sides below MIN_SIDE are replaced by it.
    """
    centers, sides = _centers_and_sides(boxes)
    reference_centers, reference_sides = _centers_and_sides(references)
    sides, reference_sides = (jnp.maximum(side, MIN_SIDE) for side in (sides, reference_sides))
    offsets = [(centers - reference_centers) / reference_sides, jnp.log(sides / reference_sides)]
    return jnp.concatenate(offsets, -1) * jnp.asarray(weights)


def decode_boxes(
    offsets: jax.Array, references: jax.Array, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
) -> jax.Array:
    """Apply offsets [..., 4] to references [..., 4]: the inverse of encode_boxes.

    Growth is limited to exp(MAX_LOG_SCALE), so that the boxes of an untrained head are finite.
    """
    centers, sides = _centers_and_sides(references)
    offsets = offsets / jnp.asarray(weights)
    centers = offsets[..., :2] * sides + centers
    sides = jnp.exp(jnp.minimum(offsets[..., 2:], MAX_LOG_SCALE)) * sides
    return jnp.concatenate([centers - 0.5 * sides, centers + 0.5 * sides], -1)


def is_large(boxes: jax.Array, min_side: float) -> jax.Array:
    """Return True for boxes [..., 4] whose sides are both at least min_side: bool [...]."""
    return jnp.all(boxes[..., 2:] - boxes[..., :2] >= min_side, axis=-1)
