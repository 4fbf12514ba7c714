"""Faster R-CNN with ResNet-50 and a feature pyramid on WIDER FACE; each image is darkened with probability 0.5.

    python scripts/prepare_data.py widerface --source=PATH
    python scripts/train.py --config=configs/widerface_rcnn.py --config.init_from=PATH/resnet50.safetensors
    python scripts/evaluate.py --workdir=runs/widerface_rcnn --dark

The checkpoint is selected by AP50 on WIDER FACE's validation images. `:two_cores` is ResNet-18 on small crops, from
random weights. `:demo` is the same on drawn scenes, a quarter of an hour on two cores. `:mobilenet` is MobileNetV2 from
ImageNet.
"""

from affect_jax.config import apply_variant, detection_config
from affect_jax.recipes import (
    AFTER_BACKBONE,
    adamw_linear,
    imagenet_resnet50_detector,
    imagenet_weights,
    sgd_linear,
    small_resnet18_detector,
)


def get_config(variant=""):
    config = detection_config()
    config.data.name = "widerface"
    config.data.buckets = ((640, 896), (896, 640))
    config.data.max_boxes = 200
    config.data.num_workers = 8
    config.total_epochs = 24.0
    config.batch_size = 8
    config.dtype = "bfloat16"
    imagenet_resnet50_detector(config)
    # faces are a third taller than wide; one size per level would cover only a twelfth of them at IoU 0.7, see
    # scripts/show_anchors.py
    config.model.anchor_sizes = (
        (6.0, 10.0, 16.0),
        (24.0, 34.0, 48.0),
        (68.0, 96.0, 136.0),
        (160.0, 200.0, 240.0),
        (280.0, 340.0, 400.0),
    )
    config.model.aspect_ratios = (1.3,)
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 0.0001
    config.optim.clip_norm = 10.0
    config.optim.schedule = "step"
    config.optim.warmup_epochs = 0.3
    config.optim.step_epochs = (16.0, 22.0)
    config.transform.scale_range = (0.5, 3.0)
    config.transform.min_face = 6.0
    config.transform.horizontal_flip = True
    config.transform.low_light_probability = 0.5
    config.transform.brightness = 0.1
    config.transform.contrast = 0.2
    return apply_variant(config, variant, {"two_cores": two_cores, "mobilenet": mobilenet, "demo": demo})


def two_cores(config):
    """Train ResNet-18 on crops."""
    small_resnet18_detector(config)
    config.data.buckets = ((320, 320),)
    config.data.eval_buckets = ((640, 896), (896, 640))
    config.data.max_boxes = 100
    config.model.box.canonical_size = 112.0
    sgd_linear(config, 0.02, weight_decay=0.0001)
    config.transform.scale_range = (1.0, 4.0)  # relative to the whole image in the bucket


def mobilenet(config):
    """Train MobileNetV2 from ImageNet with frozen BatchNorm; an image takes a sixth of ResNet-18's time."""
    two_cores(config)
    config.data.buckets = ((384, 384),)
    # small images in small buckets: the AP50 is the same and the time three fifths
    config.data.eval_buckets = ((768, 1024), (1024, 768), (576, 768), (768, 576))
    config.model.backbone_name = "mobilenet_v2"
    config.model.rpn.post_nms_top_n_test = 500
    imagenet_weights(config, "hf-hub:timm/mobilenetv2_100.ra_in1k", (AFTER_BACKBONE,))
    config.optim.freeze = ("backbone/(stem|block0)/.*", "backbone/.*/bn/.*")
    config.total_epochs = 15.0
    config.eval_every_epochs = 5.0
    adamw_linear(config, warmup_epochs=1.0)
    config.ema_decay = 0.998


def demo(config):
    """Train on drawn scenes, a third of them dark."""
    two_cores(config)
    config.data.name = "drawn_scenes"
    config.data.options = {"num_examples": {"train": 400, "val": 60, "test": 60}, "image_size": (256, 320)}
    config.data.buckets, config.data.eval_buckets = ((256, 320),), ()
    config.data.max_boxes = 16
    config.model.anchor_sizes = tuple((8.0 * 2**level,) for level in range(5))
    config.model.aspect_ratios = (0.5, 1.0, 2.0)
    config.total_epochs = 8.0
    config.transform.scale_range = ()
    config.transform.low_light_probability = 0.3
