"""Layers of all networks: convolution and batch normalization."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.ops.conv import Padding, conv2d
from affect_jax.ops.norm import Activation, batch_norm
from affect_jax.ops.pool import max_pool_2x2

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He et al. 2015 (arXiv:1502.01852), as in torchvision; he_normal of flax takes the fan-in."""


class Conv(nn.Module):
    """Convolution x [B, H, W, C] -> [B, H', W', features]; float32 parameters `kernel` and `bias`, computed in `dtype`.

    `groups` is 1 or C (depthwise); `padding` is "SAME", "VALID" or ((top, bottom), (left, right)).
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    groups: int = 1
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = he_normal_fan_out
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the convolution of x."""
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.padding, self.groups)
        if self.use_bias:
            # added in float32: its gradient is a sum over all pixels, which bfloat16 cannot add
            y = (y + self.param("bias", self.bias_init, (self.features,), jnp.float32)).astype(self.dtype)
        return y


class BatchNorm(nn.BatchNorm):
    """flax's BatchNorm with PyTorch's settings, called as `norm(x, use_running_average)`.

    Statistics and their reductions are float32 for every `dtype`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool, activation: Activation | None = None, pool: bool = False
    ) -> jax.Array:
        """Return x normalized, then `activation` of it, 2x2 max-pooled if `pool`.

        In training on CPU this is one operation, equal to those of flax up to rounding.
        """
        activation = activation or _identity
        fused = not use_running_average and x.ndim == 4 and not self.axis_name and jax.default_backend() == "cpu"
        if self.is_initializing() or not fused:
            y = activation(super().__call__(x, use_running_average))
            return max_pool_2x2(y) if pool else y
        scale, bias = (self.get_variable("params", name) for name in ("scale", "bias"))
        y, mean, var = batch_norm(x, scale, bias, self.epsilon, activation, pool)
        for name, measured in (("mean", mean), ("var", var)):
            average = self.get_variable("batch_stats", name)
            self.put_variable("batch_stats", name, self.momentum * average + (1 - self.momentum) * measured)
        return y


def norm_activation(
    norm: BatchNorm, x: jax.Array, train: bool, activation: Activation, pool: bool = False
) -> jax.Array:
    """Return `activation` of `norm` of x, 2x2 max-pooled if `pool`.

    In training `norm` computes all three. In evaluation it returns the normalized map at full size, which is drawn in
    figures of feature maps.
    """
    if train:
        return norm(x, False, activation, pool)
    y = activation(norm(x, True))
    return max_pool_2x2(y) if pool else y


def _identity(x: jax.Array) -> jax.Array:
    return x
