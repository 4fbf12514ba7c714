"""Writes mobilenet_v1.npz: features of a MobileNetV1 in torch with BatchNorm folded and TensorFlow's SAME padding.

    pip install torch==2.13.0 safetensors
    python make_mobilenet_v1_reference.py DIRECTORY_OF_MOBILENET_V1_VGGFACE2

Input is B, G, R in [0, 255] less a mean. The weights are those of the file, or random ones of deterministic.py.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from deterministic import IMAGENET_MEAN, IMAGENET_STD, folded_weights, images, sample
from safetensors.torch import load_file

HERE = Path(__file__).parent
MEAN_BGR = (103.939, 116.779, 123.68)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def same_padding(size, kernel, stride):
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return [total // 2, total - total // 2]


def conv(weights, name, x, stride=1):
    kernel, bias = weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"]
    groups = 1 if kernel.shape[1] == x.shape[1] else x.shape[1]
    padding = [side for size in (x.shape[3], x.shape[2]) for side in same_padding(size, kernel.shape[-1], stride)]
    x = torch.nn.functional.conv2d(torch.nn.functional.pad(x, padding), kernel, bias, stride, groups=groups)
    return torch.nn.functional.relu6(x)


def features(weights):
    """{tap: NumPy array, NHWC} of the images."""
    pixels = (images() * IMAGENET_STD + IMAGENET_MEAN) * 255
    x = torch.from_numpy(pixels[..., ::-1] - np.array(MEAN_BGR, np.float32)).permute(0, 3, 1, 2)
    found = {}
    x = conv(weights, "stem", x, 2)
    for block, stride in enumerate(STRIDES):
        x = conv(weights, f"blocks.{block}.depthwise", x, stride)
        x = conv(weights, f"blocks.{block}.pointwise", x)
        found[f"block{block}"] = x.permute(0, 2, 3, 1).numpy()
    return {tap: found[tap] for tap in ("block0", "block5", "block12")}


def main(directory):
    trained = load_file(directory / "mobilenet_v1_vggface2.safetensors")
    shapes = {name: tuple(value.shape) for name, value in trained.items()}
    drawn = {name: torch.from_numpy(value) for name, value in folded_weights(shapes).items()}
    arrays = {}
    for network, weights in (("random", drawn), ("vggface2", trained)):
        for tap, value in features(weights).items():
            print(network, tap, value.shape, f"mean {value.mean():.3g}, share at 6: {(value == 6).mean():.3g}")
            arrays[f"{network}/{tap}"] = sample(value)
    np.savez_compressed(HERE / "mobilenet_v1.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
