"""MobileNetV1 (Howard et al. 2017, arXiv:1704.04861): depthwise separable convolutions without shortcuts.

B batch, H W C height, width, channels, K classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.models.inputs import rgb_input
from affect_jax.models.mobilenet import ConvBN, classifier_init, scaled_channels

BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)
"""Channels and stride of each block: the paper's table 1."""


class SeparableConv(nn.Module):
    """3x3 depthwise and 1x1 convolution, BatchNorm and ReLU6 after each (section 3.1)."""

    features: int
    stride: int
    bn_epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return features [B, H / stride, W / stride, features] of x [B, H, W, C]; sides round up."""
        shared = {"bn_epsilon": self.bn_epsilon, "dtype": self.dtype}
        channels = x.shape[-1]
        x = ConvBN(channels, 3, self.stride, "SAME", groups=channels, **shared, name="depthwise")(x, train)
        return ConvBN(self.features, **shared, name="pointwise")(x, train)


class MobileNetV1Backbone(nn.Module):
    """The convolutions of MobileNetV1: x [B, H, W, 3] -> [B, H / 32, W / 32, 1024 * width_multiplier]; sides round up.

    Padding is TensorFlow's SAME: an even side is padded at its end only.
    """

    width_multiplier: float = 1.0
    bn_epsilon: float = 1e-3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the features of x."""
        shared = {"bn_epsilon": self.bn_epsilon, "dtype": self.dtype}
        x = ConvBN(scaled_channels(32, self.width_multiplier), 3, 2, "SAME", **shared, name="stem")(x, train)
        for block, (channels, stride) in enumerate(BLOCKS):
            width = scaled_channels(channels, self.width_multiplier)
            x = SeparableConv(width, stride, **shared, name=f"block{block}")(x, train)
        return x


class MobileNetV1(nn.Module):
    """MobileNetV1 as a classifier: x [B, H, W, 1 or 3] -> logits [B, K], float32 for every `dtype`.

    Global average pooling, dropout, one dense layer. `input_size` (height, width) resizes inside the network.
    4,231,976 parameters for 1000 classes.
    """

    num_classes: int
    width_multiplier: float = 1.0
    dropout: float = 0.2
    input_size: Sequence[int] = ()
    bn_epsilon: float = 1e-3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the logits of x; with `train`, BatchNorm uses the batch's statistics and dropout the rng `dropout`."""
        backbone = MobileNetV1Backbone(self.width_multiplier, self.bn_epsilon, self.dtype, name="backbone")
        x = backbone(rgb_input(x, self.input_size), train).mean((1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=classifier_init, name="classifier")(x)
