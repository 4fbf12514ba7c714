import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop_iou import iou

from affect_jax.ops.box_losses import BOX_LOSSES, box_regression_loss, diou_loss, eiou_loss
from affect_jax.ops.boxes import encode_boxes, paired_iou


def random_boxes(rng, count):
    low = rng.uniform(0, 20, (count, 2))
    return np.concatenate([low, low + rng.uniform(1, 20, (count, 2))], 1).astype(np.float32)


def test_diou_loss_equals_the_formula_of_the_paper_for_each_pair():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 50), random_boxes(rng, 50)
    expected = []
    for one, other in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = one, other
        distance = ((ax1 + ax2 - bx1 - bx2) / 2) ** 2 + ((ay1 + ay2 - by1 - by2) / 2) ** 2
        diagonal = (max(ax2, bx2) - min(ax1, bx1)) ** 2 + (max(ay2, by2) - min(ay1, by1)) ** 2
        expected.append(1 - iou(one, other) + distance / diagonal)
    np.testing.assert_allclose(diou_loss(a, b), expected, rtol=1e-4)


def test_eiou_loss_of_overlapping_boxes_is_the_smooth_iou_loss():
    rng = np.random.default_rng(1)
    a = random_boxes(rng, 50)
    b = a + rng.uniform(-0.4, 0.4, a.shape).astype(np.float32)
    loss = 1 - np.asarray(paired_iou(a, b))
    np.testing.assert_allclose(eiou_loss(a, b), np.where(loss < 0.1, 5 * loss**2, loss - 0.05), atol=1e-5)
    assert (loss < 0.1).any() and (loss > 0.1).any()


def test_eiou_loss_of_boxes_apart_equals_a_hand_computed_example():
    a, b = jnp.array([0.0, 0, 2, 2]), jnp.array([4.0, 1, 6, 3])
    # low corner (4, 1), high corner (2, 2): 2 * 2 + 2 * 1 - 4 * 2 - 4 * 1 = -6; the union is 4 + 4 + 6
    np.testing.assert_allclose(eiou_loss(a, b), 1 + 6 / 14 - 0.05, rtol=1e-6)


@pytest.mark.parametrize("loss", BOX_LOSSES.values())
def test_box_loss_and_its_gradient_are_finite_for_boxes_of_hardly_any_area_and_boxes_far_apart(loss):
    sides = (0.0, 1e-30, 1e-20, 1e-9, 1e-3, 1.0, 1e4)
    boxes = np.array([[x, x, x + w, x + h] for x in (0.0, 1e6) for w in sides for h in sides], np.float32)
    a, b = np.repeat(boxes, len(boxes), axis=0), np.tile(boxes, (len(boxes), 1))
    values, gradients = jax.vmap(jax.value_and_grad(loss, (0, 1)))(a, b)
    assert all(np.isfinite(array).all() for array in (values, *gradients))


@pytest.mark.parametrize("loss", BOX_LOSSES.values())
def test_box_loss_pulls_distant_boxes_together(loss):
    far, target = jnp.array([0.0, 0, 4, 4]), jnp.array([40.0, 0, 44, 4])
    gradient = jax.grad(lambda x: loss(jnp.array([x, 0, x + 4, 4]), target))(0.0)
    assert gradient < 0 and loss(far, target) > loss(far + jnp.array([5.0, 0, 5, 0]), target)


def test_smooth_l1_of_offsets_is_the_scaled_huber_loss_of_the_positive_boxes():
    rng = np.random.default_rng(2)
    references, boxes = random_boxes(rng, 50), random_boxes(rng, 50)
    offsets, positive = rng.normal(0, 0.3, (50, 4)).astype(np.float32), rng.random(50) < 0.5
    boxes[~positive] = 0  # their targets are infinite
    loss, gradient = jax.value_and_grad(
        lambda offsets: box_regression_loss("smooth_l1", offsets, references, boxes, positive)
    )(offsets)
    targets = encode_boxes(boxes, references)[positive]
    np.testing.assert_allclose(loss, 9 * optax.huber_loss(offsets[positive], targets, delta=1 / 9).sum(), rtol=1e-5)
    assert np.isfinite(gradient).all() and not gradient[~positive].any()


@pytest.mark.parametrize("name", BOX_LOSSES)
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_box_loss_compares_the_decoded_boxes_of_positives(name, weights):
    rng = np.random.default_rng(0)
    references, positive = random_boxes(rng, 6), np.array([True, False, True, False, True, False])
    predicted, boxes = references + rng.uniform(-0.4, 0.4, (2, 6, 4)).astype(np.float32)
    offsets = encode_boxes(predicted, references, weights)
    found = box_regression_loss(name, offsets, references, boxes, positive, weights)
    np.testing.assert_allclose(found, BOX_LOSSES[name](predicted, boxes)[positive].sum(), rtol=1e-4)
