"""Losses: one value per example, except concordance_loss. B batch, K classes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

ClassificationLoss = Callable[[jax.Array, jax.Array], jax.Array]


def smooth_labels(targets: jax.Array, smoothing: float) -> jax.Array:
    """Mix targets [B, K] with the uniform distribution (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
    return targets * (1.0 - smoothing) + smoothing / targets.shape[-1]


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the cross-entropy of logits [B, K] with the distributions targets [B, K]: [B]."""
    return -jnp.sum(targets * _log_probs(logits), axis=-1)


def focal_loss(logits: jax.Array, targets: jax.Array, gamma: float = 2.0) -> jax.Array:
    """Return the focal loss (Lin et al. 2017, arXiv:1708.02002, equation 4, without class weights): [B].

    Cross-entropy of logits [B, K] with the distributions targets [B, K], each class weighted by (1 - p) ** gamma, so
    that examples which the network already classifies well count less.
    """
    log_probs = _log_probs(logits)
    return -jnp.sum(targets * (1.0 - jnp.exp(log_probs)) ** gamma * log_probs, axis=-1)


def _log_probs(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32))


CLASSIFICATION_LOSSES = {"cross_entropy": softmax_cross_entropy, "focal": focal_loss}
"""Losses of a classifier by name, functions (logits [B, K], targets [B, K]) -> [B]."""


def concordance_loss(predicted: jax.Array, targets: jax.Array) -> jax.Array:
    """Return B times 1 - CCC, where CCC is the mean over the columns of predicted and targets [B, D].

    The concordance correlation coefficient (Lin 1989) is computed over the whole batch; it is not a mean over examples,
    so that the losses of parts of a batch do not add up to the loss of the batch.
    """
    predicted, targets = predicted.astype(jnp.float32), targets.astype(jnp.float32)
    mean_p, mean_t = predicted.mean(0), targets.mean(0)
    covariance = ((predicted - mean_p) * (targets - mean_t)).mean(0)
    scale = predicted.var(0) + targets.var(0) + (mean_p - mean_t) ** 2
    # CCC is undefined for two equal constants; the small term makes it 0 and its gradient finite
    return len(predicted) * (1.0 - 2.0 * covariance / (scale + 1e-8)).mean()


def log_geometric_mean(logits: jax.Array) -> jax.Array:
    """Return the logarithm of the geometric mean of the sigmoids of logits [..., S]: [...]."""
    return jax.nn.log_sigmoid(logits).mean(-1)


def cross_entropy_of_log(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the binary cross-entropy of exp(log_probs) [...] with targets [...] in [0, 1]: [...]."""
    # the limit keeps log(0) away for a probability that rounds to 1
    log_complement = jnp.log(-jnp.expm1(jnp.minimum(log_probs, -1e-30)))
    return -targets * log_probs - (1.0 - targets) * log_complement
