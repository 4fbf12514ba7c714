"""Classification: the loss of a batch and the probabilities of a split.

B batch, K classes, N examples of the split, V views of test-time augmentation.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from affect_jax.data.pipeline import padded_batches
from affect_jax.evaluate.tta import views
from affect_jax.losses import smooth_labels, softmax_cross_entropy
from affect_jax.ops.augment import augment, mixup
from affect_jax.train.mesh import replicated, split_over_devices, to_devices
from affect_jax.train.state import Apply
from affect_jax.train.steps import Batch, LossFn


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Pixels [B, H, W, C] in [0, 255] to float32 with mean and standard deviation per channel given for [0, 1]."""
    return (images.astype(jnp.float32) / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def make_loss_fn(
    apply: Apply,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    targets: str = "label",
    augmentation: dict | None = None,
    mixup_alpha: float = 0.0,
    label_smoothing: float = 0.0,
) -> LossFn:
    """Cross-entropy of augmented images; sums are "count" and "correct" (against the label, or its larger mixed part).

    `targets` names what the batch's images are held against: "label", int32 [B], or "votes", float32 [B, K].
    """

    def loss_fn(params, batch_stats, batch: Batch, key: jax.Array):
        augment_key, mixup_key, dropout_key = jax.random.split(key, 3)
        images = augment(augment_key, batch["image"].astype(jnp.float32), **(augmentation or {}))
        probs = jax.nn.one_hot(batch["label"], num_classes) if targets == "label" else batch[targets]
        if mixup_alpha > 0:
            images, probs = mixup(mixup_key, images, probs, mixup_alpha)
        if label_smoothing > 0:
            probs = smooth_labels(probs, label_smoothing)
        variables = {"params": params, "batch_stats": batch_stats}
        logits, batch_stats = apply(variables, normalize(images, mean, std), True, dropout_key)
        mask = jnp.ones(logits.shape[0])
        correct = jnp.argmax(logits, -1) == jnp.argmax(probs, -1)
        sums = {"count": jnp.sum(mask), "correct": jnp.sum(correct.astype(jnp.float32))}
        return softmax_cross_entropy(logits, probs, mask), (batch_stats, sums)

    return loss_fn


def make_predict(
    apply: Apply, mean: Sequence[float], std: Sequence[float], mesh: Mesh, tta: str = "none"
) -> Callable[[dict, jax.Array], jax.Array]:
    """Compiled `predict(variables, images uint8 [B, H, W, C]) -> probabilities [B, K]`, the mean over `tta`'s views."""

    def predict(variables: dict, images: jax.Array) -> jax.Array:
        stacked = views(images.astype(jnp.float32), tta)  # [V, B, H, W, C]
        logits, _ = apply(variables, normalize(stacked.reshape(-1, *images.shape[1:]), mean, std), False)
        return jax.nn.softmax(logits.astype(jnp.float32)).reshape(*stacked.shape[:2], -1).mean(axis=0)

    # every process gets all rows, so that each can compute the metrics
    return jax.jit(predict, out_shardings=replicated(mesh))


def predict_split(
    predict: Callable[[dict, jax.Array], jax.Array], variables: dict, split, batch_size: int, mesh: Mesh
) -> np.ndarray:
    """Probabilities float32 [N, K] of every example of the split, in its order."""
    rows = slice(
        jax.process_index() * batch_size // jax.process_count(),
        (jax.process_index() + 1) * batch_size // jax.process_count(),
    )
    pending, kept = [], []
    for batch in padded_batches(split, batch_size):
        images = to_devices({"image": batch["image"][rows]}, split_over_devices(mesh))["image"]
        pending.append(predict(variables, images))
        kept.append(batch["mask"] > 0)
    probs = np.concatenate([np.asarray(probs)[mask] for probs, mask in zip(pending, kept, strict=True)])
    if len(probs) != len(split):
        raise RuntimeError(f"{len(probs)} predictions for {len(split)} examples")
    return probs
