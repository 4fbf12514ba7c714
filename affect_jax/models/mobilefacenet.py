"""MobileFaceNet (Chen et al. 2018, arXiv:1804.07573): bottlenecks with PReLU at stride 16, made for face identities.

B batch, H W C height, width, channels, K classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.models.inputs import rgb_input
from affect_jax.models.mobilenet import ConvBN, classifier_init, scaled_channels
from affect_jax.ops.conv import Padding

STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
"""Expansion, channels, blocks and first stride of each stage of bottlenecks: the paper's table 1."""
BLOCKS = tuple(
    (expansion, channels, first_stride if repeat == 0 else 1)
    for expansion, channels, repeats, first_stride in STAGES
    for repeat in range(repeats)
)
"""Expansion, channels and stride of each block."""


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0) with a learned slope for each channel (He et al. 2015, arXiv:1502.01852)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the activation of x [..., C]."""
        slope = self.param("negative_slope", nn.initializers.constant(0.25), (x.shape[-1],), jnp.float32)
        # multiplied in float32: its gradient is a sum over all pixels, which bfloat16 cannot add
        return jnp.where(x >= 0, x, (slope * x).astype(x.dtype))


class Bottleneck(nn.Module):
    """1x1 expansion, 3x3 depthwise and linear 1x1 projection; a shortcut if the shapes are equal."""

    features: int
    expansion: int
    stride: int
    padding: Padding
    bn_epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return features [B, H / stride, W / stride, features] of x [B, H, W, C]; sides round up."""
        shared = {"relu6": False, "bn_epsilon": self.bn_epsilon, "dtype": self.dtype}
        hidden = x.shape[-1] * self.expansion
        y = PReLU(name="expand_prelu")(ConvBN(hidden, **shared, name="expand")(x, train))
        y = ConvBN(hidden, 3, self.stride, self.padding, groups=hidden, **shared, name="depthwise")(y, train)
        y = ConvBN(self.features, **shared, name="project")(PReLU(name="depthwise_prelu")(y), train)
        return x + y if y.shape == x.shape else y


class MobileFaceNetBackbone(nn.Module):
    """The convolutions of MobileFaceNet: x [B, H, W, 3] -> [B, H / 16, W / 16, 512 * width_multiplier]; sides round up.

    `stem_pointwise` adds a linear 1x1 convolution before the blocks, which some published networks have. `padding` is
    "SAME" (an even side is padded at its end only) for weights trained in TensorFlow.
    """

    width_multiplier: float = 1.0
    stem_pointwise: bool = False
    padding: Padding = ((1, 1), (1, 1))
    bn_epsilon: float = 1e-3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the features of x."""
        conv_bn = {"relu6": False, "bn_epsilon": self.bn_epsilon, "dtype": self.dtype}
        width = scaled_channels(64, self.width_multiplier)
        x = PReLU(name="stem_prelu")(ConvBN(width, 3, 2, self.padding, **conv_bn, name="stem")(x, train))
        x = ConvBN(width, 3, 1, self.padding, groups=width, **conv_bn, name="stem_depthwise")(x, train)
        x = PReLU(name="stem_depthwise_prelu")(x)
        if self.stem_pointwise:
            x = ConvBN(width, **conv_bn, name="stem_pointwise")(x, train)
        shared = {"padding": self.padding, "bn_epsilon": self.bn_epsilon, "dtype": self.dtype}
        for block, (expansion, channels, stride) in enumerate(BLOCKS):
            width = scaled_channels(channels, self.width_multiplier)
            x = Bottleneck(width, expansion, stride, **shared, name=f"block{block}")(x, train)
        width = scaled_channels(512, self.width_multiplier)
        return PReLU(name="head_prelu")(ConvBN(width, **conv_bn, name="head")(x, train))


class MobileFaceNet(nn.Module):
    """MobileFaceNet as a classifier: x [B, H, W, 1 or 3] -> logits [B, K], float32 for every `dtype`.

    Global average pooling, dropout and one dense layer replace the layers that compute the embedding of an identity, so
    that the input may have any size. `input_size` (height, width) resizes inside the network.
    """

    num_classes: int
    width_multiplier: float = 1.0
    stem_pointwise: bool = False
    dropout: float = 0.2
    input_size: Sequence[int] = ()
    padding: Padding = ((1, 1), (1, 1))
    bn_epsilon: float = 1e-3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the logits of x; with `train`, BatchNorm uses the batch's statistics and dropout the rng `dropout`."""
        backbone = MobileFaceNetBackbone(
            self.width_multiplier, self.stem_pointwise, self.padding, self.bn_epsilon, self.dtype, name="backbone"
        )
        x = backbone(rgb_input(x, self.input_size), train).mean((1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=classifier_init, name="classifier")(x)
