import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from affect_jax.evaluate.classification import valence_arousal_metrics
from affect_jax.losses import (
    BOX_LOSSES,
    CLASSIFICATION_LOSSES,
    concordance_loss,
    cross_entropy_of_log,
    diou_loss,
    eiou_loss,
    find_classification_loss,
    focal_loss,
    log_geometric_mean,
    sigmoid_cross_entropy,
    smooth_labels,
    softmax_cross_entropy,
)
from affect_jax.ops.boxes import paired_iou


def random_batch(rows=12, classes=7):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(rows, classes)).astype(np.float32)
    return logits, rng.integers(0, classes, rows), np.eye(classes, dtype=np.float32)


def test_cross_entropy_equals_the_sum_of_scikit_learns_log_loss():
    logits, labels, eye = random_batch()
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = log_loss(labels, probs, labels=range(7), normalize=False)
    np.testing.assert_allclose(softmax_cross_entropy(logits, eye[labels], jnp.ones(12)), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", CLASSIFICATION_LOSSES.values())
def test_masked_rows_do_not_count_even_if_nan(loss):
    logits, labels, eye = random_batch()
    mask = np.arange(12) < 9
    whole = loss(logits[:9], eye[labels[:9]], jnp.ones(9))
    with_nan = np.where(mask[:, None], logits, np.nan)
    np.testing.assert_allclose(loss(with_nan, eye[labels], mask.astype(np.float32)), whole, rtol=1e-6)


def test_focal_loss_weights_the_cross_entropy_of_each_example_by_its_difficulty():
    logits, labels, eye = random_batch()
    p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[np.arange(12), labels]
    expected = sum(-((1 - one) ** 2) * np.log(one) for one in p)
    np.testing.assert_allclose(focal_loss(logits, eye[labels], jnp.ones(12)), expected, rtol=1e-5)
    without = focal_loss(logits, eye[labels], jnp.ones(12), gamma=0.0)
    np.testing.assert_allclose(without, softmax_cross_entropy(logits, eye[labels], jnp.ones(12)), rtol=1e-6)


def test_unknown_loss_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown loss 'hinge'; must be one of cross_entropy, focal"):
        find_classification_loss("hinge")


def test_smoothing_mixes_labels_with_the_uniform_distribution():
    smooth = smooth_labels(jnp.array([[0.0, 1.0, 0.0, 0.0]]), 0.1)
    np.testing.assert_allclose(smooth, [[0.025, 0.925, 0.025, 0.025]], rtol=1e-6)


def test_concordance_loss_is_the_batch_size_times_one_minus_the_metric():
    rng = np.random.default_rng(0)
    predicted, targets = rng.uniform(-1, 1, (2, 40, 2)).astype(np.float32)
    metrics = valence_arousal_metrics(predicted, targets)
    expected = 40 * (1 - (metrics["ccc_valence"] + metrics["ccc_arousal"]) / 2)
    np.testing.assert_allclose(concordance_loss(predicted, targets), expected, rtol=1e-5)
    np.testing.assert_allclose(concordance_loss(targets, targets), 0.0, atol=1e-4)


def test_concordance_of_constants_has_a_finite_gradient():
    constant = jnp.full((8, 2), 0.3)
    assert np.isfinite(jax.grad(lambda x: concordance_loss(x, constant))(constant)).all()


def random_boxes(rng, count):
    low = rng.uniform(0, 20, (count, 2))
    return np.concatenate([low, low + rng.uniform(1, 20, (count, 2))], 1).astype(np.float32)


def test_diou_loss_equals_the_formula_of_the_paper_for_each_pair():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 50), random_boxes(rng, 50)
    expected = []
    for (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) in zip(a.tolist(), b.tolist(), strict=True):
        shared = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
        iou = shared / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared)
        distance = ((ax1 + ax2 - bx1 - bx2) / 2) ** 2 + ((ay1 + ay2 - by1 - by2) / 2) ** 2
        diagonal = (max(ax2, bx2) - min(ax1, bx1)) ** 2 + (max(ay2, by2) - min(ay1, by1)) ** 2
        expected.append(1 - iou + distance / diagonal)
    np.testing.assert_allclose(diou_loss(a, b), expected, rtol=1e-4)


def test_eiou_loss_of_overlapping_boxes_is_the_smooth_iou_loss():
    rng = np.random.default_rng(1)
    a = random_boxes(rng, 50)
    b = a + rng.uniform(-0.4, 0.4, a.shape).astype(np.float32)
    loss = 1 - np.asarray(paired_iou(a, b))
    np.testing.assert_allclose(eiou_loss(a, b), np.where(loss < 0.1, 5 * loss**2, loss - 0.05), atol=1e-5)
    assert (loss < 0.1).any() and (loss > 0.1).any()


@pytest.mark.parametrize("loss", BOX_LOSSES.values())
def test_box_loss_pulls_distant_boxes_together_and_is_finite_without_area(loss):
    far, target = jnp.array([0.0, 0, 4, 4]), jnp.array([40.0, 0, 44, 4])
    gradient = jax.grad(lambda x: loss(jnp.array([x, 0, x + 4, 4]), target))(0.0)
    assert gradient < 0 and loss(far, target) > loss(far + jnp.array([5.0, 0, 5, 0]), target)
    assert np.isfinite(jax.grad(lambda box: loss(box, jnp.zeros(4)))(jnp.zeros(4))).all()


def test_cross_entropy_of_a_log_probability_equals_that_of_its_logit():
    logits = jnp.linspace(-60.0, 60.0, 241)
    for target in (0.0, 0.3, 1.0):
        targets = jnp.full_like(logits, target)
        ours = cross_entropy_of_log(log_geometric_mean(logits[:, None]), targets)
        each = [sigmoid_cross_entropy(x, t, True) for x, t in zip(logits, targets, strict=True)]
        np.testing.assert_allclose(ours, each, rtol=1e-5, atol=1e-6)


def test_log_geometric_mean_of_two_logits():
    probs = jax.nn.sigmoid(jnp.array([[0.4, -2.0], [3.0, 1.0]]))
    np.testing.assert_allclose(
        jnp.exp(log_geometric_mean(jnp.array([[0.4, -2.0], [3.0, 1.0]]))), jnp.sqrt(probs.prod(-1)), rtol=1e-6
    )
