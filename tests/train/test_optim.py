import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from affect_jax.names import selects
from affect_jax.train.optim import hold_frozen, make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", {0: 0.25, 3: 1.0, 4: 1.0, 50: 1.0, 103: 1.0}),
        ("cosine", {0: 0.25, 3: 1.0, 4: 1.0, 29: 0.868198, 54: 0.55, 104: 0.1, 200: 0.1}),
        ("linear", {0: 0.25, 3: 1.0, 4: 1.0, 29: 0.775, 54: 0.55, 104: 0.1, 200: 0.1}),
        ("step", {0: 0.25, 3: 1.0, 19: 1.0, 21: 0.5, 49: 0.5, 51: 0.25, 200: 0.25}),
    ],
)
def test_schedule_takes_its_hand_worked_values(name, values):
    schedule = make_schedule(name, 1.0, 104, warmup_steps=4, final_fraction=0.1, boundaries=(20, 50), factor=0.5)
    for step, value in values.items():
        assert float(schedule(step)) == pytest.approx(value, abs=1e-6), step


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "step"])
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


def test_adamw_equals_optax_whose_decay_is_not_part_of_the_gradient():
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    ours = make_optimizer("adamw", optax.constant_schedule(0.1), weight_decay=0.5)
    theirs = optax.adamw(0.1, weight_decay=0.5, mask={"kernel": True, "bias": False})
    state, expected_state = ours.init(params), theirs.init(params)
    for _ in range(5):
        gradient = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
        updates, state = ours.update(gradient, state, params)
        expected, expected_state = theirs.update(gradient, expected_state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize(
    ("nesterov", "steps"),
    [
        (False, (1.0, 1.9)),  # velocity v1 = g, v2 = 0.9 g + g = 1.9 g
        (True, (1.9, 2.71)),  # g + 0.9 v1 = 1.9 g, g + 0.9 v2 = 2.71 g
    ],
)
def test_two_steps_of_sgd_have_their_hand_worked_momentum(nesterov, steps):
    tx = make_optimizer("sgd", optax.constant_schedule(0.1), momentum=0.9, nesterov=nesterov)
    params = {"w": jnp.array([1.0])}
    state = tx.init(params)
    for step in steps:
        updates, state = tx.update({"w": jnp.array([2.0])}, state, params)
        np.testing.assert_allclose(updates["w"], -0.1 * step * 2.0, rtol=1e-6)


def test_two_boundaries_at_one_step_apply_the_factor_twice():
    schedule = make_schedule("step", 1.0, 100, boundaries=(20, 20, 50), factor=0.1)
    np.testing.assert_allclose([schedule(step) for step in (19, 20, 50)], [1.0, 0.01, 0.001], rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_frozen_parameters_and_their_optimizer_state_do_not_move(name):
    decay = 0.0 if name == "adam" else 0.5
    tx = make_optimizer(name, optax.constant_schedule(0.1), momentum=0.9, nesterov=True, weight_decay=decay)
    held = hold_frozen(tx, selects(["base/.*"]))
    params = {"base": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    gradients = jax.tree.map(jnp.zeros_like, params) | {"head": {"kernel": jnp.full((2, 2), 0.3)}}
    first = state = held.init(params)
    for _ in range(3):
        updates, state = held.update(gradients, state, params)
        assert not np.any(updates["base"]["kernel"]) and np.all(updates["head"]["kernel"])
        params = optax.apply_updates(params, updates)
    assert jax.tree.structure(state) == jax.tree.structure(first)
    leaves = zip(jax.tree_util.tree_leaves_with_path(first), jax.tree_util.tree_leaves_with_path(state), strict=True)
    moved = {jax.tree_util.keystr(path): not np.array_equal(old, new) for (path, old), (_, new) in leaves}
    assert not any(changed for path, changed in moved.items() if "'base'" in path)
    assert all(changed for path, changed in moved.items() if "'head'" in path)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_thawed_parameters_move_as_with_an_optimizer_that_sees_them_for_the_first_time(name):
    decay = 0.0 if name == "adam" else 0.5
    frozen, thaw_step = selects(["base/.*"]), 500
    options = {"momentum": 0.9, "nesterov": name == "sgd", "weight_decay": decay}
    schedule = optax.constant_schedule(0.01)
    tx = make_optimizer(name, schedule, **options, frozen=frozen, thaw_step=thaw_step)
    fresh = make_optimizer(name, schedule, **options)
    params = {"base": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    gradients = iter(np.random.default_rng(0).normal(0.3, 1.0, (thaw_step + 40, 2, 2)).astype(np.float32))

    def steps(tx, params, state, count):
        update, path = jax.jit(tx.update), []
        for _ in range(count):
            gradient = {"kernel": jnp.asarray(next(gradients))}
            updates, state = update({"base": gradient, "head": gradient}, state, params)
            params = optax.apply_updates(params, updates)
            path.append((updates, params))
        return path, state

    held, state = steps(hold_frozen(tx, frozen), params, tx.init(params), thaw_step)
    assert jax.tree.structure(state) == jax.tree.structure(fresh.init(params))  # older checkpoints fit
    rest = list(gradients)
    gradients = iter(rest)
    thawed, _ = steps(tx, held[-1][1], state, 40)
    gradients = iter(rest)
    expected, _ = steps(fresh, params, fresh.init(params), 40)
    for (updates, _), (new, _) in zip(thawed, expected, strict=True):
        np.testing.assert_allclose(updates["base"]["kernel"], new["base"]["kernel"], rtol=1e-3, atol=1e-6)


def test_clipping_bounds_the_global_norm_of_the_gradient():
    tx = make_optimizer("sgd", optax.constant_schedule(1.0), momentum=0.0, clip_norm=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    updates, _ = tx.update({"a": jnp.array([30.0]), "b": jnp.array([40.0])}, tx.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6, -0.8], rtol=1e-6)
