"""Changes of pixel values on the device; images are float32 [B, H, W, C] in [0, 255] before and after.

B batch, H W C, T taps of a kernel.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

LEVELS = 256


def adjust_brightness_contrast(images: jax.Array, brightness: jax.Array, contrast: jax.Array) -> jax.Array:
    """Add brightness [B], in gray levels, and scale the differences from each image's mean by contrast [B]; clipped."""
    gain, offset = contrast[:, None, None, None], brightness[:, None, None, None]
    mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    return jnp.clip(images * gain + (mean * (1 - gain) + offset), 0, 255)


def gaussian_blur(images: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Blur by a Gaussian of sigma [B] pixels, cut off beyond `radius` pixels; sigma 0 leaves an image unchanged.

    Borders are mirrored about the outermost pixel: cv2.GaussianBlur with ksize 2 * radius + 1, BORDER_REFLECT_101.
    """
    height, width = images.shape[1:3]
    distance = jnp.arange(-radius, radius + 1, dtype=jnp.float32)[None, :]
    # at the smallest sigma all taps except the middle tap are 0
    weights = jax.nn.softmax(-0.5 * (distance / jnp.maximum(sigma, 1e-3)[:, None]) ** 2, axis=-1)  # [B, T]
    taps = [weights[:, t, None, None, None] for t in range(2 * radius + 1)]
    padded = jnp.pad(images, ((0, 0), (radius, radius), (0, 0), (0, 0)), mode="reflect")
    images = sum(tap * padded[:, t : t + height] for t, tap in enumerate(taps))
    padded = jnp.pad(images, ((0, 0), (0, 0), (radius, radius), (0, 0)), mode="reflect")
    return sum(tap * padded[:, :, t : t + width] for t, tap in enumerate(taps))


def equalize_histogram(images: jax.Array) -> jax.Array:
    """Spread each channel's gray levels evenly over 0 to 255: cv2.equalizeHist, to the bit.

    Values are rounded to whole levels first. A channel with a single level stays unchanged.
    """
    batch, height, width, channels = images.shape
    levels = jnp.clip(jnp.round(images), 0, LEVELS - 1).astype(jnp.int32)
    levels = levels.transpose(0, 3, 1, 2).reshape(batch, channels, height * width)
    count_levels = jax.vmap(jax.vmap(lambda level: jnp.zeros(LEVELS, jnp.int32).at[level].add(1)))
    cumulative = jnp.cumsum(count_levels(levels), axis=-1)
    total = height * width
    # the darkest level of the image becomes 0, so its pixels do not count
    darkest = jnp.min(jnp.where(cumulative > 0, cumulative, total), axis=-1, keepdims=True)
    scale = jnp.float32(LEVELS - 1) / jnp.maximum(total - darkest, 1).astype(jnp.float32)
    spread = jnp.clip(jnp.round((cumulative - darkest).astype(jnp.float32) * scale), 0, LEVELS - 1)
    table = jnp.where(darkest < total, spread, jnp.arange(LEVELS, dtype=jnp.float32)[None, None, :])
    equalized = jnp.take_along_axis(table, levels, axis=-1, mode="promise_in_bounds")
    return equalized.reshape(batch, channels, height, width).transpose(0, 2, 3, 1)


def erase(images: jax.Array, boxes: jax.Array, fill: jax.Array) -> jax.Array:
    """Replace images by fill [B, H, W, C] inside boxes [B, 4] (x1, y1, x2, y2 in pixels, half-open)."""
    height, width = images.shape[1:3]
    x, y = jnp.arange(width)[None, None, :], jnp.arange(height)[None, :, None]
    x1, y1, x2, y2 = (boxes[:, i, None, None] for i in range(4))
    inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    return jnp.where(inside[..., None], fill, images)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Scale pixels [B, H, W, C] from [0, 255] to [0, 1], then subtract `mean` and divide by `std`, one per channel."""
    return (images.astype(jnp.float32) / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)
