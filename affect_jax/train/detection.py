"""Detection: the loss of a batch and the detections of a split.

B batch, N true boxes padded, D detections of a picture. A batch is as affect_jax.data.boxes_pipeline gives it.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from affect_jax.train.classification import normalize
from affect_jax.train.mesh import replicated, split_over_devices, to_devices
from affect_jax.train.state import Apply
from affect_jax.train.steps import Batch, LossFn

NETWORK_INPUTS = ("image", "image_size", "boxes", "label", "box_mask", "ignore")
SAMPLES_OF = {"objectness": "rpn_count", "rpn_box_reg": "rpn_count", "classifier": "roi_count", "box_reg": "roi_count"}
"""The parts of the loss, and the count of samples that each is a mean over."""

Detect = Callable[[dict, Batch], dict[str, dict[str, jax.Array]]]
"""(variables, batch) -> "detections" and, where the batch has boxes, "losses", with B in front."""


def prepare(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> dict[str, jax.Array]:
    """The network's inputs: pixels normalized, zeros where the padding is."""
    height, width = batch["image"].shape[1:3]
    inside = (jnp.arange(height)[:, None] < batch["image_size"][:, 0, None, None]) & (
        jnp.arange(width) < batch["image_size"][:, 1, None, None]
    )
    image = jnp.where(inside[..., None], normalize(batch["image"], mean, std), 0.0)
    return {**{name: batch[name] for name in NETWORK_INPUTS if name in batch}, "image": image}


def mean_losses(losses: dict) -> dict:
    """torchvision's four: of each part its sum over its samples [B] by their number, "loss_objectness" and so on."""
    return {f"loss_{name}": losses[name].sum() / losses[count].sum().clip(1) for name, count in SAMPLES_OF.items()}


def make_loss_fn(apply: Apply, mean: Sequence[float], std: Sequence[float]) -> LossFn:
    """The four losses of Faster R-CNN added up, times B; sums are those parts, times B, and "count", which is B."""

    def loss_fn(params, batch_stats, batch: Batch, key: jax.Array):
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, batch_stats = apply(variables, prepare(batch, mean, std), True, key)
        count = jnp.float32(batch["image"].shape[0])
        sums = {name: count * value for name, value in mean_losses(outputs["losses"]).items()}
        return sum(sums.values()), (batch_stats, {**sums, "count": count})

    return loss_fn


def make_detect(apply: Apply, mean: Sequence[float], std: Sequence[float], mesh: Mesh) -> Detect:
    """Compiled `detect(variables, batch)`; detections, and losses where the batch has boxes, of the same forward."""

    def detect(variables: dict, batch: Batch) -> dict[str, dict[str, jax.Array]]:
        return apply(variables, prepare(batch, mean, std), False)[0]

    # every process gets all rows, so that each can compute the metrics
    return jax.jit(detect, out_shardings=replicated(mesh))


def detect_split(
    detect: Detect, variables: dict, batches: Iterable[dict[str, np.ndarray]], num_pictures: int, mesh: Mesh
) -> tuple[list[dict[str, np.ndarray]], dict[str, float]]:
    """Detections of every picture of a split, in its order, and the mean losses.

    `batches` are padded_box_batches, of several processes each one's rows; every process gets all detections.
    A picture's are boxes float32 [D, 4] in pixels of the picture as it is, scores float32 [D], label int32 [D].
    """
    pending = []
    for batch in batches:
        inputs = to_devices({name: batch[name] for name in NETWORK_INPUTS}, split_over_devices(mesh))
        rows = to_devices({name: batch[name] for name in ("index", "scale", "mask")}, split_over_devices(mesh))
        pending.append((detect(variables, inputs), jax.device_put(rows, replicated(mesh))))
    detections: dict[int, dict[str, np.ndarray]] = {}
    losses = []
    for outputs, rows in pending:
        outputs, rows = jax.device_get((outputs, rows))
        index, scale, mask = rows["index"], rows["scale"], rows["mask"] > 0
        losses.append({name: values[mask] for name, values in outputs["losses"].items()})
        for row in np.flatnonzero(mask):
            found = {name: values[row] for name, values in outputs["detections"].items()}
            valid = found.pop("valid")
            detections[int(index[row])] = {name: values[valid] for name, values in found.items()}
            detections[int(index[row])]["boxes"] /= scale[row]
    if sorted(detections) != list(range(num_pictures)):
        raise RuntimeError(f"detections of {len(detections)} pictures, there are {num_pictures}")
    totals = {name: np.concatenate([one[name] for one in losses]) for name in losses[0]}
    means = {name: float(value) for name, value in mean_losses(totals).items()}
    return [detections[picture] for picture in range(num_pictures)], {"loss": sum(means.values()), **means}
