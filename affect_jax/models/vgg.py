"""VGG-FER: a small VGG (Simonyan & Zisserman 2015, arXiv:1409.1556) with BatchNorm, for 48x48 faces."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from affect_jax.models.layers import BatchNorm, Conv, norm_activation


class VGGFER(nn.Module):
    """Blocks of 3x3 Conv-BatchNorm-ReLU and a 2x2 max-pooling; then Dense-ReLU-dropout layers and logits.

    x [B, H, W, C] -> logits [B, num_classes], float32 for every `dtype`. H and W are at least 2 ** len(widths); each
    pooling rounds them down. With the defaults and 48x48x1: 7.05 million parameters, 0.94 GFLOP forward.
    """

    num_classes: int
    widths: Sequence[int] = (64, 128, 256, 512)
    convs_per_block: int = 2
    dense: Sequence[int] = (512,)
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the logits of x; `train` uses the batch's BatchNorm statistics and needs the rng "dropout".

        ValueError if nothing is left of x after the last pooling.
        """
        least = 2 ** len(self.widths)
        if min(x.shape[1:3]) < least:
            raise ValueError(f"images of {x.shape[1]}x{x.shape[2]} pixels are too small: {least} are needed")
        for block, width in enumerate(self.widths, start=1):
            for conv in range(1, self.convs_per_block + 1):
                name = f"block{block}_conv{conv}"
                x = Conv(width, use_bias=False, dtype=self.dtype, name=name)(x)
                norm = BatchNorm(dtype=self.dtype, name=f"{name}_bn")
                x = norm_activation(norm, x, train, nn.relu, pool=conv == self.convs_per_block)
        x = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.dense, start=1):
            x = nn.relu(
                nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name=f"dense{layer}")(x)
            )
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="logits")(x.astype(jnp.float32))
