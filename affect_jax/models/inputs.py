"""Input of networks whose first layer is ImageNet's: three channels, and a size chosen by the network.

B batch, H W C height, width, channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def rgb_input(x: jax.Array, input_size: Sequence[int] = ()) -> jax.Array:
    """Convert x [B, H, W, 1 or 3], normalized, to [B, *input_size, 3], bilinear; an empty `input_size` keeps H and W.

    A single channel is repeated, so that the first layer of weights trained on RGB can be used. Gray pixels that were
    normalized by the mean and std of RGB have three channels already, by broadcasting, which equals the weights'
    preprocessing of a gray image. ValueError for another number of channels.
    """
    if x.shape[-1] not in (1, 3):
        raise ValueError(f"images have {x.shape[-1]} channels; this network takes gray (1) or RGB (3)")
    x = jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
    if not input_size or tuple(input_size) == x.shape[1:3]:
        return x
    return jax.image.resize(x, (x.shape[0], *input_size, 3), "bilinear")
