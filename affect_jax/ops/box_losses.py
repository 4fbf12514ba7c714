"""Losses of predicted boxes with their ground-truth boxes.

Boxes are [..., 4] as [x1, y1, x2, y2], pixels; a loss of BOX_LOSSES has one value per pair, [...].
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from affect_jax.ops.boxes import MIN_AREA, box_area, decode_boxes, encode_boxes, paired_iou


def diou_loss(predicted: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the distance-IoU loss (Zheng et al. 2020, arXiv:1911.08287): [...].

    1 - IoU plus the squared distance of the centers over the squared diagonal of the smallest box around both.
    """
    around = jnp.maximum(predicted[..., 2:], targets[..., 2:]) - jnp.minimum(predicted[..., :2], targets[..., :2])
    offset = (predicted[..., :2] + predicted[..., 2:] - targets[..., :2] - targets[..., 2:]) / 2
    distance = (offset**2).sum(-1) / jnp.maximum((around**2).sum(-1), MIN_AREA)
    return 1.0 - paired_iou(predicted, targets) + distance


def eiou_loss(predicted: jax.Array, targets: jax.Array, smooth: float = 0.1) -> jax.Array:
    """Return the extended-IoU loss (Peng et al. 2021, arXiv:2112.01793): [...].

    1 - IoU, squared below `smooth`. Boxes that do not overlap have a negative intersection, which grows with their
    distance, so that the loss has a gradient there.
    """
    origin = jnp.minimum(predicted[..., :2], targets[..., :2])
    low = jnp.maximum(predicted[..., :2], targets[..., :2]) - origin
    high = jnp.minimum(predicted[..., 2:], targets[..., 2:]) - origin
    least, most = jnp.minimum(low, high), jnp.maximum(low, high)
    intersection = high.prod(-1) + least.prod(-1) - low[..., 0] * most[..., 1] - most[..., 0] * low[..., 1]
    union = box_area(predicted) + box_area(targets) - intersection
    loss = 1.0 - intersection / jnp.maximum(union, MIN_AREA)
    return jnp.where(loss < smooth, 0.5 * loss**2 / smooth, loss - 0.5 * smooth)


BOX_LOSSES = {"diou": diou_loss, "eiou": eiou_loss}
"""Losses that depend on the overlap by name, functions of predicted and true boxes [..., 4]."""


def smooth_l1(distance: jax.Array, beta: float = 1 / 9) -> jax.Array:
    """Return the absolute distance [...], squared below beta (Girshick 2015, equation 3): [...]."""
    distance = jnp.abs(distance)
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


def box_regression_loss(
    name: str,
    offsets: jax.Array,
    references: jax.Array,
    boxes: jax.Array,
    positive: jax.Array,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> jax.Array:
    """Sum a loss of offsets [A, 4] from references [A, 4], with `weights`, to true boxes [A, 4] where positive [A].

    `name` is "smooth_l1", on the offsets, or a key of BOX_LOSSES, on the boxes.
    """
    if name == "smooth_l1":
        # the targets of other boxes may be infinite, and the gradient must not be NaN
        distance = jnp.where(positive[:, None], offsets - encode_boxes(boxes, references, weights), 0.0)
        return jnp.sum(smooth_l1(distance))
    predicted = jnp.where(positive[:, None], decode_boxes(offsets, references, weights), boxes)
    return jnp.sum(jnp.where(positive, BOX_LOSSES[name](predicted, boxes), 0.0))
