"""Images, weights and samples of feature maps for the reference scripts and for the tests."""

import math
import zlib

import numpy as np

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def images():
    """Return two normalized RGB images of noisy patches, float32 [2, 66, 90, 3]; some feature maps have odd sides."""
    rng = np.random.default_rng(0)
    patches = np.kron(rng.integers(30, 220, (2, 11, 15, 3)), np.ones((1, 6, 6, 1), np.int64))
    pixels = (patches + rng.integers(-20, 21, patches.shape)).astype(np.float32)
    return (pixels / 255.0 - IMAGENET_MEAN) / IMAGENET_STD


def random_weights(shapes):
    """Return random float32 arrays for {name: shape}, seeded by name; names are PyTorch's, Keras' or ours."""
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


def folded_weights(shapes):
    """random_weights of convolutions followed by ReLU6 whose features keep their size, for pixels in [-128, 127]."""
    weights = random_weights(shapes)
    for name, value in weights.items():
        if value.ndim > 1:
            value *= math.sqrt(2) / (64 if name.startswith("stem") else 1)
    return weights


def identity_weights(shapes):
    """random_weights of a MobileFaceNet: slopes of its PReLUs below 1, features that keep their size."""
    weights = random_weights(shapes)
    for name, value in weights.items():
        if name.endswith(".act.weight"):
            value *= 0.25
    return weights


def sample(features):
    """Return a part of a feature map [B, H, W, C] that is small enough for a reference file."""
    _, height, width, _ = features.shape
    return features[:, :: max(1, height // 2), :: max(1, width // 3), ::5]


# --- the detector

DETECTOR = {
    "anchor_sizes": ((8,), (16,), (32,), (64,), (128,)),
    "aspect_ratios": (0.5, 1.0, 2.0),
    "rpn": {
        "pre_nms_top_n_train": 200,
        "pre_nms_top_n_test": 150,
        "post_nms_top_n_train": 120,
        "post_nms_top_n_test": 100,
        "batch_size_per_image": 64,
    },
    "box": {"batch_size_per_image": 48, "detections_per_img": 40},
}
"""Fields of config.model; where it states none, its values are torchvision's."""
CASES = ("two images, one without faces", "three sizes")


def detector_inputs(case):
    """Return images, uint8 [H, W, 3], and for each its boxes float32 [N, 4] and labels int32 [N] of two classes."""
    sizes = (((128, 160), (96, 150)), ((96, 96), (128, 64), (70, 128)))[CASES.index(case)]
    rng = np.random.default_rng(CASES.index(case))
    images, truths = [], []
    for i, (height, width) in enumerate(sizes):
        patches = np.kron(rng.integers(30, 220, (height // 8 + 1, width // 8 + 1, 3)), np.ones((8, 8, 1), np.int64))
        noisy = patches[:height, :width] + rng.integers(-20, 21, (height, width, 3))
        images.append(noisy.astype(np.uint8))
        count = 0 if (case, i) == (CASES[0], 1) else 4
        corners = rng.uniform(0, 0.6, (count, 2)) * (width, height)
        boxes = np.concatenate([corners, corners + rng.uniform(6, 0.4 * min(height, width), (count, 2))], -1)
        truths.append((boxes.astype(np.float32), rng.integers(0, 2, count).astype(np.int32)))
    return images, truths


def detector_weights(shapes):
    """Return random_weights scaled so that outputs are as large as a trained detector's."""
    weights = random_weights(shapes)
    for name, value in weights.items():
        if name.endswith("bbox_pred.weight"):
            value *= 0.2
        elif "cls" in name and name.endswith("weight"):
            value *= 2.0
    return weights


def gradient_direction(name, shape):
    """Return a random direction, seeded by name, of length about 1, float32."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (rng.standard_normal(shape) / math.sqrt(math.prod(shape))).astype(np.float32)


def gradient_figures(gradient, direction):
    """Return the norm of a gradient and its product with a direction, float64 [2]."""
    gradient, direction = (np.asarray(x, np.float64).reshape(-1) for x in (gradient, direction))
    return np.array([np.linalg.norm(gradient), gradient @ direction])
