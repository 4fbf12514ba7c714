"""Writes mobilefacenet.npz: features of MobileFaceNet in torch, with BatchNorm and with BatchNorm folded.

    pip install torch==2.13.0 safetensors
    python make_mobilefacenet_reference.py DIRECTORY_OF_MOBILEFACENETS

Input is R, G, B: (pixel - 127.5) / 128. The weights are those of the files, or random ones of deterministic.py.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from deterministic import IMAGENET_MEAN, IMAGENET_STD, identity_weights, images, sample
from safetensors.torch import load_file
from torch.nn import functional

HERE = Path(__file__).parent
STRIDES = (2, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1)


def same_padding(size, kernel, stride):
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return [total // 2, total - total // 2]


def layer(weights, name, x, stride=1):
    """Convolution, BatchNorm if the file has it, and PReLU; ReLU where the file has no slopes."""
    kernel, bias = weights[f"{name}.conv.weight"], weights.get(f"{name}.conv.bias")
    groups = 1 if kernel.shape[1] == x.shape[1] else x.shape[1]
    if bias is None:
        x = functional.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=groups)
        mean, var, scale, shift = (
            weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = functional.batch_norm(x, mean, var, scale, shift, eps=1e-3)
    else:
        padding = [side for size in (x.shape[3], x.shape[2]) for side in same_padding(size, kernel.shape[-1], stride)]
        x = functional.conv2d(functional.pad(x, padding), kernel, bias, stride, groups=groups)
    if name.endswith(("project", "stem_pw")):
        return x
    slopes = weights.get(f"{name}.act.weight")
    return functional.relu(x) if slopes is None else functional.prelu(x, slopes)


def features(weights):
    """{tap: NumPy array, NHWC} of the images."""
    pixels = (images() * IMAGENET_STD + IMAGENET_MEAN) * 255
    x = torch.from_numpy((pixels - 127.5) / 128).permute(0, 3, 1, 2)
    found = {}
    x = layer(weights, "stem_dw", layer(weights, "stem", x, 2))
    if "stem_pw.conv.weight" in weights:
        x = layer(weights, "stem_pw", x)
    for block, stride in enumerate(STRIDES):
        name = f"blocks.{block}"
        y = layer(weights, f"{name}.depthwise", layer(weights, f"{name}.expand", x), stride)
        y = layer(weights, f"{name}.project", y)
        x = x + y if x.shape == y.shape else y
        found[f"block{block}"] = x
    found["head_prelu"] = layer(weights, "head", x)
    return {tap: found[tap].permute(0, 2, 3, 1).numpy() for tap in ("block0", "block5", "block14", "head_prelu")}


def main(directory):
    files = {
        name: load_file(directory / f"mobilefacenet_{name}.safetensors") for name in ("ms1m", "sirius", "affectnet")
    }
    for random, file in (("random", "ms1m"), ("random_folded", "sirius")):
        shapes = {name: tuple(value.shape) for name, value in files[file].items()}
        files[random] = {name: torch.from_numpy(value) for name, value in identity_weights(shapes).items()}
    arrays = {}
    for network, weights in files.items():
        for tap, value in features(weights).items():
            print(network, tap, value.shape, f"mean {value.mean():.3g}, largest {np.abs(value).max():.3g}")
            arrays[f"{network}/{tap}"] = sample(value)
    np.savez_compressed(HERE / "mobilefacenet.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
