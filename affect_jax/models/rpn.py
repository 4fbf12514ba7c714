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
from jax import lax

from affect_jax.losses import cross_entropy_of_log, log_geometric_mean
from affect_jax.models.layers import Conv
from affect_jax.ops import matching
from affect_jax.ops.anchors import grid_anchors
from affect_jax.ops.assignment import assign_by_cost
from affect_jax.ops.box_losses import box_regression_loss
from affect_jax.ops.boxes import clip_boxes, decode_boxes, is_large, paired_iou
from affect_jax.ops.matching import GroundTruth, Samples
from affect_jax.ops.nms import nms

head_init = nn.initializers.normal(0.01)
MIN_PROPOSAL_SIDE = 1e-3  # pixels
Losses = dict[str, tuple[jax.Array, jax.Array]]
"""Losses by name, each a sum and the count that it is divided by: scalars or, of a batch, [B]."""


class Proposals(NamedTuple):
    """Proposals of an image; of a batch, all arrays have B in front."""

    boxes: jax.Array
    """[P, 4]"""
    scores: jax.Array
    """[P], probabilities, 0 for padding"""
    valid: jax.Array
    """bool [P], False for padding"""
    left_out: jax.Array
    """[], no proposal that the limits of their number left out has a higher score; 0 if none was left out"""


