"""Non-maximum suppression with fixed shapes.

N boxes (padded).
"""

import jax
import jax.numpy as jnp
from jax import lax

from affect_jax.ops.boxes import box_iou


@jax.jit  # export to ONNX recognizes the call by its name
def nms(boxes: jax.Array, scores: jax.Array, valid: jax.Array, iou_threshold: float) -> jax.Array:
    """Return a mask of the boxes that are kept, bool [N].

    boxes [N, 4], scores [N], valid [N]; boxes that are not valid take no part. From the highest score down, a box is
    kept if its IoU with every box kept before is at most iou_threshold; of equal scores the first in order comes first.
    """
    return lax.platform_dependent(boxes, scores, valid, iou_threshold, cpu=_keep_one_by_one, default=_keep_all_at_once)


def _keep_one_by_one(boxes, scores, valid, iou_threshold):
    """Keep the best box that is left and suppress others, until none is left: N operations per kept box."""

    def any_left(carry):
        left, _ = carry
        return jnp.any(left > -jnp.inf)

    def keep_best(carry):
        left, kept = carry
        best = jnp.argmax(left)
        suppressed = box_iou(boxes[best][None], boxes)[0] > iou_threshold
        return jnp.where(suppressed, -jnp.inf, left).at[best].set(-jnp.inf), kept.at[best].set(True)

    _, kept = lax.while_loop(any_left, keep_best, (jnp.where(valid, scores, -jnp.inf), jnp.zeros_like(valid)))
    return kept


def _keep_all_at_once(boxes, scores, valid, iou_threshold):
    """Keep boxes by a fixed point of N x N operations, for devices that do not like loops of small operations.

    Whether a box is kept depends on boxes of higher score only, so that applying the rule to all boxes at once settles
    them from the first on. The number of rounds is the length of the longest chain of boxes that suppress one another.
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    ordered, ordered_valid = boxes[order], valid[order]
    position = jnp.arange(len(boxes))
    earlier = position[:, None] < position[None, :]
    # float, so that a round is a product of a vector with a matrix
    suppresses = (earlier & (box_iou(ordered, ordered) > iou_threshold)).astype(jnp.float32)

    def changed(carry):
        previous, kept = carry
        return jnp.any(previous != kept)

    def apply_rule(carry):
        _, kept = carry
        return kept, ordered_valid & (kept.astype(jnp.float32) @ suppresses < 0.5)

    _, kept = lax.while_loop(changed, apply_rule, (jnp.zeros_like(ordered_valid), ordered_valid))
    return jnp.zeros_like(valid).at[order].set(kept)
