"""Region proposal network (Ren et al. 2015, arXiv:1506.01497, section 3.1).

B batch, L levels, A anchors (per cell, of a level or of an image, as stated), N ground-truth boxes (padded),
P proposals.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.losses import sigmoid_cross_entropy, smooth_l1
from affect_jax.models.layers import Conv
from affect_jax.ops import matching
from affect_jax.ops.anchors import grid_anchors
from affect_jax.ops.boxes import clip_boxes, decode_boxes, encode_boxes, is_large
from affect_jax.ops.matching import GroundTruth, Sampling
from affect_jax.ops.nms import nms

head_init = nn.initializers.normal(0.01)
MIN_PROPOSAL_SIDE = 1e-3  # pixels


class Proposals(NamedTuple):
    """Proposals of an image; of a batch, both arrays have B in front."""

    boxes: jax.Array
    """[P, 4]"""
    valid: jax.Array
    """bool [P], False for padding"""


class RPNHead(nn.Module):
    """Objectness logits and box offsets of the `anchors_per_cell` anchors of every cell; shared by all levels.

    features, L maps [B, H, W, C] -> objectness, L of [B, A], and offsets, L of [B, A, 4], A = H W anchors_per_cell.
    """

    anchors_per_cell: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return objectness and offsets, float32."""
        conv = Conv(features[0].shape[-1], dtype=self.dtype, kernel_init=head_init, name="conv")
        pointwise = {"kernel_size": (1, 1), "padding": "VALID", "dtype": self.dtype, "kernel_init": head_init}
        cls_logits = Conv(self.anchors_per_cell, **pointwise, name="cls_logits")
        bbox_pred = Conv(4 * self.anchors_per_cell, **pointwise, name="bbox_pred")
        hidden = [nn.relu(conv(level)) for level in features]
        objectness = [cls_logits(x).reshape(len(x), -1).astype(jnp.float32) for x in hidden]
        offsets = [bbox_pred(x).reshape(len(x), -1, 4).astype(jnp.float32) for x in hidden]
        return objectness, offsets


class RegionProposalNetwork(nn.Module):
    """Proposals of a batch and, given its ground truth, their losses.

    The fields after aspect_ratios are torchvision's, without "rpn_". anchor_sizes holds the sizes of each level,
    pixels. Sampling for the losses draws from the rng "sampler"; without that rng it always draws the same.
    """

    head: RPNHead
    anchor_sizes: Sequence[Sequence[float]]
    aspect_ratios: Sequence[float]
    pre_nms_top_n_train: int
    pre_nms_top_n_test: int
    post_nms_top_n_train: int
    post_nms_top_n_test: int
    nms_thresh: float
    score_thresh: float
    fg_iou_thresh: float
    bg_iou_thresh: float
    batch_size_per_image: int
    positive_fraction: float

    def __call__(
        self,
        features: Sequence[jax.Array],
        padded_size: tuple[int, int],
        image_size: jax.Array,
        truth: GroundTruth | None,
        train: bool,
    ) -> tuple[Proposals, dict[str, jax.Array]]:
        """Return the proposals and the losses, {} without ground truth; see rpn_losses.

        features, L maps [B, H, W, C], finest first; padded_size (height, width) of the batch, image_size [B, 2] of each
        image without padding.
        """
        if len(features) != len(self.anchor_sizes):
            raise ValueError(f"anchor_sizes has {len(self.anchor_sizes)} levels, the neck gives {len(features)}")
        objectness, offsets = self.head(features)
        grids = [level.shape[1:3] for level in features]
        strides = [tuple(side // cells for side, cells in zip(padded_size, grid, strict=True)) for grid in grids]
        anchors = [
            grid_anchors(grid, stride, sizes, self.aspect_ratios)
            for grid, stride, sizes in zip(grids, strides, self.anchor_sizes, strict=True)
        ]
        pre_nms_top_n, post_nms_top_n = (
            (self.pre_nms_top_n_train, self.post_nms_top_n_train)
            if train
            else (self.pre_nms_top_n_test, self.post_nms_top_n_test)
        )
        select = partial(
            select_proposals,
            pre_nms_top_n=pre_nms_top_n,
            post_nms_top_n=post_nms_top_n,
            nms_thresh=self.nms_thresh,
            score_thresh=self.score_thresh,
        )
        proposals = jax.vmap(select, (0, 0, None, 0))(objectness, offsets, anchors, image_size)
        if truth is None:
            return proposals, {}
        sampling = Sampling(self.fg_iou_thresh, self.bg_iou_thresh, self.batch_size_per_image, self.positive_fraction)
        objectness, offsets = jnp.concatenate(objectness, 1), jnp.concatenate(offsets, 1)
        priority = matching.sampling_priority(sampler_key(self), objectness.shape)
        losses = jax.vmap(partial(rpn_losses, sampling=sampling), (0, 0, 0, None, 0))
        return proposals, losses(priority, objectness, offsets, jnp.concatenate(anchors), truth)


def sampler_key(module: nn.Module) -> jax.Array:
    """Key of the rng "sampler" of a bound module, or a fixed key without that rng."""
    return module.make_rng("sampler") if module.has_rng("sampler") else jax.random.key(0)


def select_proposals(
    objectness: Sequence[jax.Array],
    offsets: Sequence[jax.Array],
    anchors: Sequence[jax.Array],
    image_size: jax.Array,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_thresh: float,
    score_thresh: float,
) -> Proposals:
    """Select the best proposals of an image, P = post_nms_top_n. There is no gradient through them.

    objectness L of [A], offsets L of [A, 4], anchors L of [A, 4], image_size (height, width). The pre_nms_top_n best of
    each level go through NMS within the level; then the best of all levels are taken.
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
        valid.append(jnp.pad(is_large(level, MIN_PROPOSAL_SIDE) & (prob >= score_thresh), fill))
    boxes, probs, valid = jnp.stack(boxes), jnp.stack(probs), jnp.stack(valid)
    kept = jax.vmap(nms, (0, 0, 0, None))(boxes, probs, valid, nms_thresh).reshape(-1)
    count = min(post_nms_top_n, len(kept))
    strength, best = jax.lax.top_k(jnp.where(kept, probs.reshape(-1), -1.0), count)
    fill = (0, post_nms_top_n - count)
    return Proposals(jnp.pad(boxes.reshape(-1, 4)[best], (fill, (0, 0))), jnp.pad(strength >= 0, fill))


def rpn_losses(
    priority: jax.Array,
    objectness: jax.Array,
    offsets: jax.Array,
    anchors: jax.Array,
    truth: GroundTruth,
    sampling: Sampling,
) -> dict[str, jax.Array]:
    """Losses of an image as sums over its sampled anchors: "objectness" and "rpn_box_reg"; "rpn_count" anchors.

    priority [A] (see match_and_sample), objectness [A], offsets [A, 4], anchors [A, 4] of all levels.
    """
    samples = matching.match_and_sample(
        priority, anchors, jnp.ones(len(anchors), bool), truth, sampling, allow_low_quality_matches=True
    )
    objectness, offsets, anchors = objectness[samples.indices], offsets[samples.indices], anchors[samples.indices]
    positive = samples.sampled & (samples.matched >= 0)
    targets = encode_boxes(truth.boxes[jnp.maximum(samples.matched, 0)], anchors)
    return {
        "objectness": sigmoid_cross_entropy(objectness, positive.astype(jnp.float32), samples.sampled),
        "rpn_box_reg": smooth_l1(offsets, targets, positive[:, None], beta=1 / 9),
        "rpn_count": jnp.sum(samples.sampled.astype(jnp.float32)),
    }
