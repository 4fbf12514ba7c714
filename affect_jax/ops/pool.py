"""Max-pooling whose gradient is fast on CPU too.

B batch, H W C height, width, channels, h w height and width of the output.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from affect_jax.ops.padding import pad


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Return x [B, H, W, C] after 2x2 max-pooling, [B, H // 2, W // 2, C]; equal maxima share the gradient."""
    x = blocks_2x2(x)
    # elementwise maxima: the gradient of a reduce_window takes several times as long
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def blocks_2x2(x: jax.Array) -> jax.Array:
    """Return x as 2x2 blocks of pixels, [B, H // 2, 2, W // 2, 2, C], without the last pixel of odd sides."""
    batch, h, w, channels = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(batch, h // 2, 2, w // 2, 2, channels)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    """Return the maxima of x [B, H, W, C] in square windows, [B, h, w, C]; the first of equal maxima has the gradient.

    `window` is at least `stride` and at most 11; `padding` pixels on each side count as -inf.
    """
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), edges)


def _max_pool_forward(x, *static):
    return max_pool(x, *static), x


def _max_pool_backward(window, stride, padding, x, gradient):
    def xla(x, gradient):
        return jax.vjp(lambda x: max_pool.fun(x, window, stride, padding), x)[1](gradient)[0]

    spread = partial(_spread, window, stride, padding)
    return (lax.platform_dependent(x, gradient, cpu=spread, default=xla),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _spread(window, stride, padding, x, gradient):
    """Return the gradient by x: that of each output, at the first of the highest pixels of its window.

    The padded x is seen in blocks of stride x stride pixels. Tap (i, j) of output (p, q) is pixel (i, j) % stride of
    block (p + i // stride, q + j // stride), so that each pixel of the blocks is a sum over some shifted outputs.
    """
    (_, height, width, channels), (_, h, w, _) = x.shape, gradient.shape
    padded = pad(x, [(padding, padding)] * 2, value=-jnp.inf)
    # Not compared with the output: XLA may compute x again, with other roundings.
    highest, first = jnp.full(gradient.shape, -jnp.inf, x.dtype), jnp.zeros(gradient.shape, jnp.int8)
    for tap in range(window**2):
        i, j = divmod(tap, window)
        here = padded[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
        highest, first = jnp.maximum(highest, here), jnp.where(here > highest, jnp.int8(tap), first)
    reach = (window - 1) // stride
    down, across = h + reach, w + reach
    edges = [(reach, reach)] * 2
    # a barrier, because XLA would compute both again for each tap
    first, gradient = lax.optimization_barrier((pad(first, edges, value=-1), pad(gradient, edges)))

    def of_tap(i, j):
        top, left = reach - i // stride, reach - j // stride
        first_here, gradient_here = (array[:, top : top + down, left : left + across] for array in (first, gradient))
        return jnp.where(first_here == window * i + j, gradient_here, 0)

    def of_pixel(row, column):
        return sum(of_tap(i, j) for i in range(row, window, stride) for j in range(column, window, stride))

    blocks = jnp.stack([jnp.stack([of_pixel(i, j) for j in range(stride)], 3) for i in range(stride)], 2)
    by_padded = blocks.reshape(-1, stride * down, stride * across, channels)
    edges = [(-padding, size + padding - n) for size, n in zip((height, width), by_padded.shape[1:3], strict=True)]
    return pad(by_padded, edges)
