"""Non-maximum suppression with fixed shapes.

N boxes (padded).
"""

import jax
import jax.numpy as jnp
from jax import lax

from affect_jax.ops.boxes import box_iou


def nms(boxes: jax.Array, scores: jax.Array, valid: jax.Array, iou_threshold: float) -> jax.Array:
    """Return a mask of the boxes that are kept, bool [N].

    boxes [N, 4], scores [N], valid [N]; boxes that are not valid take no part. From the highest score down, a box is
    kept if its IoU with every box kept before is at most iou_threshold; of equal scores the first in order comes first.

    The result is that of the greedy loop. It is computed as a fixed point: whether a box is kept depends on boxes of
    higher score only, so that applying the rule to all boxes at once settles them from the first on. The number of
    rounds is the length of the longest chain of boxes that suppress one another.
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
