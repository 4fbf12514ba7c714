"""Faster R-CNN on a backbone of three convolutions, and a config that trains it: few layers compile in seconds.

test_faster_rcnn.py tests the published backbones. A script loads both from a config file; see processes.py.
"""

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from affect_jax.config import detection_config
from affect_jax.models import MODELS
from affect_jax.models.faster_rcnn import FasterRCNN
from affect_jax.models.layers import BatchNorm, Conv

MODELS["tiny_faster_rcnn"] = "tiny_detector:TinyFasterRCNN"


class TinyBackbone(nn.Module):
    """Convolutions with BatchNorm. x [B, H, W, 3] -> maps C2 to C4 of strides 4 to 16, {name: [B, H', W', C]}."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        maps = {}
        for tap, channels, stride in (("C2", 8, 4), ("C3", 16, 2), ("C4", 32, 2)):
            x = Conv(channels, strides=(stride, stride), use_bias=False, name=f"conv_{tap}")(x)
            x = maps[tap] = nn.relu(BatchNorm(name=f"bn_{tap}")(x, not train))
        return maps


class TinyFasterRCNN(FasterRCNN):
    """The detector with TinyBackbone, whatever `backbone_name` says."""

    def _backbone(self) -> nn.Module:
        return TinyBackbone(name="backbone")


def get_config() -> ConfigDict:
    """Return the config of six steps on few small drawn scenes, with every change of images switched on."""
    config = detection_config()
    config.data.name = "drawn_scenes"
    config.data.options = {"num_examples": {"train": 12, "val": 4, "test": 4}, "image_size": (96, 128)}
    config.data.buckets = ((96, 128),)
    config.data.max_boxes = 8
    config.model.name = "tiny_faster_rcnn"
    config.model.neck, config.model.anchor_sizes = "fpn_c4", config.model.anchor_sizes[:4]
    config.model.fpn_channels = config.model.box.representation_size = 16
    for part in (config.model.rpn, config.model.box):
        part.update({name: 64 for name in part if "nms_top_n" in name or name.endswith("per_image")})
    config.batch_size = config.eval_batch_size = 2
    config.total_epochs = 1.0
    config.eval_every_epochs = 0.5
    config.log_every_steps = 1
    config.optim.learning_rate = 0.01
    config.transform.scale_range = (0.8, 2.0)
    config.transform.min_face = 4.0
    config.transform.horizontal_flip = True
    for change in ("low_light", "blur", "equalize", "clahe"):
        config.transform[f"{change}_probability"] = 0.5
    config.transform.brightness = config.transform.contrast = 0.1
    return config
