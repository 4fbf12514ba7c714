"""Non-maximum suppression at fixed shapes.

N boxes, of which `valid` ones take part.
"""

import jax
import jax.numpy as jnp
from jax import lax

from affect_jax.ops.boxes import box_iou


def nms(boxes: jax.Array, scores: jax.Array, valid: jax.Array, iou_threshold: float) -> jax.Array:
    """Which boxes stay, bool [N]: from the highest score down, each that overlaps no earlier staying one too much.

    boxes [N, 4], scores [N], valid [N]. Of equal scores the first in order goes first. The greedy result exactly, found
    as a fixed point: whether a box stays depends on those before it alone, so that repeating the rule for all boxes at
    once settles them from the first on, in as many rounds as the longest chain of one box suppressing the next.
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    ordered, taking_part = boxes[order], valid[order]
    position = jnp.arange(len(boxes))
    earlier = position[:, None] < position[None, :]
    # float, so that a round is a product of a vector and a matrix
    suppresses = (earlier & (box_iou(ordered, ordered) > iou_threshold)).astype(jnp.float32)

    def changed(carry):
        before, now = carry
        return jnp.any(before != now)

    def again(carry):
        _, stays = carry
        return stays, taking_part & (stays.astype(jnp.float32) @ suppresses < 0.5)

    _, stays = lax.while_loop(changed, again, (jnp.zeros_like(taking_part), taking_part))
    return jnp.zeros_like(valid).at[order].set(stays)
