import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import log_loss

from affect_jax.evaluate.classification import valence_arousal_metrics
from affect_jax.losses import (
    concordance_loss,
    cross_entropy_of_log,
    focal_loss,
    log_geometric_mean,
    smooth_labels,
    softmax_cross_entropy,
)


def random_batch(rows=12, classes=7):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(rows, classes)).astype(np.float32)
    return logits, rng.integers(0, classes, rows), np.eye(classes, dtype=np.float32)


def test_cross_entropy_equals_scikit_learns_log_loss():
    logits, labels, eye = random_batch()
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [log_loss(labels[i : i + 1], probs[i : i + 1], labels=range(7)) for i in range(12)]
    np.testing.assert_allclose(softmax_cross_entropy(logits, eye[labels]), expected, rtol=1e-5)


def test_focal_loss_weights_the_cross_entropy_of_each_example_by_its_difficulty():
    logits, labels, eye = random_batch()
    p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[np.arange(12), labels]
    np.testing.assert_allclose(focal_loss(logits, eye[labels]), -((1 - p) ** 2) * np.log(p), rtol=1e-5)
    without = focal_loss(logits, eye[labels], gamma=0.0)
    np.testing.assert_allclose(without, softmax_cross_entropy(logits, eye[labels]), rtol=1e-6)


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


def test_cross_entropy_of_a_log_probability_equals_that_of_its_logit():
    logits = jnp.linspace(-60.0, 60.0, 241)
    for target in (0.0, 0.3, 1.0):
        targets = jnp.full_like(logits, target)
        ours = cross_entropy_of_log(log_geometric_mean(logits[:, None]), targets)
        np.testing.assert_allclose(ours, optax.sigmoid_binary_cross_entropy(logits, targets), rtol=1e-5, atol=1e-6)


def test_log_geometric_mean_of_two_logits():
    probs = jax.nn.sigmoid(jnp.array([[0.4, -2.0], [3.0, 1.0]]))
    np.testing.assert_allclose(
        jnp.exp(log_geometric_mean(jnp.array([[0.4, -2.0], [3.0, 1.0]]))), jnp.sqrt(probs.prod(-1)), rtol=1e-6
    )
