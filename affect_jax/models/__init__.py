"""Networks by name: flax modules, called as `model(x, train)` with x float [B, H, W, C], normalized."""

import importlib

from flax import linen as nn

# Imported when used, so that the imports of a network do not slow down the others.
MODELS = {
    "faster_rcnn": "affect_jax.models.faster_rcnn:FasterRCNN",
    "mobilefacenet": "affect_jax.models.mobilefacenet:MobileFaceNet",
    "mobilenet_v1": "affect_jax.models.mobilenet_v1:MobileNetV1",
    "mobilenet_v2": "affect_jax.models.mobilenet:MobileNetV2",
    "mobilenet_v2_cnn": "affect_jax.models.mobilenet:MobileNetV2CNN",
    "resnet18": "affect_jax.models.resnet:resnet18",
    "resnet34": "affect_jax.models.resnet:resnet34",
    "resnet50": "affect_jax.models.resnet:resnet50",
    "vgg_fer": "affect_jax.models.vgg:VGGFER",
}


def build_model(name: str, **options) -> nn.Module:
    """Return the network `name` with these fields (num_classes, dtype, its own); ValueError for unknown names."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known are {', '.join(sorted(MODELS))}")
    module, attribute = MODELS[name].split(":")
    network = getattr(importlib.import_module(module), attribute)
    try:
        return network(**options)
    except TypeError as error:  # a field of another network
        raise ValueError(
            f"the fields of config.model are not those of {name}, choose a config of it: {error}"
        ) from None
