"""RoIAlign over the levels of a feature pyramid (He et al. 2017, arXiv:1703.06870; Lin et al. 2017, arXiv:1612.03144).

B images, R RoIs per image, L levels, H W C a feature map, P output cells along each side, S samples along each side.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from affect_jax.ops.boxes import box_area

ROIS_AT_ONCE_ON_CPU = 8
"""RoIs whose samples fit in the cache of a core."""
FEW_ROIS = 16
"""Largest number of RoIs per image that are pooled at once on CPU, where XLA runs a loop on one core."""
GATHERED_BYTES = 2**28
"""Most bytes of samples that an accelerator gathers at once: 334 RoIs of 256 channels at the default sizes."""


def roi_levels(rois: jax.Array, num_levels: int, finest_level: int, canonical_size: float, canonical_level: int):
    """Index of the level that each of rois [..., 4] is pooled from, int32 [...], 0 for the finest (FPN, equation 1)."""
    size = jnp.sqrt(box_area(rois))
    level = jnp.floor(canonical_level + jnp.log2(jnp.maximum(size, 1e-6) / canonical_size) + 1e-6)
    return jnp.clip(level - finest_level, 0, num_levels - 1).astype(jnp.int32)


def roi_align(
    features: Sequence[jax.Array],
    strides: Sequence[int],
    rois: jax.Array,
    levels: jax.Array,
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> jax.Array:
    """Pool `features`, L maps [B, H, W, C], in rois [B, R, 4], pixels of the image: [B, R, P, P, C].

    levels int32 [B, R] is the index of each RoI's map. A cell is the mean of S x S bilinear samples (S =
    sampling_ratio); samples more than a cell outside the map are 0. `aligned` shifts RoIs by half a cell, as detectron2
    does; torchvision's detectors do not. There is no gradient by rois. RoIs are pooled in chunks, whose samples take at
    most GATHERED_BYTES on an accelerator.
    """
    batch, rois_each, channels = *rois.shape[:2], features[0].shape[-1]
    rois = lax.stop_gradient(rois)
    # float32: the gradient by a cell is a sum over many samples, which bfloat16 cannot add
    tables = jnp.concatenate([level.reshape(batch, -1, channels) for level in features], axis=1).astype(jnp.float32)
    sizes = jnp.array([level.shape[1:3] for level in features])[levels]  # [B, R, 2]
    scales = 1.0 / jnp.array(strides, jnp.float32)[levels]
    cells = [level.shape[1] * level.shape[2] for level in features]
    starts = jnp.array([sum(cells[:i]) for i in range(len(cells))])[levels]

    def align(table, roi_and_map):
        roi, scale, size, start = roi_and_map
        rows, row_weights = _samples(roi, scale, size, 1, output_size, sampling_ratio, aligned)
        columns, column_weights = _samples(roi, scale, size, 0, output_size, sampling_ratio, aligned)
        flat = start + rows[:, :, None, None] * size[1] + columns  # [P, 2 S, P, 2 S]
        weights = row_weights[:, :, None, None] * column_weights
        gathered = table[flat.transpose(0, 2, 1, 3).reshape(output_size**2, -1)]  # [P P, 4 S S, C]
        weights = weights.transpose(0, 2, 1, 3).reshape(output_size**2, 1, -1)
        return (weights @ gathered).reshape(output_size, output_size, channels)

    def pool(rois_at_once, tables, inputs):
        def pool_image(table, inputs):
            return lax.map(partial(align, table), inputs, batch_size=max(1, rois_at_once // batch))

        # Over the images and not over all RoIs: several devices could not split a loop over both.
        return jax.vmap(pool_image)(tables, inputs)

    roi_bytes = 4 * (2 * sampling_ratio * output_size) ** 2 * channels  # float32
    return lax.platform_dependent(
        tables,
        (rois, scales, sizes, starts),
        cpu=partial(pool, batch * rois_each if rois_each <= FEW_ROIS else ROIS_AT_ONCE_ON_CPU),
        default=partial(pool, GATHERED_BYTES // roi_bytes),
    )


def _samples(roi, scale, size, axis: int, output_size: int, sampling_ratio: int, aligned: bool):
    """Indices along one axis (0 x, 1 y) of the neighbours of each cell's samples, and their weights: [P, 2 S] each."""
    low, high = (roi[axis + corner] * scale - (0.5 if aligned else 0.0) for corner in (0, 2))
    length = high - low if aligned else jnp.maximum(high - low, 1.0)  # torchvision: an RoI is at least a cell
    limit = size[1 - axis]
    places = (jnp.arange(output_size * sampling_ratio) + 0.5) / sampling_ratio
    at = low + places * length / output_size
    inside = (at >= -1.0) & (at <= limit)
    at = jnp.clip(at, 0.0, limit - 1.0)
    below = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, jnp.maximum(limit - 2, 0))
    above = jnp.minimum(below + 1, limit - 1)
    fraction = at - below
    weight = jnp.stack([1.0 - fraction, fraction], -1) * inside[:, None] / sampling_ratio
    index = jnp.stack([below, above], -1)
    return index.reshape(output_size, -1), weight.reshape(output_size, -1)
