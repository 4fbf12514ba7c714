"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) as a backbone, as a classifier, and with blocks on top.

B batch, H W C height, width, channels, K classes.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.models.inputs import rgb_input
from affect_jax.models.layers import BatchNorm, Conv, norm_activation
from affect_jax.ops.conv import Padding

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and first stride of each stage of bottlenecks: the paper's table 2."""

TAPS = {"C1": 0, "C2": 2, "C3": 5, "C4": 12, "C5": 16, "head": 17}
"""Index of the block that returns each feature map: the deepest map of each stride, and the 1x1 `head`."""

classifier_init = nn.initializers.normal(0.01)


def scaled_channels(channels: int, width_multiplier: float) -> int:
    """Return `channels` times the multiplier as a multiple of 8, rounded down by a tenth at most."""
    exact = channels * width_multiplier
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


class ConvBN(nn.Module):
    """Convolution without bias, BatchNorm and, if `relu6`, ReLU6."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    padding: Padding = "VALID"
    groups: int = 1
    relu6: bool = True
    bn_epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return features [B, H', W', features] of x [B, H, W, C]."""
        kernel, strides = (self.kernel_size,) * 2, (self.stride,) * 2
        x = Conv(self.features, kernel, strides, self.padding, self.groups, False, dtype=self.dtype, name="conv")(x)
        norm = BatchNorm(epsilon=self.bn_epsilon, dtype=self.dtype, name="bn")
        return norm_activation(norm, x, train, nn.relu6) if self.relu6 else norm(x, not train)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise and linear 1x1 projection; a shortcut if the shapes are equal (section 3.3)."""

    features: int
    expansion: int
    stride: int
    padding: Padding
    bn_epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return features [B, H', W', features] of x [B, H, W, C]."""
        shared = {"bn_epsilon": self.bn_epsilon, "dtype": self.dtype}
        hidden = x.shape[-1] * self.expansion
        y = x
        if self.expansion != 1:
            y = ConvBN(hidden, **shared, name="expand")(y, train)
        y = ConvBN(hidden, 3, self.stride, self.padding, groups=hidden, **shared, name="depthwise")(y, train)
        y = ConvBN(self.features, relu6=False, **shared, name="project")(y, train)
        return x + y if y.shape == x.shape else y


class MobileNetV2Backbone(nn.Module):
    """Feature maps of MobileNetV2: x [B, H, W, 3] -> {name: [B, H / stride, W / stride, channels]}, up to `last`.

    Sides round up. The network has no layers after `last`. `padding` and `bn_epsilon` are torchvision's and timm's;
    weights trained in Keras need padding "SAME" (an even side is padded at its end only) and 1e-3.
    """

    width_multiplier: float = 1.0
    last: str = "head"
    padding: Padding = ((1, 1), (1, 1))
    bn_epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Return the feature maps of x by name."""
        if self.last not in TAPS:
            raise ValueError(f"unknown feature map {self.last!r} of MobileNetV2; known are {', '.join(TAPS)}")
        shared = {"bn_epsilon": self.bn_epsilon, "dtype": self.dtype}
        tap_after = {block: tap for tap, block in TAPS.items()}
        features = {}
        x = ConvBN(scaled_channels(32, self.width_multiplier), 3, 2, self.padding, **shared, name="stem")(x, train)
        blocks = [
            (expansion, channels, first_stride if repeat == 0 else 1)
            for expansion, channels, repeats, first_stride in STAGES
            for repeat in range(repeats)
        ]
        for block, (expansion, channels, stride) in enumerate(blocks[: TAPS[self.last] + 1]):
            width = scaled_channels(channels, self.width_multiplier)
            x = InvertedResidual(width, expansion, stride, self.padding, **shared, name=f"block{block}")(x, train)
            if block in tap_after:
                features[tap_after[block]] = x
        if self.last == "head":
            width = scaled_channels(1280, max(1.0, self.width_multiplier))
            features["head"] = ConvBN(width, **shared, name="head")(x, train)
        return features


class MobileNetV2(nn.Module):
    """MobileNetV2 as a classifier: x [B, H, W, 1 or 3] -> logits [B, K], float32 for every `dtype`.

    Global average pooling, dropout, one dense layer. `input_size` (height, width) resizes inside the network: faces of
    48 pixels should be enlarged to (96, 96) to profit from ImageNet weights. 3,504,872 parameters for 1000 classes.
    """

    num_classes: int
    width_multiplier: float = 1.0
    dropout: float = 0.2
    input_size: Sequence[int] = ()
    padding: Padding = ((1, 1), (1, 1))
    bn_epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the logits of x; `train` uses the batch's BatchNorm statistics and needs the rng "dropout"."""
        x = self._feature_map("head", x, train).mean((1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=classifier_init, name="classifier")(x)

    def _feature_map(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        """Return the feature map `name` of x."""
        backbone = MobileNetV2Backbone(
            self.width_multiplier, name, self.padding, self.bn_epsilon, self.dtype, name="backbone"
        )
        return backbone(rgb_input(x, self.input_size), train)[name]


class MobileNetV2CNN(MobileNetV2):
    """MobileNetV2 with convolutional blocks on top: x [B, H, W, 1 or 3] -> logits [B, K], float32 for every `dtype`.

    Blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max-pooling, then Dense-ReLU-dropout layers and logits. A pooling
    rounds up, and so does not change a map of one pixel.

    `attach` is the feature map that the blocks are on (TAPS); the network has no layers of MobileNetV2 after it. For a
    48-pixel face "head" is 2x2, so that only the first of four poolings has an effect; "C4" is 3x3, "C3" 6x6, and "C2"
    12x12, which is large enough for four poolings. With `input_size` (96, 96) "head" is 3x3, "C4" 6x6 and "C3" 12x12.
    """

    dropout: float = 0.5
    attach: str = "head"
    widths: Sequence[int] = (256, 256, 256, 256)
    dense: Sequence[int] = (512, 256)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the logits of x; `train` uses the batch's BatchNorm statistics and needs the rng "dropout"."""
        x = self._feature_map(self.attach, x, train)
        for block, width in enumerate(self.widths, start=1):
            x = Conv(width, use_bias=False, dtype=self.dtype, name=f"block{block}_conv")(x)
            x = norm_activation(BatchNorm(dtype=self.dtype, name=f"block{block}_bn"), x, train, nn.relu)
            x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for layer, width in enumerate(self.dense, start=1):
            x = nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name=f"dense{layer}")(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.Dense(self.num_classes, name="classifier")(x.astype(jnp.float32))
