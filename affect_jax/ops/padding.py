"""Padding of the pixels of feature maps."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Pixels = Sequence[tuple[int, int]]
"""Pixels before and after each axis: ((top, bottom), (left, right))."""


def pad(x: jax.Array, pixels: Pixels, between: Sequence[int] = (0, 0), value: float = 0) -> jax.Array:
    """Return x [B, H, W, C] with pixels of `value` around it and `between` its rows and columns.

    Negative numbers crop.
    """
    edges = [(low, high, inside) for (low, high), inside in zip(pixels, between, strict=True)]
    return lax.pad(x, jnp.array(value, x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
