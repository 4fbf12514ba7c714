"""Feature pyramid (Lin et al. 2017, arXiv:1612.03144): maps of all strides, each with what the coarser ones know.

B batch, H W C height, width, channels.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.models.layers import Conv

pyramid_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FeaturePyramid(nn.Module):
    """Maps C2..C5 of a backbone, {name: [B, H, W, C]} from fine to coarse, to as many of `channels` and one coarser.

    Each map is twice as large as the next. The last, "pool", takes every second pixel of the coarsest: torchvision's
    LastLevelMaxPool.
    """

    channels: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[str, jax.Array]) -> list[jax.Array]:
        """The pyramid's maps, finest first."""
        pyramid, above = [], None
        for name, x in reversed(features.items()):
            x = Conv(
                self.channels, (1, 1), padding="VALID", dtype=self.dtype, kernel_init=pyramid_init, name=f"inner_{name}"
            )(x)
            above = x if above is None else x + twice_as_large(above)
            layer = Conv(self.channels, dtype=self.dtype, kernel_init=pyramid_init, name=f"layer_{name}")
            pyramid.insert(0, layer(above))
        return [*pyramid, pyramid[-1][:, ::2, ::2]]


def twice_as_large(x: jax.Array) -> jax.Array:
    """x [B, H, W, C] with every pixel repeated, [B, 2 H, 2 W, C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
