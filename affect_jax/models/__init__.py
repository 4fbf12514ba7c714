"""Networks by name; each is a flax module called as `model(x, train)`, x float [B, H, W, C], normalized."""

import importlib

from flax import linen as nn

# A name is imported when it is asked for, so that a network's own needs burden nobody else.
MODELS = {
    "faster_rcnn": "affect_jax.models.faster_rcnn:FasterRCNN",
    "mobilenet_v1": "affect_jax.models.mobilenet_v1:MobileNetV1",
    "mobilenet_v2": "affect_jax.models.mobilenet:MobileNetV2",
    "mobilenet_v2_cnn": "affect_jax.models.mobilenet:MobileNetV2CNN",
    "resnet18": "affect_jax.models.resnet:resnet18",
    "resnet34": "affect_jax.models.resnet:resnet34",
    "resnet50": "affect_jax.models.resnet:resnet50",
    "vgg_fer": "affect_jax.models.vgg:VGGFER",
}


def build_model(name: str, **options) -> nn.Module:
    """The network called `name`, with its options (num_classes, dtype, its own); ValueError on an unknown name."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known are {', '.join(sorted(MODELS))}")
    module, attribute = MODELS[name].split(":")
    return getattr(importlib.import_module(module), attribute)(**options)
