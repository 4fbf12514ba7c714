"""Feature pyramid (Lin et al. 2017, arXiv:1612.03144): maps of all strides, each with features of the coarser ones.

B batch, H W C height, width, channels.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.models.layers import Conv

pyramid_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FeaturePyramid(nn.Module):
    """Pyramid of the maps C2..C5 of a backbone, {name: [B, H, W, C]} from fine to coarse, and a coarser map "pool".

    Each map has `channels` and is twice as large as the next. "pool" is every second pixel of the coarsest map, as in
    torchvision's LastLevelMaxPool.
    """

    channels: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[str, jax.Array]) -> list[jax.Array]:
        """Return the maps of the pyramid, finest first."""
        pyramid, above = [], None
        for name, x in reversed(features.items()):
            x = Conv(
                self.channels, (1, 1), padding="VALID", dtype=self.dtype, kernel_init=pyramid_init, name=f"inner_{name}"
            )(x)
            above = x if above is None else x + upsample_nearest(above)
            layer = Conv(self.channels, dtype=self.dtype, kernel_init=pyramid_init, name=f"layer_{name}")
            pyramid.insert(0, layer(above))
        return [*pyramid, pyramid[-1][:, ::2, ::2]]


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Repeat every pixel of x [B, H, W, C]: [B, 2 H, 2 W, C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
