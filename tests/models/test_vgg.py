import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from affect_jax.models import build_model
from affect_jax.models.layers import max_pool

FACES = np.random.default_rng(0).normal(size=(4, 48, 48, 1)).astype(np.float32)
SMALL = {"num_classes": 7, "widths": (4, 8, 8, 16), "dense": (16,)}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def small():
    model = build_model("vgg_fer", **SMALL)
    return model, jax.jit(lambda key: model.init(key, FACES, False))(jax.random.key(0))


def test_default_vgg_has_the_parameters_counted_by_hand():
    shapes = jax.eval_shape(lambda: build_model("vgg_fer", num_classes=7).init(jax.random.key(0), FACES, False))
    convolutions = 9 * (1 * 64 + 64 * 64 + 64 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 512**2)
    batch_norms = 2 * 2 * (64 + 128 + 256 + 512)
    dense = (3 * 3 * 512 + 1) * 512 + (512 + 1) * 7
    assert count(shapes["params"]) == convolutions + batch_norms + dense == 7_049_543
    assert count(shapes["batch_stats"]) == batch_norms


@pytest.mark.parametrize("size", [(48, 48), (50, 35)])
def test_logits_have_one_row_an_image_at_any_size(size):
    model = build_model("vgg_fer", **SMALL)
    x = jnp.zeros((3, *size, 3))
    assert jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, False)[0]).shape == (3, 7)


def test_training_moves_every_statistic_and_every_parameter_has_a_finite_gradient(small):
    model, variables = small

    def loss(params):
        logits, updates = model.apply(
            variables | {"params": params}, FACES, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
        )
        return jnp.sum(jax.nn.log_softmax(logits)[:, 0]), updates["batch_stats"]

    grads, batch_stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(np.isfinite(g).all() and np.any(g != 0) for g in jax.tree.leaves(grads))
    moved = jax.tree.map(lambda a, b: np.any(a != b), batch_stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_dropout_is_random_in_training_and_off_in_evaluation(small):
    model, variables = small

    @jax.jit
    def train(key):
        return model.apply(variables, FACES, True, mutable=["batch_stats"], rngs={"dropout": key})[0]

    assert not np.array_equal(train(jax.random.key(1)), train(jax.random.key(2)))
    evaluate = jax.jit(lambda x: model.apply(variables, x, False))
    # No rng given: evaluation needs none, and each image's logits are its own.
    np.testing.assert_allclose(evaluate(FACES)[:1], evaluate(FACES[:1]), rtol=1e-4, atol=1e-5)


def test_bfloat16_compute_keeps_float32_parameters_statistics_and_logits(small):
    _, variables = small
    model = build_model("vgg_fer", **SMALL, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    logits, updates = jax.jit(
        lambda: model.apply(variables, FACES, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})
    )()
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
    exact = small[0].apply(variables, FACES, False)
    np.testing.assert_allclose(model.apply(variables, FACES, False), exact, rtol=0.1, atol=0.05)


def test_max_pool_and_its_gradient_are_those_of_a_window_without_ties():
    x = np.random.default_rng(0).permutation(2 * 7 * 8 * 3).reshape(2, 7, 8, 3).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(2, 3, 4, 3)).astype(np.float32)

    def value_and_gradient(pool):
        return pool(x), jax.grad(lambda x: jnp.vdot(pool(x), weights))(x)

    jax.tree.map(
        np.testing.assert_array_equal,
        value_and_gradient(max_pool),
        value_and_gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2))),
    )
