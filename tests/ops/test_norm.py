"""BatchNorm with activation and pooling in one operation equals flax's in value, gradients and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from affect_jax.models.layers import BatchNorm
from affect_jax.ops.pool import max_pool_2x2

CHANNELS = 6


def random_features(size, batch=8):
    """Return features [B, H, W, C]; the first rows are constant, so that maxima are equal."""
    x = np.random.default_rng(0).normal(0.5, 2.0, (batch, *size, CHANNELS)).astype(np.float32)
    x[:, :3] = 2.0
    return x


def random_variables():
    """Return parameters, with scales of both signs, and statistics."""
    rng = np.random.default_rng(1)
    params = {"scale": jnp.linspace(-1, 2, CHANNELS), "bias": jnp.asarray(rng.normal(size=CHANNELS), jnp.float32)}
    return {"params": params, "batch_stats": {"mean": jnp.ones(CHANNELS), "var": jnp.full(CHANNELS, 2.0)}}


def one_operation(dtype, activation, pool):
    def apply(variables, x):
        return BatchNorm(dtype=dtype).apply(variables, x, False, activation, pool, mutable=["batch_stats"])

    return apply


def three_operations(dtype, activation, pool):
    norm = nn.BatchNorm(momentum=0.9, epsilon=1e-5, dtype=dtype)

    def apply(variables, x):
        y, updates = norm.apply(variables, x, False, mutable=["batch_stats"])
        y = activation(y) if activation else y
        return max_pool_2x2(y) if pool else y, updates

    return apply


def values_and_gradients(apply, x, compiled=True):
    """Return the output, the new statistics and the gradients by parameters and x for a fixed gradient."""

    def compute(variables, x):
        def output(params, x):
            return apply({**variables, "params": params}, x)

        y, pull_back, updates = jax.vjp(output, variables["params"], x, has_aux=True)
        return y, updates, pull_back(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))

    # The reference is computed operation by operation: compiled, XLA may compute normalized values twice with different
    # rounding, so that none equals the maximum and its gradient is lost.
    return (jax.jit(compute) if compiled else compute)(random_variables(), x)


def assert_equal(ours, theirs, tolerance):
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert actual.dtype == expected.dtype
        actual, expected = (np.asarray(value, np.float32) for value in (actual, expected))
        np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("size", [(8, 12), (11, 7)])
@pytest.mark.parametrize(
    ("activation", "pool"), [(None, False), (nn.relu, False), (nn.relu6, False), (nn.relu, True), (None, True)]
)
def test_one_operation_equals_three(size, activation, pool):
    x = random_features(size)
    ours = values_and_gradients(one_operation(jnp.float32, activation, pool), x)
    theirs = values_and_gradients(three_operations(jnp.float32, activation, pool), x, compiled=False)
    assert_equal(ours, theirs, 1e-5)


def test_bfloat16_is_near_float32():
    x = random_features((8, 12)).astype(jnp.bfloat16)
    y, updates, (by_params, by_x) = values_and_gradients(one_operation(jnp.bfloat16, nn.relu, True), x)
    exact = values_and_gradients(three_operations(jnp.float32, nn.relu, True), x.astype(jnp.float32), compiled=False)
    assert y.dtype == by_x.dtype == jnp.bfloat16 and updates["batch_stats"]["mean"].dtype == jnp.float32
    assert_equal((updates, by_params), (exact[1], exact[2][0]), 2e-2)
    assert_equal(y.astype(jnp.float32), exact[0], 2e-2)


def test_batch_on_a_mesh_gives_the_same_result():
    mesh = Mesh(jax.devices(), ("data",))
    x = random_features((8, 12), batch=2 * mesh.size)
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    ours, theirs = one_operation(jnp.float32, nn.relu, True), three_operations(jnp.float32, nn.relu, True)
    assert_equal(values_and_gradients(ours, sharded), values_and_gradients(theirs, x, compiled=False), 1e-5)
