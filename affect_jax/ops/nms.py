"""Non-maximum suppression with fixed shapes.

N boxes (padded).
"""

import jax
import jax.numpy as jnp
from jax import lax

from affect_jax.ops.boxes import box_iou

BLOCK = 64
"""Boxes of a block on CPU."""


@jax.jit  # export to ONNX recognizes the call by its name
def nms(boxes: jax.Array, scores: jax.Array, valid: jax.Array, iou_threshold: float) -> jax.Array:
    """Return a mask of the boxes that are kept, bool [N].

    boxes [N, 4], scores [N], valid [N]; boxes that are not valid take no part. From the highest score down, a box is
    kept if its IoU with every box kept before is at most iou_threshold; of equal scores the first in order comes first.
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    ordered = boxes[order], valid[order], iou_threshold
    # other devices do not like loops of small operations
    kept = lax.platform_dependent(*ordered, cpu=_keep_in_blocks, default=_keep_at_once)
    return jnp.zeros_like(valid).at[order].set(kept)


def _keep_at_once(boxes, valid, iou_threshold):
    """Keep ordered boxes by a fixed point of N x N operations.

    Whether a box is kept depends on boxes of higher score only, so that applying the rule to all boxes at once settles
    them from the first on. The number of rounds is the length of the longest chain of boxes that suppress one another.
    """
    position = jnp.arange(len(boxes))
    earlier = position[:, None] < position[None, :]
    # float, so that a round is a product of a vector with a matrix
    suppresses = (earlier & (box_iou(boxes, boxes) > iou_threshold)).astype(jnp.float32)

    def changed(carry):
        previous, kept = carry
        return jnp.any(previous != kept)

    def apply_rule(carry):
        _, kept = carry
        return kept, valid & (kept.astype(jnp.float32) @ suppresses < 0.5)

    _, kept = lax.while_loop(changed, apply_rule, (jnp.zeros_like(valid), valid))
    return kept


def _keep_in_blocks(boxes, valid, iou_threshold):
    """Keep ordered boxes block by block, up to the last valid one.

    The boxes kept in a block suppress others in later blocks. The chains of boxes that suppress one another, and so the
    rounds, are no longer than a block.
    """
    count = len(boxes)
    end = jnp.max(jnp.where(valid, jnp.arange(1, count + 1), 0))
    fill = (0, -count % BLOCK)
    boxes, left = jnp.pad(boxes, (fill, (0, 0))), jnp.pad(valid, fill)

    def unfinished(carry):
        start, _ = carry
        return start < end

    def keep_block(carry):
        start, left = carry
        own = lax.dynamic_slice_in_dim(boxes, start, BLOCK)
        kept = _keep_at_once(own, lax.dynamic_slice_in_dim(left, start, BLOCK), iou_threshold)
        suppressed = jnp.any((box_iou(own, boxes) > iou_threshold) & kept[:, None], axis=0)
        later = jnp.arange(len(boxes)) >= start + BLOCK
        return start + BLOCK, lax.dynamic_update_slice_in_dim(left & ~(suppressed & later), kept, start, 0)

    _, kept = lax.while_loop(unfinished, keep_block, (0, left))
    return kept[:count]
