"""YuNet-n (Wu et al. 2023, doi:10.1007/s11633-023-1423-y) as the first stage of Faster R-CNN, and a finer map for RoIs.

Every layer after the first is a pair of a 1x1 and a depthwise 3x3 convolution. The layers are those of the published
network without its key points, so that its weights can be loaded, and one more level of the pyramid, P2. B batch, H W C
height, width, channels.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.models.fpn import upsample_nearest
from affect_jax.models.layers import BatchNorm, Conv, norm_activation
from affect_jax.ops.pool import max_pool_2x2

STAGES = ((16,), (16, 64), (64, 64), (64, 64), (64, 64), (64, 64))
"""Channels of the units of each stage; the first stage begins with the stem."""
STAGES_BEFORE_POOLING = (0, 2, 3, 4)
TAPS = {2: "C2", 3: "C3", 4: "C4", 5: "C5"}
"""Name of the map after a stage; its stride is 2 to the power of the number in the name."""
CHANNELS = 64
"""Channels of the pyramid."""
PRIOR_LOGIT = -4.6
"""Logit of the probability 0.01, with which an untrained head starts (RetinaNet, arXiv:1708.02002, section 4.1)."""


class SeparableUnit(nn.Module):
    """1x1 convolution, depthwise 3x3 convolution, BatchNorm, ReLU: x [B, H, W, C] -> [B, H, W, features]."""

    features: int
    bn_epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the features of x."""
        x = Conv(self.features, (1, 1), padding="VALID", dtype=self.dtype, name="pointwise")(x)
        x = Conv(self.features, groups=self.features, use_bias=False, dtype=self.dtype, name="depthwise")(x)
        norm = BatchNorm(epsilon=self.bn_epsilon, dtype=self.dtype, name="bn")
        return norm_activation(norm, x, train, nn.relu)


class YuNetBackbone(nn.Module):
    """Trunk of YuNet-n: x [B, H, W, 3] -> {name: [B, H / stride, W / stride, C]} of C2 to C5, C = 64.

    H and W are multiples of 32.
    """

    bn_epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Return the maps, finest first."""
        around = ((1, 1), (1, 1))
        x = Conv(STAGES[0][0], (3, 3), (2, 2), around, use_bias=False, dtype=self.dtype, name="stem")(x)
        norm = BatchNorm(epsilon=self.bn_epsilon, dtype=self.dtype, name="stem_bn")
        x = norm_activation(norm, x, train, nn.relu)
        maps = {}
        for stage, units in enumerate(STAGES):
            for place, features in enumerate(units):
                x = SeparableUnit(features, self.bn_epsilon, self.dtype, name=f"stage{stage}_{place}")(x, train)
            if stage in TAPS:
                maps[TAPS[stage]] = x
            if stage in STAGES_BEFORE_POOLING:
                x = max_pool_2x2(x)
        return maps


class YuNetPyramid(nn.Module):
    """Pyramid of C2 to C5: each map is the unit of the backbone's map plus the coarser map of the pyramid."""

    bn_epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Build the units, one for each level."""
        self.lateral2, self.lateral3, self.lateral4, self.lateral5 = (
            SeparableUnit(CHANNELS, self.bn_epsilon, self.dtype) for _ in range(4)
        )

    def __call__(self, maps: Mapping[str, jax.Array], train: bool) -> list[jax.Array]:
        """Return P3 to P5, [B, H, W, 64] each."""
        p5 = self.lateral5(maps["C5"], train)
        p4 = self.lateral4(maps["C4"] + upsample_nearest(p5), train)
        p3 = self.lateral3(maps["C3"] + upsample_nearest(p4), train)
        return [p3, p4, p5]

    def finest(self, c2: jax.Array, p3: jax.Array, train: bool) -> jax.Array:
        """Return P2, [B, H, W, 64]."""
        return self.lateral2(c2 + upsample_nearest(p3), train)


class YuNetRPNHead(nn.Module):
    """Class and objectness logits and box offsets of the anchor of every cell; each level has layers of its own.

    features, L maps [B, H, W, C] -> logits, L of [B, H W, 2], and offsets, L of [B, H W, 4].
    """

    bn_epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], train: bool) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return logits and offsets, float32."""
        logits, offsets = [], []
        for level, x in enumerate(features, start=3):
            x = SeparableUnit(CHANNELS, self.bn_epsilon, self.dtype, name=f"shared{level}")(x, train)
            # one layer for all six values; the published network has three
            x = Conv(6, (1, 1), padding="VALID", dtype=self.dtype, name=f"pointwise{level}")(x)
            x = Conv(6, groups=6, dtype=self.dtype, bias_init=_prior_bias, name=f"depthwise{level}")(x)
            x = x.reshape(len(x), -1, 6).astype(jnp.float32)
            logits.append(x[..., :2])
            offsets.append(x[..., 2:])
        return logits, offsets


def _prior_bias(key: jax.Array, shape: tuple[int], dtype: jnp.dtype) -> jax.Array:
    """Return the initial bias of the six values: PRIOR_LOGIT of both logits, 0 of the offsets."""
    return jnp.zeros(shape, dtype).at[:2].set(PRIOR_LOGIT)
