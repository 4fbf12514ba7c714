import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from affect_jax.ops.pool import max_pool, max_pool_2x2


def value_and_gradient(pool, x, weights):
    return jax.jit(lambda x: (pool(x), jax.grad(lambda x: jnp.vdot(pool(x), weights))(x)))(x)


def test_2x2_pooling_and_its_gradient_equal_flaxs_without_ties():
    x = np.random.default_rng(0).permutation(2 * 7 * 8 * 3).reshape(2, 7, 8, 3).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(2, 3, 4, 3)).astype(np.float32)
    jax.tree.map(
        np.testing.assert_array_equal,
        value_and_gradient(max_pool_2x2, x, weights),
        value_and_gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x, weights),
    )


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [
        ((8, 8), 3, 2, 1),
        ((9, 12), 3, 2, 1),
        ((10, 7), 3, 2, 0),
        ((11, 8), 2, 2, 0),
        ((7, 9), 3, 1, 1),
        ((13, 11), 5, 3, 2),
    ],
)
def test_pooling_and_its_gradient_equal_flaxs_with_many_ties(size, window, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 2, (2, *size, 3)).astype(np.float32)
    pools = (
        lambda x: max_pool(x, window, stride, padding),
        lambda x: nn.max_pool(x, (window, window), (stride, stride), 2 * ((padding, padding),)),
    )
    weights = rng.normal(size=jax.eval_shape(pools[0], x).shape).astype(np.float32)
    (values, gradient), (flaxs_values, flaxs_gradient) = (value_and_gradient(pool, x, weights) for pool in pools)
    np.testing.assert_array_equal(values, flaxs_values)
    np.testing.assert_allclose(gradient, flaxs_gradient, atol=1e-6)
