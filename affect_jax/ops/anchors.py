"""Anchors: reference boxes on the grid of a feature map (Ren et al. 2015, arXiv:1506.01497, section 3.1).

H W cells of a feature map, A anchors per cell. Ratios are height over width, as in torchvision.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> jax.Array:
    """Anchors [A, 4] of a cell at the origin, whole pixels: every size (root of the area) for each ratio."""
    ratios = jnp.sqrt(jnp.asarray(aspect_ratios, jnp.float32))
    sizes = jnp.asarray(sizes, jnp.float32)
    heights = (ratios[:, None] * sizes).reshape(-1)
    widths = (sizes / ratios[:, None]).reshape(-1)
    return jnp.round(jnp.stack([-widths, -heights, widths, heights], -1) / 2)


def grid_anchors(
    grid_size: tuple[int, int], stride: tuple[int, int], sizes: Sequence[float], aspect_ratios: Sequence[float]
) -> jax.Array:
    """Anchors [H * W * A, 4] of a feature map of grid_size (H, W) whose cells are stride (y, x) pixels apart."""
    ys, xs = (jnp.arange(cells, dtype=jnp.float32) * step for cells, step in zip(grid_size, stride, strict=True))
    ys, xs = jnp.meshgrid(ys, xs, indexing="ij")
    shifts = jnp.stack([xs, ys, xs, ys], -1)
    return (shifts[:, :, None] + cell_anchors(sizes, aspect_ratios)).reshape(-1, 4)
