import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import FACES, count

from affect_jax.models import build_model

SMALL = {"num_classes": 7, "widths": (4, 8, 8, 16), "dense": (16,)}


@pytest.fixture(scope="module")
def small():
    model = build_model("vgg_fer", **SMALL)
    return model, jax.jit(lambda key: model.init(key, FACES, False))(jax.random.key(0))


def test_default_vgg_has_the_expected_number_of_parameters():
    shapes = jax.eval_shape(lambda: build_model("vgg_fer", num_classes=7).init(jax.random.key(0), FACES, False))
    convolutions = 9 * (1 * 64 + 64 * 64 + 64 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 512**2)
    batch_norms = 2 * 2 * (64 + 128 + 256 + 512)
    dense = (3 * 3 * 512 + 1) * 512 + (512 + 1) * 7
    assert count(shapes["params"]) == convolutions + batch_norms + dense == 7_049_543
    assert count(shapes["batch_stats"]) == batch_norms


@pytest.mark.parametrize("size", [(48, 48), (50, 35)])
def test_logits_have_one_row_per_image_at_any_size(size):
    model = build_model("vgg_fer", **SMALL)
    x = jnp.zeros((3, *size, 3))
    assert jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, False)[0]).shape == (3, 7)


def test_dropout_is_random_in_training_and_off_in_evaluation(small):
    model, variables = small

    @jax.jit
    def train(key):
        return model.apply(variables, FACES, True, mutable=["batch_stats"], rngs={"dropout": key})[0]

    assert not np.array_equal(train(jax.random.key(1)), train(jax.random.key(2)))
    evaluate = jax.jit(lambda x: model.apply(variables, x, False))
    # evaluation needs no rng, and the logits of an image do not depend on the others
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


def test_images_that_are_too_small_for_the_poolings_are_refused(small):
    model, variables = small
    least = 2 ** len(SMALL["widths"])
    with pytest.raises(ValueError, match=f"images of {least - 1}x48 pixels are too small: {least} are needed"):
        model.apply(variables, FACES[:, : least - 1], False)
