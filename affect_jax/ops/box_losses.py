"""Losses of predicted boxes with their ground-truth boxes that depend on the overlap.

Boxes are [..., 4] as [x1, y1, x2, y2], pixels; a loss has one value per pair, [...].
"""

import jax
import jax.numpy as jnp

from affect_jax.ops.boxes import box_area, paired_iou

MIN_AREA = 1e-6
"""Square pixels; keeps quotients finite for boxes without area."""


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
"""Losses by name, functions of predicted and true boxes [..., 4]. "smooth_l1" in a config compares offsets instead."""
