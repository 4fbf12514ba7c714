import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import log_loss

from affect_jax.models.roi_heads import RoISamples, box_losses


def test_unused_places_do_not_count_even_if_their_logits_are_nan():
    rng = np.random.default_rng(0)
    logits, label, sampled = rng.normal(size=(12, 3)).astype(np.float32), rng.integers(0, 3, 12), np.arange(12) < 9
    samples = RoISamples(rois=jnp.ones((12, 4)), sampled=sampled, label=label, boxes=jnp.ones((12, 4)))

    def classifier_loss(logits, samples):
        return box_losses(logits, jnp.zeros((len(logits), 3, 4)), samples, "smooth_l1", 1.0)["classifier"]

    with_nan = np.where(sampled[:, None], logits, np.nan)
    loss, gradient = jax.value_and_grad(classifier_loss)(with_nan, samples)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = log_loss(label[:9], probs[:9], labels=range(3), normalize=False)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    used = jax.tree.map(lambda x: x[:9], samples)
    np.testing.assert_allclose(gradient[:9], jax.grad(classifier_loss)(logits[:9], used), rtol=1e-5)
    assert not gradient[9:].any()
