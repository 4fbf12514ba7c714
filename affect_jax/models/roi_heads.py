"""RoI heads, the second stage of Faster R-CNN: the class and the refined box of each proposal.

B batch, R proposals or samples, K classes (K + 1 with the background, which is class 0 in this file only),
N ground-truth boxes (padded), S samples, D detections, P cells of a pooled RoI along each side.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.custom_batching import custom_vmap

from affect_jax.losses import softmax_cross_entropy
from affect_jax.models.rpn import Losses, Proposals, sampling_priorities
from affect_jax.models.yunet import SeparableUnit
from affect_jax.ops import matching
from affect_jax.ops.box_losses import box_regression_loss
from affect_jax.ops.boxes import clip_boxes, decode_boxes, enlarge_boxes, is_large
from affect_jax.ops.matching import GroundTruth
from affect_jax.ops.nms import nms
from affect_jax.ops.roi_align import roi_align, roi_levels

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Weights of the offsets, which scale each to about unit variance (Fast R-CNN, arXiv:1504.08083, section 2.3)."""
MIN_DETECTION_SIDE = 1e-2  # pixels


class MLPHead(nn.Module):
    """`units` separable units and `layers` dense layers (1 or 2) with ReLU: pooled [R, P, P, C] -> [R, features].

    features is representation_size.
    """

    representation_size: int
    layers: int
    units: int
    bn_epsilon: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array, train: bool) -> jax.Array:
        """Return the features of each RoI."""
        x = pooled
        for unit in range(self.units):
            x = SeparableUnit(x.shape[-1], self.bn_epsilon, self.dtype, name=f"unit{unit}")(x, train)
        x = x.reshape(len(x), -1)
        for name in ("fc6", "fc7")[: self.layers]:
            x = nn.relu(nn.Dense(self.representation_size, dtype=self.dtype, name=name)(x))
        return x


class BoxPredictor(nn.Module):
    """Class logits [R, K + 1] and, for each class, box offsets [R, K + 1, 4] of features [R, C], float32."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return logits and offsets."""
        logits = nn.Dense(self.num_classes + 1, kernel_init=nn.initializers.normal(0.01), name="cls_score")(x)
        offsets = nn.Dense(4 * (self.num_classes + 1), kernel_init=nn.initializers.normal(0.001), name="bbox_pred")(x)
        return logits.astype(jnp.float32), offsets.reshape(len(x), -1, 4).astype(jnp.float32)


class RoISamples(NamedTuple):
    """Sampled RoIs of an image and their targets; of a batch, every array has B in front."""

    rois: jax.Array
    """[S, 4]"""
    sampled: jax.Array
    """bool [S], False for unused places"""
    label: jax.Array
    """int32 [S], 0 for background"""
    boxes: jax.Array
    """[S, 4], matched ground-truth boxes"""


