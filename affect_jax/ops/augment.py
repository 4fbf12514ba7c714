"""Random augmentation of small images on the device, in the training step.

The change of an image depends only on the key, the image's position in the batch, and the settings of the augmentation
itself: not on the other images, the number of devices, or the other augmentations. B batch, H W C, K classes.

To add an augmentation: write a function `(key, images, *, settings) -> images` that returns `images` where its settings
are at their defaults, add it to AUGMENTATIONS, and add its settings to `config.augment` in affect_jax/config.py, and
their checks to affect_jax/config_checks.py.
"""

import math
import zlib
from inspect import getfullargspec

import jax
import jax.numpy as jnp
import numpy as np

from affect_jax.ops.photometric import adjust_brightness_contrast, equalize_histogram, erase, gaussian_blur
from affect_jax.ops.warp import affine_matrices, warp_affine

SMALLEST_ERASED_AREA = 0.02
LARGEST_ERASED_ASPECT = 1 / 0.3
"""Limits of random erasing, as in Zhong et al. 2020 (arXiv:1708.04896)."""
BETA_INTERVALS = 1024


def augment(key: jax.Array, images: jax.Array, **settings) -> jax.Array:
    """Return images [B, H, W, C] in [0, 255] as float32 images of the same shape and range, each changed at random.

    Every amount is drawn uniformly for each image. `settings` are the keyword arguments of AUGMENTATIONS; a setting at
    its default is off and costs nothing. ValueError on another shape, TypeError on an unknown setting.
    """
    if images.ndim != 4:
        raise ValueError(f"images to augment have shape {images.shape}; it must be [B, H, W, C]")
    if unknown := settings.keys() - {name for names in AUGMENTATIONS.values() for name in names}:
        raise TypeError(f"unknown augmentation settings: {', '.join(sorted(unknown))}")
    images = images.astype(jnp.float32)
    for augmentation, names in AUGMENTATIONS.items():
        own = {name: settings[name] for name in names if name in settings}
        # a key by name: the draws of one augmentation stay the same when another is added
        own_key = jax.random.fold_in(key, zlib.crc32(augmentation.__name__.encode()))
        images = augmentation(own_key, images, **own)
    return images


def random_warp(
    key: jax.Array,
    images: jax.Array,
    *,
    rotation: float = 0.0,
    width_shift: float = 0.0,
    height_shift: float = 0.0,
    shear: float = 0.0,
    zoom: float = 0.0,
    horizontal_flip: bool = False,
) -> jax.Array:
    """Rotate, shift, shear, zoom and flip in one warp, which repeats the border outside the image.

    rotation, shear: up to this many degrees in either direction, the shear along the rows.
    width_shift, height_shift: up to this fraction of the width or height in either direction.
    zoom: scale between 1 - zoom and 1 + zoom, drawn separately for width and height; below 1.
    horizontal_flip: mirror half of the images.
    """
    if not 0 <= zoom < 1:
        raise ValueError(f"zoom is {zoom}; it must be at least 0 and below 1")
    if not (rotation or width_shift or height_shift or shear or zoom or horizontal_flip):
        return images
    size = height, width = images.shape[1:3]
    draws = uniform(key, len(images), 7).T
    amounts = 2 * draws - 1  # in [-1, 1)
    matrices = affine_matrices(
        size,
        rotation=rotation * amounts[0],
        shift_x=width_shift * width * amounts[1],
        shift_y=height_shift * height * amounts[2],
        shear=shear * amounts[3],
        zoom_x=1 + zoom * amounts[4],
        zoom_y=1 + zoom * amounts[5],
        flip=draws[6] < (0.5 if horizontal_flip else 0.0),
    )
    return warp_affine(images, matrices)


def random_brightness_contrast(
    key: jax.Array, images: jax.Array, *, brightness: float = 0.0, contrast: float = 0.0
) -> jax.Array:
    """Change brightness and contrast.

    brightness: add up to this fraction of the range of values, positive or negative.
    contrast: scale the differences from the image's mean by 1 - contrast to 1 + contrast.
    """
    if not (brightness or contrast):
        return images
    amounts = 2 * uniform(key, len(images), 2).T - 1
    return adjust_brightness_contrast(images, 255 * brightness * amounts[0], 1 + contrast * amounts[1])


def random_blur(
    key: jax.Array, images: jax.Array, *, blur_probability: float = 0.0, blur_sigma: float = 1.0
) -> jax.Array:
    """Blur with probability `blur_probability` by a Gaussian whose sigma is between 0 and `blur_sigma` pixels."""
    if not blur_probability:
        return images
    chosen, amount = uniform(key, len(images), 2).T
    sigma = jnp.where(chosen < blur_probability, amount * blur_sigma, 0.0)
    return gaussian_blur(images, sigma, radius=math.ceil(3 * blur_sigma))


