"""Which true box each anchor or proposal is held against, and which of them a loss looks at.

N true boxes (padded), A anchors or proposals, S samples.
"""

import jax
import jax.numpy as jnp

from affect_jax.ops.boxes import box_area, box_intersection

BACKGROUND, IGNORED = -1, -2
"""Instead of a true box: overlaps none enough; overlaps one neither enough nor little enough."""


def match_boxes(
    iou: jax.Array, valid: jax.Array, fg_iou_thresh: float, bg_iou_thresh: float, allow_low_quality_matches: bool
) -> jax.Array:
    """The true box of each of A, by iou [N, A] where valid [N]: int32 [A], BACKGROUND or IGNORED where there is none.

    The best box counts from fg_iou_thresh on; below bg_iou_thresh there is none. With low-quality matches whatever
    overlaps a true box most keeps its own best, however little that is, but never where the overlap is 0 (torchvision
    takes all of the picture as overlapping a box outside it most). Faster R-CNN, section 3.1.2.
    """
    iou = jnp.where(valid[:, None], iou, -1.0)
    best, overlap = jnp.argmax(iou, axis=0).astype(jnp.int32), jnp.max(iou, axis=0)
    matched = jnp.where(overlap < fg_iou_thresh, IGNORED, best)
    matched = jnp.where(overlap < bg_iou_thresh, BACKGROUND, matched)
    if allow_low_quality_matches:
        most = jnp.max(iou, axis=1, keepdims=True)
        matched = jnp.where(jnp.any((iou == most) & (most > 0), axis=0), best, matched)
    return matched


def covered(candidates: jax.Array, boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """Which of candidates [A, 4] lie at least half in one of boxes [N, 4] where valid [N]: bool [A]."""
    shared = jnp.max(jnp.where(valid[:, None], box_intersection(boxes, candidates), 0.0), axis=0, initial=0.0)
    return (shared > 0) & (shared >= 0.5 * box_area(candidates))


def sampling_priority(key: jax.Array, count: int) -> jax.Array:
    """Random numbers [count] by which sample_balanced chooses: the largest first."""
    return jax.random.uniform(key, (count,))


def sample_balanced(
    priority: jax.Array, positive: jax.Array, negative: jax.Array, size: int, positive_fraction: float
) -> tuple[jax.Array, jax.Array]:
    """At most size * positive_fraction of the positive [A] and as many negative [A] as fill up to `size`.

    Returns indices int32 [size], positive ones first, and whether each is a sample, bool [size]: there may be fewer.
    """
    size = min(size, len(priority))
    most_positive = int(size * positive_fraction)
    # priorities below 1: every positive before every negative before the rest
    candidates = jnp.where(positive, 2.0 + priority, -1.0)
    strength, indices = jax.lax.top_k(candidates, most_positive)
    chosen = jnp.zeros(len(priority), bool).at[indices].set(strength >= 0)
    ranked = jnp.where(chosen, candidates, jnp.where(negative & ~positive, priority, -1.0))
    strength, indices = jax.lax.top_k(ranked, size)
    return indices.astype(jnp.int32), strength >= 0
