"""The second stage of Faster R-CNN: what is in each proposal, and where its box really lies.

B batch, R proposals or samples, K classes (K + 1 with the background, which is 0 here and nowhere else), N true boxes
padded, D detections, P cells of a pooled RoI along each side.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.losses import smooth_l1, softmax_cross_entropy
from affect_jax.models.resnet import BLOCKS, ResidualBlock
from affect_jax.ops.boxes import at_least, box_iou, clip_boxes, decode_boxes, encode_boxes
from affect_jax.ops.matching import BACKGROUND, covered, match_boxes, sample_balanced
from affect_jax.ops.nms import nms

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Of the offsets: brings each to about unit variance (Fast R-CNN, arXiv:1504.08083, section 2.3)."""
SMALLEST_DETECTION = 1e-2  # pixels a side
POOLED_SIDE = 7
"""P of TwoMLPHead; a Res5Head halves twice that to it."""


class TwoMLPHead(nn.Module):
    """Two dense layers with ReLU: pooled [R, P, P, C] -> [R, representation_size]."""

    representation_size: int = 1024
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array, train: bool) -> jax.Array:
        """Features of each RoI."""
        x = pooled.reshape(len(pooled), -1)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(self.representation_size, dtype=self.dtype, name=name)(x))
        return x


class Res5Head(nn.Module):
    """The last stage of a ResNet and average pooling: pooled [R, P, P, C] -> [R, C'] (He et al. 2016, appendix A)."""

    depth: int
    stride_in_1x1: bool
    bn_epsilon: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array, train: bool) -> jax.Array:
        """Features of each RoI."""
        x = pooled
        for block in range(BLOCKS[self.depth][3]):
            residual = ResidualBlock(
                512,
                2 if block == 0 else 1,
                self.depth >= 50,
                self.stride_in_1x1,
                self.bn_epsilon,
                self.dtype,
                name=f"layer4_{block}",
            )
            x = residual(x, train)
        return x.mean((1, 2), dtype=jnp.float32)


class BoxPredictor(nn.Module):
    """Features [R, C] -> class logits [R, K + 1] and offsets of a box for each class [R, K + 1, 4], float32."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and offsets."""
        logits = nn.Dense(self.num_classes + 1, kernel_init=nn.initializers.normal(0.01), name="cls_score")(x)
        offsets = nn.Dense(4 * (self.num_classes + 1), kernel_init=nn.initializers.normal(0.001), name="bbox_pred")(x)
        return logits.astype(jnp.float32), offsets.reshape(len(x), -1, 4).astype(jnp.float32)


def sample_proposals(
    priority: jax.Array,
    proposals: jax.Array,
    valid: jax.Array,
    boxes: jax.Array,
    label: jax.Array,
    box_mask: jax.Array,
    ignore: jax.Array,
    fg_iou_thresh: float,
    bg_iou_thresh: float,
    batch_size_per_image: int,
    positive_fraction: float,
) -> dict[str, jax.Array]:
    """Proposals of one picture to learn from, the true boxes among them, with what they are held against.

    priority [R + N] chooses (sample_balanced); proposals [R, 4], valid [R]; boxes [N, 4], label int [N], box_mask and
    ignore bool [N]. Returns "rois" [S, 4], "sampled" bool [S], "label" int32 [S] (0 background), "targets" [S, 4]
    (offsets), S = batch_size_per_image at most.
    """
    true = box_mask & ~ignore
    rois = jnp.concatenate([proposals, boxes])
    valid = jnp.concatenate([valid, true])
    matched = match_boxes(box_iou(boxes, rois), true, fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=False)
    background = (matched == BACKGROUND) & ~covered(rois, boxes, box_mask & ignore)
    indices, sampled = sample_balanced(
        priority, (matched >= 0) & valid, background & valid, batch_size_per_image, positive_fraction
    )
    rois, matched = rois[indices], matched[indices]
    of = jnp.maximum(matched, 0)
    return {
        "rois": rois,
        "sampled": sampled,
        "label": jnp.where(matched >= 0, label[of] + 1, 0).astype(jnp.int32),
        "targets": encode_boxes(boxes[of], rois, BOX_WEIGHTS),
    }


def box_losses(logits: jax.Array, offsets: jax.Array, samples: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Sums over the samples of one picture: "classifier", "box_reg", and their "count".

    logits [S, K + 1], offsets [S, K + 1, 4]; samples as sample_proposals gives them.
    """
    label, sampled = samples["label"], samples["sampled"]
    chosen = jnp.take_along_axis(offsets, label[:, None, None], axis=1)[:, 0]
    return {
        "classifier": softmax_cross_entropy(logits, jax.nn.one_hot(label, logits.shape[-1]), sampled),
        "box_reg": smooth_l1(chosen, samples["targets"], (sampled & (label > 0))[:, None], beta=1 / 9),
        "count": jnp.sum(sampled.astype(jnp.float32)),
    }


def select_detections(
    logits: jax.Array,
    offsets: jax.Array,
    rois: jax.Array,
    valid: jax.Array,
    image_size: Sequence[int],
    score_thresh: float,
    nms_thresh: float,
    detections_per_img: int,
) -> dict[str, jax.Array]:
    """Detections of one picture: "boxes" [D, 4], "scores" [D], "label" int32 [D] (no background), "valid" bool [D].

    logits [R, K + 1], offsets [R, K + 1, 4], rois [R, 4], valid [R]. Every RoI is a candidate for every class; NMS
    within a class; the best of all, D = detections_per_img or R * K if that is less.
    """
    probs = jax.nn.softmax(logits)[:, 1:].T  # [K, R]
    boxes = clip_boxes(decode_boxes(offsets, rois[:, None], BOX_WEIGHTS), image_size)[:, 1:].swapaxes(0, 1)
    candidates = valid & (probs > score_thresh) & at_least(boxes, SMALLEST_DETECTION)
    stays = jax.vmap(nms, (0, 0, 0, None))(boxes, probs, candidates, nms_thresh)
    strength, best = jax.lax.top_k(jnp.where(stays, probs, -1.0).reshape(-1), min(detections_per_img, probs.size))
    found = strength >= 0
    return {
        "boxes": jnp.where(found[:, None], boxes.reshape(-1, 4)[best], 0.0),
        "scores": jnp.maximum(strength, 0.0),
        "label": (best // probs.shape[1]).astype(jnp.int32),
        "valid": found,
    }