class RPNHead(nn.Module):
    """Objectness logits and box offsets of the `anchors_per_cell` anchors of every cell; shared by all levels.

    features, L maps [B, H, W, C] -> logits, L of [B, A, 1], and offsets, L of [B, A, 4], A = H W anchors_per_cell.
    """

    anchors_per_cell: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], train: bool) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return logits and offsets, float32."""
        conv = Conv(features[0].shape[-1], dtype=self.dtype, kernel_init=head_init, name="conv")
        pointwise = {"kernel_size": (1, 1), "padding": "VALID", "dtype": self.dtype, "kernel_init": head_init}
        cls_logits = Conv(self.anchors_per_cell, **pointwise, name="cls_logits")
        bbox_pred = Conv(4 * self.anchors_per_cell, **pointwise, name="bbox_pred")
        hidden = [nn.relu(conv(level)) for level in features]
        logits = [cls_logits(x).reshape(len(x), -1, 1).astype(jnp.float32) for x in hidden]
        offsets = [bbox_pred(x).reshape(len(x), -1, 4).astype(jnp.float32) for x in hidden]
        return logits, offsets


class RegionProposalNetwork(nn.Module):
    """Proposals of a batch and, given its ground truth, their losses.

    The fields from pre_nms_top_n_train to positive_fraction are torchvision's, without "rpn_". anchor_sizes holds the
    sizes of each level, pixels. The score of an anchor is the geometric mean of the sigmoids of its S logits.
    `assigner` is "iou" or "simota". `objectness_loss` is a key of OBJECTNESS_LOSSES. `box_loss` is "smooth_l1" or a key
    of BOX_LOSSES; box_loss_weight multiplies it. Sampling for the losses draws from the rng "sampler"; without that rng
    it always draws the same.
    """

    head: nn.Module
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
    assigner: str
    objectness_loss: str
    box_loss: str
    box_loss_weight: float

    def __call__(
        self,
        features: Sequence[jax.Array],
        padded_size: tuple[int, int],
        image_size: jax.Array,
        truth: GroundTruth | None,
        train: bool,
    ) -> tuple[Proposals, Losses]:
        """Return the proposals and the losses, {} without ground truth; see rpn_losses.

        features, L maps [B, H, W, C], finest first; padded_size (height, width) of the batch, image_size [B, 2] of each
        image without padding.
        """
        if len(features) != len(self.anchor_sizes):
            raise ValueError(f"anchor_sizes has {len(self.anchor_sizes)} levels, the neck gives {len(features)}")
        logits, offsets = self.head(features, train)
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
        log_scores = [log_geometric_mean(level) for level in logits]
        proposals = jax.vmap(select, (0, 0, None, 0))(log_scores, offsets, anchors, image_size)
        if truth is None:
            return proposals, {}
        return proposals, self._losses(logits, offsets, anchors, truth)

    def _losses(self, logits, offsets, anchors, truth: GroundTruth) -> Losses:
        """Return rpn_losses of each image."""
        logits, offsets, anchors = jnp.concatenate(logits, 1), jnp.concatenate(offsets, 1), jnp.concatenate(anchors)
        priority = sampling_priorities(self, *logits.shape[:2])

        def losses(priority, logits, offsets, truth):
            samples = self._sample(priority, self._match(logits, offsets, anchors, truth))
            return rpn_losses(
                samples, logits, offsets, anchors, truth, self.objectness_loss, self.box_loss, self.box_loss_weight
            )

        return jax.vmap(losses)(priority, logits, offsets, truth)

    def _match(self, logits, offsets, anchors, truth: GroundTruth) -> jax.Array:
        """Return the index of the ground-truth box of each anchor of an image, or BACKGROUND or IGNORED, int32 [A]."""
        match self.assigner:
            case "iou":
                thresholds = self.fg_iou_thresh, self.bg_iou_thresh
                return matching.match_by_iou(anchors, truth, *thresholds, allow_low_quality_matches=True)
            case "simota":
                predicted = log_geometric_mean(logits), decode_boxes(offsets, anchors)
                return assign_by_cost(*lax.stop_gradient(predicted), anchors, truth)
            case unknown:
                raise ValueError(f"unknown assigner {unknown!r}; must be iou or simota")

    def _sample(self, priority: jax.Array, matched: jax.Array) -> Samples:
        """Return the anchors of an image that enter the losses, given their matches [A]: a sample or all."""
        if self.objectness_loss != "cross_entropy":
            return Samples(jnp.arange(len(matched)), matched != matching.IGNORED, matched)
        everywhere = jnp.ones(len(matched), bool)
        return matching.sample_matches(priority, matched, everywhere, self.batch_size_per_image, self.positive_fraction)


def sampling_priorities(module: nn.Module, images: int, candidates: int) -> jax.Array:
    """Return random priorities [images, candidates] from the rng "sampler" of a bound module.

    Without that rng they are the same for all images and calls, so that losses do not depend on the size of the batch.
    """
    if module.has_rng("sampler"):
        return matching.sampling_priority(module.make_rng("sampler"), (images, candidates))
    same = matching.sampling_priority(jax.random.key(0), (candidates,))
    return jnp.broadcast_to(same, (images, candidates))


def select_proposals(
    log_scores: Sequence[jax.Array],
    offsets: Sequence[jax.Array],
    anchors: Sequence[jax.Array],
    image_size: jax.Array,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_thresh: float,
    score_thresh: float,
) -> Proposals:
    """Select the best proposals of an image, P = post_nms_top_n. There is no gradient through them.

    log_scores, logarithms of probabilities, L of [A], offsets L of [A, 4], anchors L of [A, 4], image_size (height,
    width). The pre_nms_top_n best of each level go through NMS within the level; then the best of all levels are taken.
    """
    boxes, probs, valid, left_out = [], [], [], jnp.float32(0)
    for level_scores, level_offsets, level_anchors in zip(log_scores, offsets, anchors, strict=True):
        level_scores, level_offsets = lax.stop_gradient((level_scores, level_offsets))
        if len(level_anchors) > pre_nms_top_n:
            level_scores, best = lax.top_k(level_scores, pre_nms_top_n)
            level_offsets, level_anchors = level_offsets[best], level_anchors[best]
            left_out = jnp.maximum(left_out, jnp.exp(level_scores[-1]))
        level, prob = clip_boxes(decode_boxes(level_offsets, level_anchors), image_size), jnp.exp(level_scores)
        fill = ((0, pre_nms_top_n - len(level)),)
        boxes.append(jnp.pad(level, (*fill, (0, 0))))
        probs.append(jnp.pad(prob, fill))
        valid.append(jnp.pad(is_large(level, MIN_PROPOSAL_SIDE) & (prob >= score_thresh), fill))
    boxes, probs, valid = jnp.stack(boxes), jnp.stack(probs), jnp.stack(valid)
    kept = jax.vmap(nms, (0, 0, 0, None))(boxes, probs, valid, nms_thresh).reshape(-1)
    count = min(post_nms_top_n, len(kept))
    strength, best = lax.top_k(jnp.where(kept, probs.reshape(-1), -1.0), count)
    fill = (0, post_nms_top_n - count)
    scores = jnp.pad(jnp.maximum(strength, 0.0), fill)
    left_out = jnp.where(jnp.sum(kept) > count, jnp.maximum(left_out, strength[-1]), left_out)
    boxes = jnp.pad(boxes.reshape(-1, 4)[best], (fill, (0, 0)))
    return Proposals(boxes, scores, jnp.pad(strength >= 0, fill), left_out)


def rpn_losses(
    samples: Samples,
    logits: jax.Array,
    offsets: jax.Array,
    anchors: jax.Array,
    truth: GroundTruth,
    objectness_loss: str,
    box_loss: str,
    box_loss_weight: float,
) -> Losses:
    """Return "loss_objectness" and "loss_rpn_box_reg" of an image, sums over `samples` of its anchors, and the count.

    logits [A, S], offsets [A, 4], anchors [A, 4] of all levels. The count is that of the samples for "cross_entropy"
    and that of the positives for "yunet", which all anchors enter.
    """
    logits, offsets, anchors = logits[samples.indices], offsets[samples.indices], anchors[samples.indices]
    positive = samples.sampled & (samples.matched >= 0)
    boxes = truth.boxes[jnp.maximum(samples.matched, 0)]
    quality = lax.stop_gradient(paired_iou(decode_boxes(offsets, anchors), boxes))
    objectness = OBJECTNESS_LOSSES[objectness_loss](logits, positive, quality)
    box_reg = box_loss_weight * box_regression_loss(box_loss, offsets, anchors, boxes, positive)
    counted = samples.sampled if objectness_loss == "cross_entropy" else positive
    count = jnp.sum(counted.astype(jnp.float32))
    return {
        "loss_objectness": (jnp.sum(jnp.where(samples.sampled, objectness, 0.0)), count),
        "loss_rpn_box_reg": (box_reg, count),
    }


def _cross_entropy(logits: jax.Array, positive: jax.Array, quality: jax.Array) -> jax.Array:
    """Return the cross-entropy of the score; positives have the target 1."""
    return cross_entropy_of_log(log_geometric_mean(logits), positive.astype(jnp.float32))


def _yunet_loss(logits: jax.Array, positive: jax.Array, quality: jax.Array) -> jax.Array:
    """Return the cross-entropy of the last logit, whose target is 1, plus that of the first, whose target is the IoU.

    The first, the class, counts for positives only. YuNet and YOLOX (arXiv:2107.08430) are trained with it.
    """
    log_probs = jax.nn.log_sigmoid(logits)
    objectness = cross_entropy_of_log(log_probs[:, -1], positive.astype(jnp.float32))
    return objectness + jnp.where(positive, cross_entropy_of_log(log_probs[:, 0], quality), 0.0)


OBJECTNESS_LOSSES = {"cross_entropy": _cross_entropy, "yunet": _yunet_loss}
"""Losses of the logits [A, S] of anchors by name; "cross_entropy" is for a sample of the anchors, "yunet" for all.

The arguments are the logits, bool [A], True for positive anchors, and [A], the IoU of predicted and true box.
"""
