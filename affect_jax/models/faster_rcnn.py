"""Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) on a ResNet or MobileNetV2, with a feature pyramid or on the map C4.

B batch, H W C height, width, channels, N true boxes padded, P proposals, S samples, D detections, K classes. The knobs
have torchvision's names and, but for the anchors, its values.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.models.fpn import FeaturePyramid
from affect_jax.models.mobilenet import MobileNetV2Backbone
from affect_jax.models.resnet import ResNetBackbone
from affect_jax.models.roi_heads import (
    POOLED_SIDE,
    BoxPredictor,
    Res5Head,
    TwoMLPHead,
    box_losses,
    sample_proposals,
    select_detections,
)
from affect_jax.models.rpn import RPNHead, rpn_losses, select_proposals
from affect_jax.ops import matching
from affect_jax.ops.anchors import grid_anchors
from affect_jax.ops.roi_align import roi_align, roi_levels

FINEST_LEVEL, FINEST_TAP, FINEST_STRIDE = 2, "C2", 4
"""Of the pyramid: P2, made from C2."""
BACKBONES = {"mobilenet_v2": None, "resnet18": 18, "resnet34": 34, "resnet50": 50}
"""Name -> depth of a ResNet, None of another network."""
ANCHOR_STRIDES = {"fpn": (4, 8, 16, 32, 64), "fpn_c4": (4, 8, 16, 32), "c4": (16,)}
"""Pixels between the cells of the maps that proposals are made from, by neck."""


class FasterRCNN(nn.Module):
    """Detector of `num_classes` classes: pictures and, where there are any, their true boxes -> detections and losses.

    `backbone_name` is one of BACKBONES, stride_in_1x1 a ResNet's; `neck` is "fpn", "fpn_c4" (a pyramid of a backbone
    that ends at C4) or "c4" (a ResNet's, whose last stage is the head). anchor_sizes holds the sizes of each level
    (five of "fpn": P2 to P5 and "pool"; four of "fpn_c4"; one of "c4"), pixels. H and W are multiples of 32.
    """

    num_classes: int
    backbone_name: str = "resnet50"
    neck: str = "fpn"
    stride_in_1x1: bool = False
    bn_epsilon: float = 1e-5
    fpn_channels: int = 256
    anchor_sizes: Sequence[Sequence[float]] = ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_score_thresh: float = 0.0
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    box_canonical_size: float = 224.0
    box_canonical_level: int = 4
    box_roi_aligned: bool = False
    box_representation_size: int = 1024
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25
    dtype: jnp.dtype = jnp.float32

    padding = MobileNetV2Backbone.padding  # no knob here, but weights may want another

    @nn.compact
    def __call__(self, batch: Mapping[str, jax.Array], train: bool) -> dict[str, dict[str, jax.Array]]:
        """{"losses": sums over the samples of each picture [B], "detections": as select_detections with B in front}.

        losses: "objectness" and "rpn_box_reg" of "rpn_count" anchors, "classifier" and "box_reg" of "roi_count" RoIs.

        batch: image [B, H, W, 3], normalized, zeros outside image_size [B, 2] (height, width); for losses also boxes
        [B, N, 4], label int [B, N], box_mask and ignore bool [B, N]. There are no losses without boxes, and no
        detections in training. Sampling draws from the rng "sampler"; without one it always takes the same.
        """
        images, image_size = batch["image"], batch["image_size"]
        features = self._features(images, train)
        levels = len(self.anchor_sizes)
        if len(features) != levels:
            raise ValueError(f"anchor_sizes has {levels} levels, the neck {self.neck!r} gives {len(features)}")
        anchors = [
            grid_anchors(
                level.shape[1:3],
                (images.shape[1] // level.shape[1], images.shape[2] // level.shape[2]),
                sizes,
                self.aspect_ratios,
            )
            for level, sizes in zip(features, self.anchor_sizes, strict=True)
        ]
        rpn_head = RPNHead(len(self.anchor_sizes[0]) * len(self.aspect_ratios), self.dtype, name="rpn_head")
        objectness, offsets = rpn_head(features)
        when = "train" if train else "test"
        select = partial(
            select_proposals,
            pre_nms_top_n=getattr(self, f"rpn_pre_nms_top_n_{when}"),
            post_nms_top_n=getattr(self, f"rpn_post_nms_top_n_{when}"),
            nms_thresh=self.rpn_nms_thresh,
            score_thresh=self.rpn_score_thresh,
        )
        proposals, valid = jax.vmap(select, (0, 0, None, 0))(objectness, offsets, anchors, image_size)
        self.sow("intermediates", "proposals", (proposals, valid))
        classify = self._box_classifier(features, train)
        outputs = {}
        if "boxes" in batch:
            rpn_key, box_key = jax.random.split(
                self.make_rng("sampler") if self.has_rng("sampler") else jax.random.key(0)
            )
            truth = [batch[name] for name in ("boxes", "box_mask", "ignore")]
            outputs["losses"] = self._rpn_losses(rpn_key, objectness, offsets, anchors, *truth)
            samples = self._samples(box_key, proposals, valid, batch)
            sums = jax.vmap(box_losses)(*classify(samples["rois"]), samples)
            outputs["losses"] |= {"roi_count": sums.pop("count"), **sums}
        if not train:
            outputs["detections"] = jax.vmap(
                partial(
                    select_detections,
                    score_thresh=self.box_score_thresh,
                    nms_thresh=self.box_nms_thresh,
                    detections_per_img=self.box_detections_per_img,
                )
            )(*classify(proposals), proposals, valid, image_size)
        return outputs

    def _features(self, images: jax.Array, train: bool) -> list[jax.Array]:
        """The maps that the proposals are made from, finest first."""
        if images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(f"pictures are {images.shape[1]}x{images.shape[2]}; both sides must be multiples of 32")
        maps = self._backbone(last="C5" if self.neck == "fpn" else "C4")(images.astype(self.dtype), train)
        maps = {tap: maps[tap] for tap in maps if tap >= FINEST_TAP}
        return FeaturePyramid(self.fpn_channels, self.dtype, name="fpn")(maps) if self.neck != "c4" else [maps["C4"]]

    def _backbone(self, last: str) -> nn.Module:
        """The network that makes the maps up to tap `last`."""
        if self.backbone_name not in BACKBONES:
            raise ValueError(f"unknown backbone {self.backbone_name!r}; known are {', '.join(BACKBONES)}")
        if self.neck == "c4" and BACKBONES[self.backbone_name] is None:
            raise ValueError(f"neck 'c4' takes a ResNet's last stage as its head, which {self.backbone_name} has not")
        shared = {"last": last, "bn_epsilon": self.bn_epsilon, "dtype": self.dtype, "name": "backbone"}
        if self.backbone_name == "mobilenet_v2":
            return MobileNetV2Backbone(**shared)
        return ResNetBackbone(BACKBONES[self.backbone_name], stride_in_1x1=self.stride_in_1x1, **shared)

    def _box_classifier(self, features: list[jax.Array], train: bool):
        """The function rois [B, R, 4] -> class logits [B, R, K + 1] and offsets [B, R, K + 1, 4]."""
        if self.neck != "c4":
            features, output_size = features[:-1], POOLED_SIDE  # no RoI is pooled from "pool"
            strides = [FINEST_STRIDE * 2**level for level in range(len(features))]
            head = TwoMLPHead(self.box_representation_size, self.dtype, name="box_head")
        else:
            output_size, strides = 2 * POOLED_SIDE, [16]
            head = Res5Head(
                BACKBONES[self.backbone_name], self.stride_in_1x1, self.bn_epsilon, self.dtype, name="box_head"
            )
        predictor = BoxPredictor(self.num_classes, name="box_predictor")

        def classify(rois: jax.Array) -> tuple[jax.Array, jax.Array]:
            levels = roi_levels(rois, len(features), FINEST_LEVEL, self.box_canonical_size, self.box_canonical_level)
            pooled = roi_align(features, strides, rois, levels, output_size, aligned=self.box_roi_aligned)
            outputs = predictor(head(pooled.reshape(-1, *pooled.shape[2:]), train))
            return tuple(x.reshape(*rois.shape[:2], *x.shape[1:]) for x in outputs)

        return classify

    def _rpn_losses(self, key, objectness, offsets, anchors, boxes, box_mask, ignore) -> dict[str, jax.Array]:
        """Sums over the samples of each picture, [B]."""
        objectness, offsets, anchors = (
            jnp.concatenate(objectness, 1),
            jnp.concatenate(offsets, 1),
            jnp.concatenate(anchors),
        )
        losses = partial(
            rpn_losses,
            fg_iou_thresh=self.rpn_fg_iou_thresh,
            bg_iou_thresh=self.rpn_bg_iou_thresh,
            batch_size_per_image=self.rpn_batch_size_per_image,
            positive_fraction=self.rpn_positive_fraction,
        )
        priority = sampling_priorities(key, objectness.shape)
        sums = jax.vmap(losses, (0, 0, 0, None, 0, 0, 0))(
            priority, objectness, offsets, anchors, boxes, box_mask, ignore
        )
        return {"rpn_count": sums.pop("count"), **sums}

    def _samples(self, key, proposals, valid, batch) -> dict[str, jax.Array]:
        """The proposals to learn from, with B in front."""
        count = proposals.shape[1] + batch["boxes"].shape[1]
        sample = partial(
            sample_proposals,
            fg_iou_thresh=self.box_fg_iou_thresh,
            bg_iou_thresh=self.box_bg_iou_thresh,
            batch_size_per_image=self.box_batch_size_per_image,
            positive_fraction=self.box_positive_fraction,
        )
        truth = (batch[name] for name in ("boxes", "label", "box_mask", "ignore"))
        return jax.vmap(sample)(sampling_priorities(key, (len(proposals), count)), proposals, valid, *truth)


def sampling_priorities(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """matching.sampling_priority for each picture of a batch: [B, A]."""
    batch, count = shape
    return jax.vmap(lambda key: matching.sampling_priority(key, count))(jax.random.split(key, batch))
