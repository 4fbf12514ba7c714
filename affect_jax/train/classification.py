"""Classification: the loss of a batch and the predictions of a split.

B batch, K classes, N examples of the split, V views of test-time augmentation.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from affect_jax.data.pipeline import padded_batches
from affect_jax.evaluate.tta import views
from affect_jax.losses import concordance_loss, smooth_labels, softmax_cross_entropy
from affect_jax.ops.augment import augment, mixup
from affect_jax.train.mesh import process_rows, replicated, split_over_devices, to_devices
from affect_jax.train.state import Apply
from affect_jax.train.steps import Batch, LossFn

Predict = Callable[[dict, jax.Array], dict[str, jax.Array]]
"""(variables, images) -> predictions by name."""


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
    valence_arousal_weight: float = 0.0,
) -> LossFn:
    """Cross-entropy of augmented images; sums are "count" and "accuracy", of the label or its larger mixed part.

    `targets` names what the batch's images are held against: "label", int32 [B], or "votes", float32 [B, K]. With a
    weight for valence and arousal the network has two outputs behind the classes, and the loss their concordance with
    the batch's valence_arousal float32 [B, 2].
    """

    def loss_fn(params, batch_stats, batch: Batch, key: jax.Array):
        augment_key, mixup_key, dropout_key = jax.random.split(key, 3)
        images = augment(augment_key, batch["image"].astype(jnp.float32), **(augmentation or {}))
        probs = jax.nn.one_hot(batch["label"], num_classes) if targets == "label" else batch[targets]
        places = batch["valence_arousal"] if valence_arousal_weight > 0 else jnp.zeros((len(images), 0))
        if mixup_alpha > 0:
            images, mixed = mixup(mixup_key, images, jnp.concatenate([probs, places], -1), mixup_alpha)
            probs, places = mixed[:, :num_classes], mixed[:, num_classes:]
        if label_smoothing > 0:
            probs = smooth_labels(probs, label_smoothing)
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, batch_stats = apply(variables, normalize(images, mean, std), True, dropout_key)
        logits, predicted_places = split_outputs(outputs, num_classes)
        mask = jnp.ones(logits.shape[0])
        loss = softmax_cross_entropy(logits, probs, mask)
        if valence_arousal_weight > 0:
            loss += valence_arousal_weight * concordance_loss(predicted_places, places)
        correct = jnp.argmax(logits, -1) == jnp.argmax(probs, -1)
        sums = {"count": jnp.sum(mask), "accuracy": jnp.sum(correct.astype(jnp.float32))}
        return loss, (batch_stats, sums)

    return loss_fn


def split_outputs(outputs: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Logits [B, K], and valence and arousal [B, 2] within -1 and 1 ([B, 0] of a network without that head)."""
    outputs = outputs.astype(jnp.float32)
    return outputs[:, :num_classes], jnp.tanh(outputs[:, num_classes:])


def make_predict(
    apply: Apply, num_classes: int, mean: Sequence[float], std: Sequence[float], mesh: Mesh, tta: str = "none"
) -> Predict:
    """Compiled `predict(variables, images uint8 [B, H, W, C]) -> {"probs": [B, K], "valence_arousal": [B, 2]}`.

    Means over the views of `tta`; valence_arousal is [B, 0] of a network without that head.
    """

    def predict(variables: dict, images: jax.Array) -> dict[str, jax.Array]:
        stacked = views(images.astype(jnp.float32), tta)  # [V, B, H, W, C]
        outputs, _ = apply(variables, normalize(stacked.reshape(-1, *images.shape[1:]), mean, std), False)
        logits, places = split_outputs(outputs, num_classes)
        each_view = {"probs": jax.nn.softmax(logits), "valence_arousal": places}
        return {name: value.reshape(*stacked.shape[:2], -1).mean(axis=0) for name, value in each_view.items()}

    # every process gets all rows, so that each can compute the metrics
    return jax.jit(predict, out_shardings=replicated(mesh))


def predict_split(predict: Predict, variables: dict, split, batch_size: int, mesh: Mesh) -> dict[str, np.ndarray]:
    """What `predict` gives, float32 [N, ...], of every example of the split, in its order."""
    rows = process_rows(batch_size)
    pending, kept = [], []
    for batch in padded_batches(split, batch_size):
        images = to_devices({"image": batch["image"][rows]}, split_over_devices(mesh))["image"]
        pending.append(predict(variables, images))
        kept.append(batch["mask"] > 0)
    masked = [
        {name: np.asarray(value)[mask] for name, value in predicted.items()}
        for predicted, mask in zip(pending, kept, strict=True)
    ]
    predictions = {name: np.concatenate([one[name] for one in masked]) for name in masked[0]}
    if len(predictions["probs"]) != len(split):
        raise RuntimeError(f"{len(predictions['probs'])} predictions for {len(split)} examples")
    return predictions
