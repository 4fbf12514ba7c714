"""RoIAlign over the levels of a feature pyramid (He et al. 2017, arXiv:1703.06870; Lin et al. 2017, arXiv:1612.03144).

B images, R RoIs an image, L levels, H W C a feature map, P output cells along each side, S samples along each side.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from affect_jax.ops.boxes import box_area


def roi_levels(rois: jax.Array, num_levels: int, finest_level: int, canonical_size: float, canonical_level: int):
    """The place, int32 [...] from 0 at the finest, of the level for each of rois [..., 4] (FPN, equation 1)."""
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
    """Features [B, R, P, P, C] of rois [B, R, 4] (pixels of the image) from `features`, L maps [B, H, W, C].

    levels int32 [B, R] says which map. A cell is the mean of S x S bilinear samples (S = sampling_ratio), samples more
    than a cell outside the map are 0. `aligned` moves RoIs by half a cell, as detectron2 does; torchvision's detectors
    do not.
    """
    batch, rois_each, channels = *rois.shape[:2], features[0].shape[-1]
    table = jnp.concatenate([level.reshape(-1, channels) for level in features])
    sizes = jnp.array([level.shape[1:3] for level in features])[levels]  # [B, R, 2]
    scales = 1.0 / jnp.array(strides, jnp.float32)[levels]
    cells = [level.shape[0] * level.shape[1] * level.shape[2] for level in features]
    starts = jnp.array([sum(cells[:i]) for i in range(len(cells))])[levels]
    starts += jnp.arange(batch)[:, None] * sizes[..., 0] * sizes[..., 1]

    def align(one):
        roi, scale, size, start = one
        rows, row_weights = _samples(roi, scale, size, 1, output_size, sampling_ratio, aligned)
        columns, column_weights = _samples(roi, scale, size, 0, output_size, sampling_ratio, aligned)
        flat = start + rows[:, :, None, None] * size[1] + columns  # [P, 2 S, P, 2 S]
        weights = row_weights[:, :, None, None] * column_weights
        gathered = table[flat.transpose(0, 2, 1, 3).reshape(output_size**2, -1)]  # [P P, 4 S S, C]
        weights = weights.transpose(0, 2, 1, 3).reshape(output_size**2, 1, -1)
        return (weights @ gathered).reshape(output_size, output_size, channels)

    inputs = jax.tree.map(lambda x: x.reshape(batch * rois_each, *x.shape[2:]), (rois, scales, sizes, starts))
    # on CPU a few RoIs at a time, whose samples stay in the cache; an accelerator wants all at once
    at_once = lax.platform_dependent(inputs, cpu=lambda x: lax.map(align, x, batch_size=8), default=jax.vmap(align))
    return at_once.reshape(batch, rois_each, output_size, output_size, channels)


def _samples(roi, scale, size, axis: int, output_size: int, sampling_ratio: int, aligned: bool):
    """Along one axis (0 x, 1 y), for each cell: the neighbours of its samples and their weights, [P, 2 S] each."""
    low, high = (roi[axis + corner] * scale - (0.5 if aligned else 0.0) for corner in (0, 2))
    length = high - low if aligned else jnp.maximum(high - low, 1.0)  # torchvision: no RoI under a cell
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
