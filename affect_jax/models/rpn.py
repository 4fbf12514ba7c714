"""Region proposal network (Ren et al. 2015, arXiv:1506.01497, section 3.1): its head, proposals and losses.

B batch, L levels, A anchors (of a cell, of a level or of a picture, as said), N true boxes padded, P proposals.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.losses import sigmoid_cross_entropy, smooth_l1
from affect_jax.models.layers import Conv
from affect_jax.ops.boxes import at_least, box_iou, clip_boxes, decode_boxes, encode_boxes
from affect_jax.ops.matching import BACKGROUND, covered, match_boxes, sample_balanced
from affect_jax.ops.nms import nms

head_init = nn.initializers.normal(0.01)
SMALLEST_PROPOSAL = 1e-3  # pixels a side


class RPNHead(nn.Module):
    """For each of `anchors_per_cell` of every cell a logit of "object" and the offsets to its box; for all levels one.

    features, L maps [B, H, W, C] -> objectness, L of [B, A], and offsets, L of [B, A, 4], A = H W anchors_per_cell.
    """

    anchors_per_cell: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        """Objectness and offsets, float32."""
        conv = Conv(features[0].shape[-1], dtype=self.dtype, kernel_init=head_init, name="conv")
        pointwise = {"kernel_size": (1, 1), "padding": "VALID", "dtype": self.dtype, "kernel_init": head_init}
        cls_logits = Conv(self.anchors_per_cell, **pointwise, name="cls_logits")
        bbox_pred = Conv(4 * self.anchors_per_cell, **pointwise, name="bbox_pred")
        hidden = [nn.relu(conv(level)) for level in features]
        objectness = [cls_logits(x).reshape(len(x), -1).astype(jnp.float32) for x in hidden]
        offsets = [bbox_pred(x).reshape(len(x), -1, 4).astype(jnp.float32) for x in hidden]
        return objectness, offsets


def select_proposals(
    objectness: Sequence[jax.Array],
    offsets: Sequence[jax.Array],
    anchors: Sequence[jax.Array],
    image_size: jax.Array,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_thresh: float,
    score_thresh: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """The best proposals of one picture: boxes [P, 4] and which are real, bool [P], with P = post_nms_top_n.

    objectness L of [A], offsets L of [A, 4], anchors L of [A, 4], image_size (height, width). Of each level the
    pre_nms_top_n best go through NMS among themselves; then the best of all levels are taken. Without gradient.
    """
    boxes, probs, valid = [], [], []
    for level_objectness, level_offsets, level_anchors in zip(objectness, offsets, anchors, strict=True):
        count = min(pre_nms_top_n, len(level_anchors))
        logits, best = jax.lax.top_k(jax.lax.stop_gradient(level_objectness), count)
        level = decode_boxes(jax.lax.stop_gradient(level_offsets)[best], level_anchors[best])
        level, prob = clip_boxes(level, image_size), jax.nn.sigmoid(logits)
        fill = ((0, pre_nms_top_n - count),)
        boxes.append(jnp.pad(level, (*fill, (0, 0))))
        probs.append(jnp.pad(prob, fill))
        valid.append(jnp.pad(at_least(level, SMALLEST_PROPOSAL) & (prob >= score_thresh), fill))
    boxes, probs, valid = jnp.stack(boxes), jnp.stack(probs), jnp.stack(valid)
    stays = jax.vmap(nms, (0, 0, 0, None))(boxes, probs, valid, nms_thresh).reshape(-1)
    taken = min(post_nms_top_n, len(stays))
    strength, best = jax.lax.top_k(jnp.where(stays, probs.reshape(-1), -1.0), taken)
    missing = post_nms_top_n - taken
    return (
        jnp.pad(boxes.reshape(-1, 4)[best], ((0, missing), (0, 0))),
        jnp.pad(strength >= 0, (0, missing)),
    )


def rpn_losses(
    priority: jax.Array,
    objectness: jax.Array,
    offsets: jax.Array,
    anchors: jax.Array,
    boxes: jax.Array,
    box_mask: jax.Array,
    ignore: jax.Array,
    fg_iou_thresh: float,
    bg_iou_thresh: float,
    batch_size_per_image: int,
    positive_fraction: float,
) -> dict[str, jax.Array]:
    """Sums over the sampled anchors of one picture: "objectness", "rpn_box_reg", and their "count".

    priority [A] chooses (sample_balanced); objectness [A], offsets [A, 4], anchors [A, 4] of all levels; boxes [N, 4],
    box_mask, ignore bool [N]. Anchors that lie in an ignored box are no background.
    """
    iou = box_iou(boxes, anchors)
    matched = match_boxes(iou, box_mask & ~ignore, fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=True)
    background = (matched == BACKGROUND) & ~covered(anchors, boxes, box_mask & ignore)
    indices, sampled = sample_balanced(priority, matched >= 0, background, batch_size_per_image, positive_fraction)
    matched, objectness, offsets, anchors = matched[indices], objectness[indices], offsets[indices], anchors[indices]
    positive = sampled & (matched >= 0)
    targets = encode_boxes(boxes[jnp.maximum(matched, 0)], anchors)
    return {
        "objectness": sigmoid_cross_entropy(objectness, positive.astype(jnp.float32), sampled),
        "rpn_box_reg": smooth_l1(offsets, targets, positive[:, None], beta=1 / 9),
        "count": jnp.sum(sampled.astype(jnp.float32)),
    }