class RoIHeads(nn.Module):
    """Detections of a batch and, given its ground truth, the losses of sampled proposals.

    The fields from score_thresh to positive_fraction are torchvision's, without "box_"; canonical_size is its
    canonical_scale, and roi_aligned is detectron2's "ROIAlignV2". box_head maps pooled RoIs [R, P, P, C] with P =
    pooled_side to features, box_predictor these to logits and offsets.
    RoIs are pooled with `context` times their sides. box_loss is "smooth_l1" or a key of BOX_LOSSES;
    box_loss_weight multiplies it. The score of a detection is the weighted geometric mean of the scores of its proposal
    and of its class (Zhou et al. 2021, arXiv:2103.07461), with proposal_weight for the first. In prediction, groups of
    rois_at_once proposals are classified until no valid proposal remains, so that images with few faces take less time;
    0: all at once. Sampling draws from the rng "sampler"; without that rng it always draws the same.
    """

    box_head: nn.Module
    box_predictor: BoxPredictor
    strides: Sequence[int]
    pooled_side: int
    canonical_size: float
    canonical_level: int
    roi_aligned: bool
    score_thresh: float
    nms_thresh: float
    detections_per_img: int
    fg_iou_thresh: float
    bg_iou_thresh: float
    batch_size_per_image: int
    positive_fraction: float
    context: float
    box_loss: str
    box_loss_weight: float
    proposal_weight: float
    rois_at_once: int

    def __call__(
        self,
        features: Sequence[jax.Array],
        proposals: Proposals,
        image_size: jax.Array,
        truth: GroundTruth | None,
        train: bool,
    ) -> tuple[dict[str, jax.Array], Losses]:
        """Return the detections, {} in training, and the losses, {} without ground truth.

        features, L maps [B, H, W, C] with `strides`, finest first, or without the finest if no proposal needs it;
        proposals with R = P; image_size [B, 2]. See select_detections and box_losses.
        """
        detections, losses = {}, {}
        if truth is not None:
            sample = partial(
                sample_proposals,
                fg_iou_thresh=self.fg_iou_thresh,
                bg_iou_thresh=self.bg_iou_thresh,
                batch_size_per_image=self.batch_size_per_image,
                positive_fraction=self.positive_fraction,
            )
            count = proposals.boxes.shape[1] + truth.boxes.shape[1]
            priority = sampling_priorities(self, len(proposals.boxes), count)
            samples = jax.vmap(sample)(priority, proposals, truth)
            loss = partial(box_losses, box_loss=self.box_loss, box_loss_weight=self.box_loss_weight)
            losses = jax.vmap(loss)(*self._classify(features, samples.rois, train), samples)
        if not train:
            select = partial(
                select_detections,
                score_thresh=self.score_thresh,
                nms_thresh=self.nms_thresh,
                detections_per_img=self.detections_per_img,
                proposal_weight=self.proposal_weight,
            )
            logits, offsets = self._classify_valid(features, proposals)
            detections = jax.vmap(select)(logits, offsets, proposals, image_size)
        return detections, losses

    def _classify_valid(self, features: Sequence[jax.Array], proposals: Proposals) -> tuple[jax.Array, jax.Array]:
        """Return logits and offsets as _classify does; those of groups without a valid proposal are zeros."""
        count = proposals.valid.shape[1]
        group = self.rois_at_once
        if not group or group >= count or self.is_initializing():
            return self._classify(features, proposals.boxes, train=False)
        boxes = jnp.pad(proposals.boxes, ((0, 0), (0, -count % group), (0, 0)))
        classes = self.box_predictor.num_classes + 1
        outputs = jnp.zeros((*boxes.shape[:2], classes)), jnp.zeros((*boxes.shape[:2], classes, 4))
        end = jnp.max(jnp.where(proposals.valid, jnp.arange(1, count + 1), 0))

        def remain(module: "RoIHeads", carry) -> jax.Array:
            return carry[0] < end

        def classify_group(module: "RoIHeads", carry):
            start, outputs = carry
            found = module._classify(features, lax.dynamic_slice_in_dim(boxes, start, group, 1), train=False)
            put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
            return start + group, tuple(map(put, outputs, found))

        _, outputs = nn.while_loop(
            remain, classify_group, self, (0, outputs), broadcast_variables=("params", "batch_stats")
        )
        return tuple(values[:, :count] for values in outputs)

    def needs_finest(self, proposals: Proposals) -> jax.Array:
        """Return True if a valid proposal is pooled from the finest map: bool []."""
        levels = self._levels(enlarge_boxes(proposals.boxes, self.context), self.strides)
        return any_in_batch(proposals.valid & (levels == 0))

    def _levels(self, rois: jax.Array, strides: Sequence[int]) -> jax.Array:
        """Return the index of the map with one of `strides` that each of rois [B, R, 4] is pooled from."""
        finest = strides[0].bit_length() - 1  # level l has the stride 2 ** l (FPN, equation 1)
        return roi_levels(rois, len(strides), finest, self.canonical_size, self.canonical_level)

    def _classify(self, features: Sequence[jax.Array], rois: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Return logits [B, R, K + 1] and offsets [B, R, K + 1, 4] of rois [B, R, 4]."""
        rois = enlarge_boxes(rois, self.context)
        strides = self.strides[-len(features) :]
        levels = self._levels(rois, strides)
        pooled = roi_align(features, strides, rois, levels, self.pooled_side, aligned=self.roi_aligned)
        logits, offsets = self.box_predictor(self.box_head(pooled.reshape(-1, *pooled.shape[2:]), train))
        return logits.reshape(*rois.shape[:2], -1), offsets.reshape(*rois.shape[:2], -1, 4)


@custom_vmap
def any_in_batch(values: jax.Array) -> jax.Array:
    """Return True if any value is True: bool []; under jax.vmap, one answer for all examples.

    With an answer for each example, vmap would make a choice between both branches of a condition, and repeat the
    weights for each example.
    """
    return jnp.any(values)


@any_in_batch.def_vmap
def _any_in_examples(axis_size: int, batched: list[bool], values: jax.Array) -> tuple[jax.Array, bool]:
    """Return the answer for all examples, and that it is not batched."""
    return any_in_batch(values), False


def sample_proposals(
    priority: jax.Array,
    proposals: Proposals,
    truth: GroundTruth,
    fg_iou_thresh: float,
    bg_iou_thresh: float,
    batch_size_per_image: int,
    positive_fraction: float,
) -> RoISamples:
    """Sample proposals of an image for the losses; the ground-truth boxes are added to them.

    priority [R + N], see `matching.sample_matches`; S is at most batch_size_per_image.
    """
    rois = jnp.concatenate([proposals.boxes, truth.boxes])
    valid = jnp.concatenate([proposals.valid, truth.mask & ~truth.ignore])
    matched = matching.match_by_iou(rois, truth, fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=False)
    samples = matching.sample_matches(priority, matched, valid, batch_size_per_image, positive_fraction)
    rois, box = rois[samples.indices], jnp.maximum(samples.matched, 0)
    return RoISamples(
        rois=rois,
        sampled=samples.sampled,
        label=jnp.where(samples.matched >= 0, truth.label[box] + 1, 0).astype(jnp.int32),
        boxes=truth.boxes[box],
    )


def box_losses(
    logits: jax.Array, offsets: jax.Array, samples: RoISamples, box_loss: str, box_loss_weight: float
) -> Losses:
    """Return "loss_classifier" and "loss_box_reg" of an image, sums over its sampled RoIs, and their count.

    logits [S, K + 1], offsets [S, K + 1, 4].
    """
    label, sampled = samples.label, samples.sampled
    # the logits of an unused place may be infinite, and their gradient must not be NaN
    logits = jnp.where(sampled[:, None], logits, 0.0)
    classifier = softmax_cross_entropy(logits, jax.nn.one_hot(label, logits.shape[-1]))
    label_offsets = jnp.take_along_axis(offsets, label[:, None, None], axis=1)[:, 0]
    positive = sampled & (label > 0)
    box_reg = box_regression_loss(box_loss, label_offsets, samples.rois, samples.boxes, positive, BOX_WEIGHTS)
    count = jnp.sum(sampled.astype(jnp.float32))
    return {
        "loss_classifier": (jnp.sum(jnp.where(sampled, classifier, 0.0)), count),
        "loss_box_reg": (box_loss_weight * box_reg, count),
    }


def select_detections(
    logits: jax.Array,
    offsets: jax.Array,
    proposals: Proposals,
    image_size: jax.Array,
    score_thresh: float,
    nms_thresh: float,
    detections_per_img: int,
    proposal_weight: float,
) -> dict[str, jax.Array]:
    """Select the detections of an image: "boxes" [D, 4], "scores" [D], "label" int32 [D] and "valid" bool [D].

    logits [R, K + 1], offsets [R, K + 1, 4], image_size (height, width). Every proposal is a candidate for every class;
    NMS is within a class; D is detections_per_img, or R K if that is less. Labels count from 0, without background.
    """
    probs = jax.nn.softmax(logits)[:, 1:].T  # [K, R]
    if proposal_weight:
        probs = proposals.scores**proposal_weight * probs ** (1 - proposal_weight)
    boxes = decode_boxes(offsets, proposals.boxes[:, None], BOX_WEIGHTS)
    boxes = clip_boxes(boxes, image_size)[:, 1:].swapaxes(0, 1)
    candidates = proposals.valid & (probs > score_thresh) & is_large(boxes, MIN_DETECTION_SIDE)
    kept = jax.vmap(nms, (0, 0, 0, None))(boxes, probs, candidates, nms_thresh)
    strength, best = jax.lax.top_k(jnp.where(kept, probs, -1.0).reshape(-1), min(detections_per_img, probs.size))
    found = strength >= 0
    return {
        "boxes": jnp.where(found[:, None], boxes.reshape(-1, 4)[best], 0.0),
        "scores": jnp.maximum(strength, 0.0),
        "label": (best // probs.shape[1]).astype(jnp.int32),
        "valid": found,
    }
