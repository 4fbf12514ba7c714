"""Random augmentation of small images on the device, in the training step.

What happens to an image depends on the key and on the image's position in the batch only, not on the other images, the
number of devices, or which other augmentations are on. B batch, H W C, K classes.
"""

import math

import jax
import jax.numpy as jnp

from affect_jax.ops.photometric import adjust_brightness_contrast, equalize_histogram, erase, gaussian_blur
from affect_jax.ops.warp import affine_matrices, warp_affine

SMALLEST_ERASED_AREA = 0.02
LARGEST_ERASED_ASPECT = 1 / 0.3
"""Both as in the paper on random erasing (Zhong et al. 2020, arXiv 1708.04896)."""
DRAWS = (
    *("rotation", "shift_x", "shift_y", "shear", "zoom_x", "zoom_y", "flip", "brightness", "contrast"),
    *("blur", "blur_sigma", "equalize", "erase", "erase_area", "erase_aspect", "erase_x", "erase_y"),
)
"""The random numbers of an image, in the order in which they come from its key."""


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    rotation: float = 0.0,
    width_shift: float = 0.0,
    height_shift: float = 0.0,
    shear: float = 0.0,
    zoom: float = 0.0,
    horizontal_flip: bool = False,
    brightness: float = 0.0,
    contrast: float = 0.0,
    blur_probability: float = 0.0,
    blur_sigma: float = 1.0,
    equalize_probability: float = 0.0,
    erase_probability: float = 0.0,
    erase_area: float = 0.2,
) -> jax.Array:
    """Images [B, H, W, C] in [0, 255] to float32 images of the same shape and range, each changed at random.

    Every amount is drawn uniformly for each image. What is left at its default is off and costs nothing.

    rotation: up to this many degrees either way.
    width_shift, height_shift: up to this fraction of the width or height either way.
    shear: up to this many degrees either way, along the rows.
    zoom: scale within 1 - zoom and 1 + zoom, width and height each their own; below 1.
    horizontal_flip: mirrors every second image on average.
    brightness: adds up to this fraction of the range of values, either way.
    contrast: scales the differences from the image's mean by 1 - contrast to 1 + contrast.
    blur_probability: of a Gaussian blur, of sigma 0 to blur_sigma pixels.
    equalize_probability: of histogram equalization.
    erase_probability: of a rectangle of noise that covers 2 % of the image to this fraction of it: erase_area (random
        erasing, Zhong et al. 2020, arXiv 1708.04896, algorithm 1, filled with random values).
    Rotation, shifts, shear, zoom and flip are one warp, which repeats the border where it looks beyond the image.
    """
    if images.ndim != 4:
        raise ValueError(f"images to augment have shape {images.shape}; it must be [B, H, W, C]")
    if not 0 <= zoom < 1:
        raise ValueError(f"zoom is {zoom}; it must be at least 0 and below 1")
    size = height, width = images.shape[1:3]
    draw_key, noise_key = jax.random.split(key)
    draws = dict(zip(DRAWS, uniform(draw_key, len(images), len(DRAWS)).T, strict=True))

    def symmetric(name: str, limit: float) -> jax.Array:
        return limit * (2 * draws[name] - 1)

    images = images.astype(jnp.float32)
    if rotation or width_shift or height_shift or shear or zoom or horizontal_flip:
        matrices = affine_matrices(
            size,
            rotation=symmetric("rotation", rotation),
            shift_x=symmetric("shift_x", width_shift * width),
            shift_y=symmetric("shift_y", height_shift * height),
            shear=symmetric("shear", shear),
            zoom_x=1 + symmetric("zoom_x", zoom),
            zoom_y=1 + symmetric("zoom_y", zoom),
            flip=draws["flip"] < (0.5 if horizontal_flip else 0.0),
        )
        images = warp_affine(images, matrices)
    if brightness or contrast:
        images = adjust_brightness_contrast(
            images, symmetric("brightness", 255 * brightness), 1 + symmetric("contrast", contrast)
        )
    if blur_probability:
        sigma = jnp.where(draws["blur"] < blur_probability, draws["blur_sigma"] * blur_sigma, 0.0)
        images = gaussian_blur(images, sigma, radius=math.ceil(3 * blur_sigma))
    if equalize_probability:
        chosen = draws["equalize"] < equalize_probability
        images = jnp.where(chosen[:, None, None, None], equalize_histogram(images), images)
    if erase_probability:
        smallest = min(SMALLEST_ERASED_AREA, erase_area)
        area = smallest + (erase_area - smallest) * draws["erase_area"]
        boxes = place_boxes(size, area, draws["erase_aspect"], draws["erase_x"], draws["erase_y"])
        boxes = jnp.where((draws["erase"] < erase_probability)[:, None], boxes, 0)
        images = erase(images, boxes, 255 * uniform(noise_key, *images.shape))
    return images


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Each image [B, H, W, C] and its target [B, K] mixed with those before it in the batch (the first with the last).

    The parts are lambda and 1 - lambda, with one lambda from Beta(alpha, alpha) for each image (Zhang et al. 2018,
    arXiv 1710.09412, section 2). The batch's order must be random already: neighbours are then random pairs.
    """
    keys = image_keys(key, len(images))
    part = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)

    def mixed(x: jax.Array) -> jax.Array:
        own = part.reshape(-1, *[1] * (x.ndim - 1))
        return own * x + (1 - own) * jnp.roll(x, 1, axis=0)

    return mixed(images), mixed(targets)


def image_keys(key: jax.Array, count: int) -> jax.Array:
    """One key for each position in a batch, whatever its size."""
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(jnp.arange(count))


def place_boxes(
    image_size: tuple[int, int], area: jax.Array, aspect: jax.Array, x: jax.Array, y: jax.Array
) -> jax.Array:
    """Boxes int32 [B, 4] (x1, y1, x2, y2, half-open) within the image, of `area` [B] as a fraction of the image's.

    `aspect`, `x` and `y`, [B] in [0, 1), say where within their ranges the ratio of height to width (by logarithm, and
    relative to the image's ratio) and the position lie. Ratios at which the box would not fit are not in the range.
    """
    height, width = image_size
    # a box as high as the image has the ratio 1 / area, so this range needs no drawing again, as the paper's does
    log_limit = jnp.log(jnp.minimum(LARGEST_ERASED_ASPECT, 1 / area))
    ratio = jnp.exp(log_limit * (2 * aspect - 1))
    box_height = jnp.clip(jnp.round(height * jnp.sqrt(area * ratio)), 1, height)
    box_width = jnp.clip(jnp.round(width * jnp.sqrt(area / ratio)), 1, width)
    x1, y1 = jnp.floor(x * (width - box_width + 1)), jnp.floor(y * (height - box_height + 1))
    return jnp.stack([x1, y1, x1 + box_width, y1 + box_height], axis=-1).astype(jnp.int32)


def uniform(key: jax.Array, count: int, *shape: int) -> jax.Array:
    """Random numbers [count, *shape] in [0, 1), those of each position from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(image_keys(key, count))
