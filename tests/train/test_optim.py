import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from affect_jax.config import SCHEDULES
from affect_jax.train.optim import make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", {0: 0.25, 3: 1.0, 4: 1.0, 50: 1.0, 103: 1.0}),
        ("cosine", {0: 0.25, 3: 1.0, 4: 1.0, 54: 0.55, 104: 0.1, 200: 0.1}),
        ("linear", {0: 0.25, 3: 1.0, 4: 1.0, 54: 0.55, 104: 0.1, 200: 0.1}),
        ("step", {0: 0.25, 3: 1.0, 19: 1.0, 21: 0.5, 49: 0.5, 51: 0.25, 200: 0.25}),
    ],
)
def test_schedule_takes_its_hand_worked_values(name, values):
    schedule = make_schedule(name, 1.0, 104, warmup_steps=4, final_fraction=0.1, boundaries=(20, 50), factor=0.5)
    for step, value in values.items():
        assert float(schedule(step)) == pytest.approx(value, abs=1e-6), step


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_without_warmup_starts_at_its_peak(name):
    assert float(make_schedule(name, 0.3, 10, boundaries=(5,))(0)) == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_shrinks_kernels_and_leaves_biases_and_scales(name):
    tx = make_optimizer(name, optax.constant_schedule(0.1), weight_decay=0.5)
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert np.all(np.asarray(updates["kernel"]) < 0)
    assert not np.any(updates["bias"]) and not np.any(updates["scale"])


def test_two_steps_of_sgd_are_nesterovs_by_hand():
    tx = make_optimizer("sgd", optax.constant_schedule(0.1), momentum=0.9)
    params = {"w": jnp.array([1.0])}
    state = tx.init(params)
    # velocity v1 = g, step g + 0.9 v1 = 1.9 g; v2 = 0.9 g + g = 1.9 g, step g + 0.9 * 1.9 g = 2.71 g
    for expected in (-0.1 * 1.9 * 2.0, -0.1 * 2.71 * 2.0):
        updates, state = tx.update({"w": jnp.array([2.0])}, state, params)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)


def test_clipping_bounds_the_global_norm_of_the_gradient():
    tx = make_optimizer("sgd", optax.constant_schedule(1.0), momentum=0.0, clip_norm=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    updates, _ = tx.update({"a": jnp.array([30.0]), "b": jnp.array([40.0])}, tx.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6, -0.8], rtol=1e-6)
