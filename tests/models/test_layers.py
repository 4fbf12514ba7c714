import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affect_jax.models.layers import Conv
from affect_jax.models.mobilefacenet import PReLU


@pytest.mark.parametrize(
    ("layer", "name"),
    [(Conv(3, (1, 1), dtype=jnp.bfloat16), "bias"), (PReLU(), "negative_slope")],
    ids=["bias", "slope"],
)
def test_gradients_summed_over_all_pixels_are_as_exact_in_bfloat16_as_in_float32(layer, name):
    x = -jnp.abs(jax.random.normal(jax.random.key(0), (8, 160, 160, 3))).astype(jnp.bfloat16)
    variables = layer.init(jax.random.key(1), x)
    gradient = jax.grad(lambda variables: layer.apply(variables, x).astype(jnp.float32).sum())(variables)
    by_pixel = np.ones(x.shape) if name == "bias" else np.asarray(x, np.float64)
    np.testing.assert_allclose(gradient["params"][name], by_pixel.sum((0, 1, 2)), rtol=0.01)
