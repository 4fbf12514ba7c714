"""Layers of all networks: convolution, batch normalization, max-pooling."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.ops.conv import Padding, conv2d

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


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
    kernel_init: Callable = he_normal
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the convolution of x."""
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.padding, self.groups)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)
        return y


BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
"""flax's BatchNorm with PyTorch's settings, called as `norm(x, use_running_average)`.

Statistics and their reductions are float32 for every `dtype`.
"""


def max_pool(x: jax.Array) -> jax.Array:
    """Return x [B, H, W, C] after 2x2 max-pooling, [B, H // 2, W // 2, C]; equal maxima share the gradient."""
    batch, h, w, channels = x.shape
    # elementwise maxima: the gradient of a reduce_window takes several times as long
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(batch, h // 2, 2, w // 2, 2, channels)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])