def random_equalization(key: jax.Array, images: jax.Array, *, equalize_probability: float = 0.0) -> jax.Array:
    """Equalize the histogram with probability `equalize_probability`."""
    if not equalize_probability:
        return images
    chosen = uniform(key, len(images)) < equalize_probability
    return jnp.where(chosen[:, None, None, None], equalize_histogram(images), images)


def random_erasing(
    key: jax.Array, images: jax.Array, *, erase_probability: float = 0.0, erase_area: float = 0.2
) -> jax.Array:
    """Fill a rectangle with noise with probability `erase_probability`.

    It covers between 2 % and `erase_area` (a fraction) of the image. Random erasing, Zhong et al. 2020, arXiv
    1708.04896, algorithm 1, filled with random values.
    """
    if not erase_probability:
        return images
    draw_key, noise_key = jax.random.split(key)
    chosen, area, aspect, x, y = uniform(draw_key, len(images), 5).T
    smallest = min(SMALLEST_ERASED_AREA, erase_area)
    boxes = place_boxes(images.shape[1:3], smallest + (erase_area - smallest) * area, aspect, x, y)
    boxes = jnp.where((chosen < erase_probability)[:, None], boxes, 0)
    return erase(images, boxes, 255 * uniform(noise_key, *images.shape))


AUGMENTATIONS = {
    function: getfullargspec(function).kwonlyargs
    for function in (
        random_warp,
        random_brightness_contrast,
        random_blur,
        random_equalization,
        random_erasing,
    )
}
"""All augmentations with the names of their settings, in the order in which they are applied."""


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mix each image [B, H, W, C] and its target [B, K] with the previous ones of the batch (the first with the last).

    The weights are lambda and 1 - lambda, with one lambda from Beta(alpha, alpha) for each image (Zhang et al. 2018,
    arXiv:1710.09412, section 2). The order of the batch must already be random, so that neighbours are random pairs.
    """
    weight = symmetric_beta(uniform(key, len(images)), alpha)

    def mixed(x: jax.Array) -> jax.Array:
        own = weight.reshape(-1, *[1] * (x.ndim - 1))
        return own * x + (1 - own) * jnp.roll(x, 1, axis=0)

    return mixed(images), mixed(targets)


def symmetric_beta(quantile: jax.Array, alpha: float) -> jax.Array:
    """Return the values of Beta(alpha, alpha) at quantiles [...] in [0, 1), interpolated between BETA_INTERVALS.

    jax.random.beta rejects draws in a loop, in which a GPU waits for the host several times a step.
    """
    from scipy.special import betaincinv  # slow to import

    values = jnp.asarray(betaincinv(alpha, alpha, np.linspace(0, 1, BETA_INTERVALS + 1)), jnp.float32)
    place = quantile * BETA_INTERVALS
    below = place.astype(jnp.int32)
    return values[below] + (place - below) * (values[below + 1] - values[below])


def place_boxes(
    image_size: tuple[int, int], area: jax.Array, aspect: jax.Array, x: jax.Array, y: jax.Array
) -> jax.Array:
    """Return boxes int32 [B, 4] (x1, y1, x2, y2, half-open) inside the image that cover a fraction `area` [B] of it.

    `aspect`, `x` and `y`, [B] in [0, 1), choose within their ranges the ratio of height to width (on a log scale,
    relative to the image's ratio) and the position. The range of ratios leaves out those whose box would not fit.
    """
    height, width = image_size
    # a box as high as the image has the ratio 1 / area, so this range needs no second draw, as the paper's does
    log_limit = jnp.log(jnp.minimum(LARGEST_ERASED_ASPECT, 1 / area))
    ratio = jnp.exp(log_limit * (2 * aspect - 1))
    box_height = jnp.clip(jnp.round(height * jnp.sqrt(area * ratio)), 1, height)
    box_width = jnp.clip(jnp.round(width * jnp.sqrt(area / ratio)), 1, width)
    x1, y1 = jnp.floor(x * (width - box_width + 1)), jnp.floor(y * (height - box_height + 1))
    return jnp.stack([x1, y1, x1 + box_width, y1 + box_height], axis=-1).astype(jnp.int32)


def uniform(key: jax.Array, count: int, *shape: int) -> jax.Array:
    """Return random numbers [count, *shape] in [0, 1), those of each position drawn from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(image_keys(key, count))


def image_keys(key: jax.Array, count: int) -> jax.Array:
    """Return one key for each position of a batch, the same for a batch of any size."""
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(jnp.arange(count))
