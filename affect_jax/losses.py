"""Losses as masked sums: the caller divides by its count once, so that batches of any size add up exactly.

B batch, K classes.
"""

import jax
import jax.numpy as jnp


def smooth_labels(targets: jax.Array, smoothing: float) -> jax.Array:
    """Targets [B, K] mixed with the uniform distribution (Szegedy et al. 2016, arXiv 1512.00567, section 7)."""
    return targets * (1.0 - smoothing) + smoothing / targets.shape[-1]


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum of the cross-entropy of logits [B, K] with distributions targets [B, K] over the rows where mask [B] is 1."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    # where, not a product: a padded row may hold anything, and 0 * inf is not 0
    return jnp.sum(jnp.where(mask > 0, -jnp.sum(targets * log_probs, axis=-1), 0.0))


def concordance_loss(predicted: jax.Array, targets: jax.Array) -> jax.Array:
    """Sum over B of 1 - CCC, the mean over the columns of predicted and targets [B, D].

    CCC, the concordance correlation coefficient (Lin 1989), is a figure of the whole batch, not a mean over examples:
    parts of a batch do not add up to it.
    """
    predicted, targets = predicted.astype(jnp.float32), targets.astype(jnp.float32)
    mean_p, mean_t = predicted.mean(0), targets.mean(0)
    covariance = ((predicted - mean_p) * (targets - mean_t)).mean(0)
    scale = predicted.var(0) + targets.var(0) + (mean_p - mean_t) ** 2
    # the small term gives two constants that agree, whose CCC is undefined, a loss of 1 and a finite gradient
    return len(predicted) * (1.0 - 2.0 * covariance / (scale + 1e-8)).mean()


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum of the binary cross-entropy of logits [...] with targets [...] in [0, 1] where mask [...] is true."""
    loss = jnp.maximum(logits, 0.0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return jnp.sum(jnp.where(mask, loss, 0.0))


def smooth_l1(predicted: jax.Array, targets: jax.Array, mask: jax.Array, beta: float) -> jax.Array:
    """Sum over [...] where mask is true of the distance, squared below beta (Girshick 2015, equation 3)."""
    # a masked target may be infinite, and its gradient must not be NaN
    distance = jnp.abs(jnp.where(mask, predicted - targets, 0.0))
    return jnp.sum(jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta))
