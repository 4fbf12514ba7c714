"""ResNet (He et al. 2016, arXiv:1512.03385) of 18, 34 and 50 layers, as a classifier and as a backbone.

B batch, H W C height, width, channels, K classes.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.models.inputs import rgb_input
from affect_jax.models.layers import BatchNorm, Conv, norm_activation
from affect_jax.ops.pool import max_pool

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Residual blocks of the four stages by depth (table 1 of the paper); depth 50 has bottlenecks."""

WIDTHS = {"C2": 64, "C3": 128, "C4": 256, "C5": 512}
"""Width of the 3x3 convolutions of the four stages by name of the feature map that each returns."""

ONE_PIXEL = ((1, 1), (1, 1))


class ResidualBlock(nn.Module):
    """relu(f(x) + shortcut(x)) where f is two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 (4 * width).

    The stride is in the first of two convolutions. In a bottleneck it is in the 3x3 convolution ("v1.5", as in
    torchvision) or, with `stride_in_1x1`, in the first 1x1 convolution ("v1", as in the paper).
    """

    width: int
    stride: int
    bottleneck: bool
    stride_in_1x1: bool
    bn_epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return features [B, H / stride, W / stride, C'] of x [B, H, W, C]."""
        conv = partial(Conv, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, epsilon=self.bn_epsilon, dtype=self.dtype)
        if self.bottleneck:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            layers = ((self.width, 1, first), (self.width, 3, second), (4 * self.width, 1, 1))
        else:
            layers = ((self.width, 3, self.stride), (self.width, 3, 1))
        y = x
        for i, (features, size, stride) in enumerate(layers, start=1):
            padding = ONE_PIXEL if size == 3 else "VALID"
            y = conv(features, (size, size), (stride, stride), padding, name=f"conv{i}")(y)
            layer_norm = norm(name=f"bn{i}")
            y = norm_activation(layer_norm, y, train, nn.relu) if i < len(layers) else layer_norm(y, not train)
        if self.stride != 1 or y.shape[-1] != x.shape[-1]:
            x = conv(y.shape[-1], (1, 1), (self.stride, self.stride), "VALID", name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x, not train)
        return nn.relu(x + y)


class ResNetBackbone(nn.Module):
    """Feature maps of a ResNet: x [B, H, W, 3] -> {"C2": [B, H / 4, W / 4, C], ..., "C5"}, up to `last`.

    Sides round up. The network has no stages after `last`. `stride_in_1x1` is for depth 50, see ResidualBlock.
    """

    depth: int = 50
    last: str = "C5"
    stride_in_1x1: bool = False
    bn_epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Return the feature maps of x by name."""
        if self.depth not in BLOCKS:
            raise ValueError(f"no ResNet of depth {self.depth}; known are {', '.join(map(str, BLOCKS))}")
        if self.last not in WIDTHS:
            raise ValueError(f"unknown feature map {self.last!r} of ResNet; known are {', '.join(WIDTHS)}")
        shared = {"bn_epsilon": self.bn_epsilon, "dtype": self.dtype}
        x = Conv(64, (7, 7), (2, 2), ((3, 3), (3, 3)), use_bias=False, dtype=self.dtype, name="conv1")(x)
        norm = BatchNorm(epsilon=self.bn_epsilon, dtype=self.dtype, name="bn1")
        x = max_pool(norm_activation(norm, x, train, nn.relu), 3, 2, 1)
        features = {}
        for layer, (name, blocks) in enumerate(zip(WIDTHS, BLOCKS[self.depth], strict=True), start=1):
            for block in range(blocks):
                stride = 2 if layer > 1 and block == 0 else 1
                residual = ResidualBlock(
                    WIDTHS[name], stride, self.depth >= 50, self.stride_in_1x1, **shared, name=f"layer{layer}_{block}"
                )
                x = residual(x, train)
            features[name] = x
            if name == self.last:
                break
        return features


class ResNet(nn.Module):
    """ResNet as a classifier: x [B, H, W, 1 or 3] -> logits [B, K], float32 for every `dtype`.

    Global average pooling of the feature map `last`, dropout, one dense layer. `input_size` (height, width) resizes
    inside the network. Parameters for 1000 classes: 11,689,512 (depth 18), 21,797,672 (34), 25,557,032 (50).
    """

    num_classes: int
    depth: int = 50
    last: str = "C5"
    stride_in_1x1: bool = False
    dropout: float = 0.0
    input_size: Sequence[int] = ()
    bn_epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the logits of x; `train` uses the batch's BatchNorm statistics and needs the rng "dropout"."""
        backbone = ResNetBackbone(
            self.depth, self.last, self.stride_in_1x1, self.bn_epsilon, self.dtype, name="backbone"
        )
        x = backbone(rgb_input(x, self.input_size), train)[self.last].mean((1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="classifier")(x)


resnet18 = partial(ResNet, depth=18)
resnet34 = partial(ResNet, depth=34)
resnet50 = partial(ResNet, depth=50)
