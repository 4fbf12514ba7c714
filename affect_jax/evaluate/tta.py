"""Test-time augmentation: the views of an image whose probabilities are averaged.

V views, B batch, H W C.
"""

import jax
import jax.numpy as jnp

TTA = ("none", "flip", "flip_shift")
SHIFT = 2
"""Shift of "flip_shift" in pixels: the offset between corner and center crops of 44 pixels from 48-pixel faces."""


def check_tta(tta: str) -> None:
    """Raise ValueError if `tta` is not one of TTA."""
    if tta not in TTA:
        raise ValueError(f"unknown test-time augmentation {tta!r}; choose one of {', '.join(TTA)}")


def views(images: jax.Array, tta: str) -> jax.Array:
    """Return the views [V, B, H, W, C] of images [B, H, W, C].

    "none" is the image itself (V = 1), "flip" adds its mirror image (V = 2), "flip_shift" adds both shifted towards the
    four corners by SHIFT pixels, with the border repeated (V = 10).
    """
    check_tta(tta)
    result = [images]
    if tta == "flip_shift":
        _, height, width, _ = images.shape
        padded = jnp.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
        corners = [(y, x) for y in (0, 2 * SHIFT) for x in (0, 2 * SHIFT)]
        result += [padded[:, y : y + height, x : x + width] for y, x in corners]
    if tta != "none":
        result += [view[:, :, ::-1] for view in result]
    return jnp.stack(result)
