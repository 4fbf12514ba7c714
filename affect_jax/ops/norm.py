"""Batch normalization with the activation and 2x2 max-pooling that follow it, in few passes over memory, for CPU.

XLA on CPU computes these layers and their derived gradient in two to three times as many passes.
B batch, H W C height, width, channels.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from affect_jax.ops.pool import blocks_2x2, max_pool_2x2
from affect_jax.ops.sums import pixel_sums

Activation = Callable[[jax.Array], jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, activation: Activation, pool: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return activation(normalized x), max-pooled if `pool`, and the mean and variance [C] of x [B, H, W, C].

    `activation` is elementwise and never decreases. Mean and variance have no gradient. All sums are float32.
    """
    return _batch_norm_forward(x, scale, bias, epsilon, activation, pool)[0]


def _batch_norm_forward(x, scale, bias, epsilon, activation, pool):
    mean, squares = (total / (x.size // x.shape[-1]) for total in pixel_sums(x, x.astype(jnp.float32) ** 2))
    var = jnp.maximum(0.0, squares - mean**2)
    # A channel's normalization is monotone, so that pooling can come first and leave a quarter of the work.
    kept = jnp.where(scale >= 0, max_pool_2x2(x), -max_pool_2x2(-x)) if pool else x
    y = activation(_normalize(kept, mean, var, scale, bias, epsilon)).astype(x.dtype)
    return (y, mean, var), (x, kept, mean, var, scale, bias)


def _batch_norm_backward(epsilon, activation, pool, residuals, gradients):
    x, kept, mean, var, scale, bias = residuals
    gradient, inverse, count = gradients[0], lax.rsqrt(var + epsilon), x.size // x.shape[-1]
    _, through_activation = jax.vjp(activation, _normalize(kept, mean, var, scale, bias, epsilon))
    (gradient,) = through_activation(gradient.astype(jnp.float32))
    by_bias, by_scale = pixel_sums(gradient, gradient * (kept - mean) * inverse)
    if pool:
        gradient = _unpool(x, kept, gradient)
    by_x = scale * inverse * (gradient - by_bias / count - (x - mean) * (inverse * by_scale / count))
    return by_x.astype(x.dtype), by_scale, by_bias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _normalize(x, mean, var, scale, bias, epsilon):
    return (x - mean) * (lax.rsqrt(var + epsilon) * scale) + bias


def _unpool(x, kept, gradient):
    """Return the gradient of each pixel of x for that of `kept`, one value of each 2x2 block; equal values share it."""
    chosen = blocks_2x2(x) == kept[:, :, None, :, None]
    share = gradient / sum(chosen[:, :, i, :, j].astype(jnp.float32) for i in range(2) for j in range(2))
    spread = jnp.where(chosen, share[:, :, None, :, None], 0.0)
    (batch, h, w, channels), (_, down, _, across, _, _) = x.shape, spread.shape
    spread = spread.reshape(batch, 2 * down, 2 * across, channels)
    return jnp.pad(spread, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
