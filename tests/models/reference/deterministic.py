"""Images, weights and samples of feature maps that are the same for the reference script and for the tests."""

import math
import zlib

import numpy as np

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def images():
    """Two normalized RGB images, float32 [2, 66, 90, 3]: noisy patches of colour. Some strides meet odd sides."""
    rng = np.random.default_rng(0)
    patches = np.kron(rng.integers(30, 220, (2, 11, 15, 3)), np.ones((1, 6, 6, 1), np.int64))
    pixels = (patches + rng.integers(-20, 21, patches.shape)).astype(np.float32)
    return (pixels / 255.0 - IMAGENET_MEAN) / IMAGENET_STD


def random_weights(shapes):
    """{name: float32 array} for {name: shape} in torch's, Keras' or our names, each drawn by its own name."""
    return {name: _random_weight(name, tuple(shape)) for name, shape in shapes.items()}


def _random_weight(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    kind = name.replace("/", ".").rpartition(".")[2]
    if len(shape) > 1:
        outputs = shape[0] if kind == "weight" else shape[-1] if shape[-1] > 1 else shape[-2]
        return (rng.standard_normal(shape) / math.sqrt(math.prod(shape) / outputs)).astype(np.float32)
    if kind in ("weight", "gamma", "scale", "running_var", "moving_variance", "var"):
        return rng.uniform(0.8, 1.6, shape).astype(np.float32)
    return (0.2 * rng.standard_normal(shape)).astype(np.float32)


def sample(features):
    """A part of a feature map [B, H, W, C] that is small enough to ship."""
    _, height, width, _ = features.shape
    return features[:, :: max(1, height // 2), :: max(1, width // 3), ::5]
