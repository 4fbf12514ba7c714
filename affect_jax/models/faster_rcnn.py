"""Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) on a ResNet or MobileNetV2 with a pyramid, or on YuNet.

B batch, H W height, width, N ground-truth boxes (padded). The parts are torchvision's, and so are the names of fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.models.fpn import FeaturePyramid
from affect_jax.models.mobilenet import MobileNetV2Backbone
from affect_jax.models.resnet import ResNetBackbone
from affect_jax.models.roi_heads import BoxPredictor, MLPHead, RoIHeads
from affect_jax.models.rpn import Proposals, RegionProposalNetwork, RPNHead
from affect_jax.models.yunet import YuNetBackbone, YuNetPyramid, YuNetRPNHead
from affect_jax.ops.matching import GroundTruth

FINEST_TAP = "C2"
"""Feature map of the backbone that the finest map of a pyramid is made from."""
BACKBONES = {"mobilenet_v2": None, "resnet18": 18, "resnet34": 34, "resnet50": 50, "yunet_n": None}
"""Depth of a ResNet by name of the backbone; None for another network."""
ROI_STRIDES = {"fpn": (4, 8, 16, 32), "fpn_c4": (4, 8, 16), "yunet": (4, 8, 16, 32)}
"""Pixels between the cells of the maps that RoIs are pooled from, finest first, by neck."""


class FasterRCNN(nn.Module):
    """Detector of `num_classes` classes: images and, if present, their ground-truth boxes -> detections and losses.

    Defaults are in affect_jax.config.detection_config. `backbone_name` is a key of BACKBONES; stride_in_1x1 is for a
    ResNet, see ResidualBlock. `neck` is "fpn", "fpn_c4" (a pyramid without C5) or "yunet" (the pyramid of "yunet_n",
    and its head as that of the RPN). fpn_channels are those of "fpn" and "fpn_c4". anchor_sizes holds the sizes of each
    level, pixels: five levels of "fpn" (P2 to P5 and "pool"), four of "fpn_c4", three of "yunet" (P3 to P5). `rpn`
    holds the fields of RegionProposalNetwork; `box` those of RoIHeads, and representation_size, layers and units of
    MLPHead.
    """

    num_classes: int
    backbone_name: str
    neck: str
    stride_in_1x1: bool
    bn_epsilon: float
    fpn_channels: int
    anchor_sizes: Sequence[Sequence[float]]
    aspect_ratios: Sequence[float]
    rpn: Mapping[str, float]
    box: Mapping[str, float]
    dtype: jnp.dtype = jnp.float32

    padding = MobileNetV2Backbone.padding  # not a field, but check_options compares it with the weights'

    def setup(self):
        """Build the parts. Heads are children of the detector, so that weights have the names of torchvision."""
        self.backbone = self._backbone()
        shared = {"bn_epsilon": self.bn_epsilon, "dtype": self.dtype}
        if self.neck == "yunet":
            self.fpn = YuNetPyramid(**shared)
            self.rpn_head = YuNetRPNHead(**shared)
        else:
            self.fpn = FeaturePyramid(self.fpn_channels, self.dtype)
            self.rpn_head = RPNHead(len(self.anchor_sizes[0]) * len(self.aspect_ratios), self.dtype)
        self.proposal_network = RegionProposalNetwork(self.rpn_head, self.anchor_sizes, self.aspect_ratios, **self.rpn)
        fields = dict(self.box)
        of_head = {name: fields.pop(name) for name in ("representation_size", "layers", "units")}
        self.box_head = MLPHead(**of_head, **shared)
        self.box_predictor = BoxPredictor(self.num_classes)
        self.roi_heads = RoIHeads(self.box_head, self.box_predictor, ROI_STRIDES[self.neck], **fields)

    def __call__(self, batch: Mapping[str, jax.Array], train: bool) -> dict[str, Any]:
        """Return "losses", if the batch has boxes, and, if not in training, "detections" and "left_out".

        losses: torchvision's four, each as its sum over samples of an image and the count of these: see rpn_losses and
        box_losses. detections: see select_detections. left_out: see Proposals. Every array has B in front.

        batch: image [B, H, W, 3], normalized, zeros outside image_size [B, 2] (height, width); for losses also boxes
        [B, N, 4], label int [B, N], box_mask and ignore bool [B, N]. H and W are multiples of 32.
        """
        images, image_size = batch["image"], batch["image_size"]
        truth = None
        if "boxes" in batch:
            truth = GroundTruth(batch["boxes"], batch["label"], batch["box_mask"], batch["ignore"])
        if images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(f"images are {images.shape[1]}x{images.shape[2]}; both sides must be multiples of 32")
        maps = self.backbone(images.astype(self.dtype), train)
        anchor_maps = self._anchor_maps(maps, train)
        proposals, rpn_losses = self.proposal_network(anchor_maps, images.shape[1:3], image_size, truth, train)
        if self.neck == "yunet":
            if truth is None and not train and not self.is_initializing() and self.box["rois_at_once"]:
                detections = self._detect(maps["C2"], anchor_maps, proposals, image_size)
                return {"detections": detections, "left_out": proposals.left_out}
            roi_maps = [self.fpn.finest(maps["C2"], anchor_maps[0], train), *anchor_maps]
        else:
            roi_maps = anchor_maps[: len(ROI_STRIDES[self.neck])]  # no RoI is pooled from "pool"
        detections, box_losses = self.roi_heads(roi_maps, proposals, image_size, truth, train)
        losses = {} if truth is None else {"losses": rpn_losses | box_losses}
        return losses | ({} if train else {"detections": detections, "left_out": proposals.left_out})

    def _anchor_maps(self, maps: Mapping[str, jax.Array], train: bool) -> list[jax.Array]:
        """Return the maps that anchors are on, finest first."""
        if self.neck == "yunet":
            return self.fpn(maps, train)
        return self.fpn({tap: maps[tap] for tap in maps if tap >= FINEST_TAP})

    def _detect(
        self, c2: jax.Array, coarse: list[jax.Array], proposals: Proposals, image_size: jax.Array
    ) -> dict[str, jax.Array]:
        """Return the detections; P2, the finest map, is computed only if an RoI is pooled from it.

        It takes a sixth of the time of a search. Images whose faces are all large do not need it. With rois_at_once 0,
        which does the same for every image, it is always computed, without this function.
        """

        def with_finest(module: "FasterRCNN", c2: jax.Array, coarse: list[jax.Array], *rest) -> dict[str, jax.Array]:
            roi_maps = [module.fpn.finest(c2, coarse[0], False), *coarse]
            return module.roi_heads(roi_maps, *rest, None, False)[0]

        def without_finest(module: "FasterRCNN", c2: jax.Array, coarse: list[jax.Array], *rest) -> dict[str, jax.Array]:
            return module.roi_heads(coarse, *rest, None, False)[0]

        needed = self.roi_heads.needs_finest(proposals)
        return nn.cond(needed, with_finest, without_finest, self, c2, coarse, proposals, image_size)

    def _backbone(self) -> nn.Module:
        """Return the backbone up to the last feature map that the neck needs."""
        if self.backbone_name not in BACKBONES:
            raise ValueError(f"unknown backbone {self.backbone_name!r}; known are {', '.join(BACKBONES)}")
        if (self.neck == "yunet") != (self.backbone_name == "yunet_n"):
            raise ValueError(f"neck {self.neck!r} does not fit {self.backbone_name}: 'yunet' is for yunet_n only")
        shared = {"bn_epsilon": self.bn_epsilon, "dtype": self.dtype}
        if self.backbone_name == "yunet_n":
            return YuNetBackbone(**shared)
        shared["last"] = "C5" if self.neck == "fpn" else "C4"
        if self.backbone_name == "mobilenet_v2":
            return MobileNetV2Backbone(**shared)
        return ResNetBackbone(BACKBONES[self.backbone_name], stride_in_1x1=self.stride_in_1x1, **shared)
