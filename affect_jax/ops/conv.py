"""Two-dimensional convolutions, NHWC, in the form that is fastest on the device at hand."""

from collections.abc import Sequence

import jax
from jax import lax

Padding = str | Sequence[tuple[int, int]]


def conv2d(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int = 1) -> jax.Array:
    """Convolution of x [B, H, W, C] with kernel [kh, kw, C // groups, F]; groups is 1 or C (depthwise)."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )
