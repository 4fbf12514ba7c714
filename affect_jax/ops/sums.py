"""Sums over the pixels of feature maps, fast on CPU."""

import jax
import jax.numpy as jnp
from jax import lax

MAX_ROWS = 8
"""Rows of an image that are added at a time: XLA does not unroll, and so not vectorize, a longer sum."""


def pixel_sums(*arrays: jax.Array) -> list[jax.Array]:
    """Return the float32 sums [C] of arrays [B, h, w, C] of one shape over all pixels, in one pass over memory."""
    batch, h, w, channels = arrays[0].shape
    rows = next((n for n in range(MAX_ROWS, 1, -1) if h % n == 0), h)
    grouped = [array.astype(jnp.float32).reshape(batch, h // rows, rows, w, channels) for array in arrays]
    zeros = [jnp.float32(0.0)] * len(arrays)
    partial_sums = lax.reduce(grouped, zeros, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], (2,))
    # a matrix product adds the rest: XLA does not vectorize a sum over all axes but the last
    ones = jnp.ones(partial_sums[0].size // channels, jnp.float32)
    return [ones @ part.reshape(-1, channels) for part in partial_sums]
