"""Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) on a ResNet or MobileNetV2, with a pyramid or on C4, or on YuNet.

B batch, H W height, width, N ground-truth boxes (padded). The parts are torchvision's, and so are the names of fields.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.models.fpn import FeaturePyramid
from affect_jax.models.mobilenet import MobileNetV2Backbone
from affect_jax.models.resnet import ResNetBackbone
from affect_jax.models.roi_heads import RES5_SIDE, BoxPredictor, MLPHead, Res5Head, RoIHeads
from affect_jax.models.rpn import RegionProposalNetwork, RPNHead
from affect_jax.models.yunet import YuNetBackbone, YuNetPyramid, YuNetRPNHead
from affect_jax.ops.matching import GroundTruth

FINEST_TAP = "C2"
"""Feature map of the backbone that the finest map of a pyramid is made from."""
BACKBONES = {"mobilenet_v2": None, "resnet18": 18, "resnet34": 34, "resnet50": 50, "yunet_n": None}
"""Depth of a ResNet by name of the backbone; None for another network."""
ANCHOR_STRIDES = {"fpn": (4, 8, 16, 32, 64), "fpn_c4": (4, 8, 16, 32), "c4": (16,), "yunet": (8, 16, 32)}
"""Pixels between the cells of the maps that anchors are on, finest first, by neck."""
ROI_STRIDES = {"fpn": (4, 8, 16, 32), "fpn_c4": (4, 8, 16), "c4": (16,), "yunet": (4, 8, 16, 32)}
"""The same of the maps that RoIs are pooled from."""


class FasterRCNN(nn.Module):
    """Detector of `num_classes` classes: images and, if present, their ground-truth boxes -> detections and losses.

    Defaults are in affect_jax.config.detection_config. `backbone_name` is a key of BACKBONES; stride_in_1x1 is for a
    ResNet, see ResidualBlock. `neck` is "fpn", "fpn_c4" (a pyramid without C5), "c4" (no pyramid; a ResNet's last
    stage is the box head) or "yunet" (the pyramid of "yunet_n", and its head as that of the RPN). fpn_channels are
    those of "fpn" and "fpn_c4". anchor_sizes holds the sizes of each level, pixels: five levels of "fpn" (P2 to P5 and
    "pool"), four of "fpn_c4", one of "c4", three of "yunet" (P3 to P5). `rpn` holds the fields of
    RegionProposalNetwork; `box` those of RoIHeads, and representation_size, layers and units of MLPHead.
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

    @nn.compact
    def __call__(self, batch: Mapping[str, jax.Array], train: bool) -> dict[str, dict[str, jax.Array]]:
        """Return "losses", if the batch has boxes, and "detections", if not in training; every array has B in front.

        losses: sums over the samples of each image, "objectness" and "rpn_box_reg" of "rpn_count" anchors, "classifier"
        and "box_reg" of "roi_count" RoIs. detections: see select_detections.

        batch: image [B, H, W, 3], normalized, zeros outside image_size [B, 2] (height, width); for losses also boxes
        [B, N, 4], label int [B, N], box_mask and ignore bool [B, N]. H and W are multiples of 32.
        """
        images, image_size = batch["image"], batch["image_size"]
        truth = None
        if "boxes" in batch:
            truth = GroundTruth(batch["boxes"], batch["label"], batch["box_mask"], batch["ignore"])
        anchor_maps, roi_maps = self._maps(images, train)
        proposals, rpn_losses = self._rpn()(anchor_maps, images.shape[1:3], image_size, truth, train)
        detections, box_losses = self._roi_heads()(roi_maps, proposals, image_size, truth, train)
        outputs = {"losses": rpn_losses | box_losses, "detections": detections}
        return {name: values for name, values in outputs.items() if values}

    def _maps(self, images: jax.Array, train: bool) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return the maps that anchors are on, and those that RoIs are pooled from, finest first."""
        if images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(f"images are {images.shape[1]}x{images.shape[2]}; both sides must be multiples of 32")
        maps = self._backbone()(images.astype(self.dtype), train)
        if self.neck == "c4":
            return [maps["C4"]], [maps["C4"]]
        if self.neck == "yunet":
            shared = {"bn_epsilon": self.bn_epsilon, "dtype": self.dtype}
            pyramid = YuNetPyramid(**shared, name="fpn")(maps, train)
            return pyramid[1:], pyramid  # P2 has no anchors
        maps = {tap: maps[tap] for tap in maps if tap >= FINEST_TAP}
        pyramid = FeaturePyramid(self.fpn_channels, self.dtype, name="fpn")(maps)
        return pyramid, pyramid[:-1]  # no RoI is pooled from "pool"

    def _backbone(self) -> nn.Module:
        """Return the backbone up to the last feature map that the neck needs."""
        if self.backbone_name not in BACKBONES:
            raise ValueError(f"unknown backbone {self.backbone_name!r}; known are {', '.join(BACKBONES)}")
        if self.neck == "c4" and BACKBONES[self.backbone_name] is None:
            raise ValueError(f"neck 'c4' needs the last stage of a ResNet as box head; {self.backbone_name} has none")
        if (self.neck == "yunet") != (self.backbone_name == "yunet_n"):
            raise ValueError(f"neck {self.neck!r} does not fit {self.backbone_name}: 'yunet' is for yunet_n only")
        shared = {"bn_epsilon": self.bn_epsilon, "dtype": self.dtype, "name": "backbone"}
        if self.backbone_name == "yunet_n":
            return YuNetBackbone(**shared)
        shared["last"] = "C5" if self.neck == "fpn" else "C4"
        if self.backbone_name == "mobilenet_v2":
            return MobileNetV2Backbone(**shared)
        return ResNetBackbone(BACKBONES[self.backbone_name], stride_in_1x1=self.stride_in_1x1, **shared)

    def _rpn(self) -> RegionProposalNetwork:
        """Return the region proposal network; its head is a child of the detector, so that weights keep their names."""
        if self.neck == "yunet":
            head = YuNetRPNHead(self.bn_epsilon, self.dtype, name="rpn_head")
        else:
            head = RPNHead(len(self.anchor_sizes[0]) * len(self.aspect_ratios), self.dtype, name="rpn_head")
        return RegionProposalNetwork(head, self.anchor_sizes, self.aspect_ratios, **self.rpn, name="rpn")

    def _roi_heads(self) -> RoIHeads:
        """Return the RoI heads; head and predictor are children of the detector, so that weights keep their names."""
        fields = dict(self.box)
        of_head = [fields.pop(name) for name in ("representation_size", "layers", "units")]
        if self.neck == "c4":
            fields["pooled_side"] = RES5_SIDE
            depth = BACKBONES[self.backbone_name]
            head = Res5Head(depth, self.stride_in_1x1, self.bn_epsilon, self.dtype, name="box_head")
        else:
            head = MLPHead(*of_head, self.bn_epsilon, self.dtype, name="box_head")
        predictor = BoxPredictor(self.num_classes, name="box_predictor")
        return RoIHeads(head, predictor, ROI_STRIDES[self.neck], **fields, name="roi_heads")
