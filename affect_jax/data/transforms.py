"""Random transforms of whole images on the host, with OpenCV; boxes move with the pixels.

H W image, N boxes. Images are RGB uint8 [H, W, 3]; boxes are [x1, y1, x2, y2], float32 [N, 4], absolute pixels of
their image, half-open. Sizes are (height, width). Nothing is changed in place.

To add a random transform of pixels: write a function `(rng, image, *, settings) -> image` that returns the image
unchanged where its settings are at their defaults, add it to TRANSFORMS, and add its settings to `config.transform` in
affect_jax/config.py, and their checks to affect_jax/config_checks.py.
"""

from inspect import getfullargspec
from pathlib import Path

import cv2
import numpy as np

from affect_jax.data.low_light import low_light, random_low_light
from affect_jax.data.windows import (
    choose_window,
    clip_boxes,
    crop,
    crop_boxes,
    flip,
    flip_boxes,
    pad,
    resize,
    scale_boxes,
)

CLAHE_TILES = (8, 8)
MAX_GAIN = 8.0
"""Largest factor by which `raise_exposure` brightens an image; what is darker has too few levels."""
# the next three are chosen for the AP50 of YuNet on darkened validation images of WIDER FACE
HARMLESS_NOISE = 2.0
"""Noise that `raise_exposure` does not smooth, in gray levels after brightening."""
SIGMA_PER_NOISE = 0.33
"""Sigma of the smoothing, in pixels, per square root of the noise above HARMLESS_NOISE."""
MAX_SIGMA = 2.5
"""Largest sigma of the smoothing, in pixels."""
BRIGHTENINGS = {
    "none": {},
    "equalize": {"equalize_probability": 1.0},
    "clahe": {"clahe_probability": 1.0},
    "exposure": {"exposure_level": 60.0},
}
"""Ways to brighten an image before detection, as settings of `transform`."""
NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def brightness_contrast(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Add `brightness`, in gray levels, and scale the differences from the image's mean by `contrast`; clipped."""
    levels = np.arange(256, dtype=np.float32)
    mean = np.float32(image.mean())
    table = np.clip(np.rint(levels * contrast + mean * (1 - contrast) + brightness), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a Gaussian of sigma pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


def equalize_histogram(image: np.ndarray) -> np.ndarray:
    """Spread the levels of the luminance evenly over 0 to 255; colors keep their differences from it."""
    luminance, *colors = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb))
    return cv2.cvtColor(cv2.merge([cv2.equalizeHist(luminance), *colors]), cv2.COLOR_YCrCb2RGB)


def estimate_noise(image: np.ndarray) -> float:
    """Estimate the standard deviation of white noise, in gray levels of the image's luminance.

    It is the mean absolute difference of two Laplacians, which smooth surfaces and straight edges do not contribute to
    (Immerkaer 1996, "Fast noise variance estimation", doi:10.1006/cviu.1996.0060).
    """
    luminance = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    differences = cv2.filter2D(luminance, cv2.CV_16S, NOISE_KERNEL)
    return float(cv2.norm(differences, cv2.NORM_L1) / differences.size * np.sqrt(np.pi / 2) / 6)


def raise_exposure(image: np.ndarray, level: float) -> np.ndarray:
    """Brighten an image whose mean is below `level`, at most MAX_GAIN times, and smooth the noise that this amplifies.

    The Gaussian is wider the stronger the noise is. A brighter image is returned unchanged.
    """
    mean = sum(cv2.mean(image)[:3]) / 3
    gain = min(level / mean, MAX_GAIN) if mean else 1.0
    if gain <= 1:
        return image
    noise = estimate_noise(image) * gain
    sigma = min(SIGMA_PER_NOISE * np.sqrt(max(noise - HARMLESS_NOISE, 0)), MAX_SIGMA)
    if not sigma:
        return cv2.convertScaleAbs(image, alpha=gain)  # rounded and clipped
    return cv2.convertScaleAbs(gaussian_blur(image.astype(np.float32) * np.float32(gain), sigma))


def clahe(image: np.ndarray, clip_limit: float) -> np.ndarray:
    """Equalize the luminance tile by tile with limited contrast (Zuiderveld 1994, "Contrast limited adaptive ...").

    `clip_limit` limits a bin of a histogram, in multiples of the mean bin.
    """
    luminance, *colors = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb))
    equalized = cv2.createCLAHE(clip_limit, CLAHE_TILES).apply(luminance)
    return cv2.cvtColor(cv2.merge([equalized, *colors]), cv2.COLOR_YCrCb2RGB)


def random_darkness(
    rng: np.random.Generator,
    image: np.ndarray,
    *,
    low_light_probability: float = 0.0,
    low_light_exposure: tuple[float, float] = (0.03, 0.3),
) -> np.ndarray:
    """Darken an image by `random_low_light` within `low_light_exposure`."""
    if rng.random() < low_light_probability:
        return low_light(image, random_low_light(rng, low_light_exposure), rng)
    return image


def random_brightness_contrast(
    rng: np.random.Generator, image: np.ndarray, *, brightness: float = 0.0, contrast: float = 0.0
) -> np.ndarray:
    """Change brightness and contrast.

    brightness: add up to this fraction of the range of values, positive or negative.
    contrast: scale the differences from the image's mean by 1 - contrast to 1 + contrast.
    """
    if brightness or contrast:
        added, factor = 255 * rng.uniform(-brightness, brightness), 1 + rng.uniform(-contrast, contrast)
        return brightness_contrast(image, added, factor)
    return image


def random_blur(
    rng: np.random.Generator, image: np.ndarray, *, blur_probability: float = 0.0, blur_sigma: float = 1.0
) -> np.ndarray:
    """Blur by a Gaussian of up to `blur_sigma` pixels."""
    if rng.random() < blur_probability:
        return gaussian_blur(image, rng.uniform(0.1, max(0.1, blur_sigma)))
    return image


def random_equalization(
    rng: np.random.Generator, image: np.ndarray, *, equalize_probability: float = 0.0
) -> np.ndarray:
    """Equalize the histogram, see `equalize_histogram`."""
    return equalize_histogram(image) if rng.random() < equalize_probability else image


def random_clahe(
    rng: np.random.Generator, image: np.ndarray, *, clahe_probability: float = 0.0, clahe_limit: float = 2.0
) -> np.ndarray:
    """Equalize with limited contrast, see `clahe`."""
    return clahe(image, clahe_limit) if rng.random() < clahe_probability else image


def expose(rng: np.random.Generator, image: np.ndarray, *, exposure_level: float = 0.0) -> np.ndarray:
    """Brighten a dark image to `exposure_level`, see `raise_exposure`; nothing is random."""
    return raise_exposure(image, exposure_level)


TRANSFORMS = {
    function: getfullargspec(function).kwonlyargs
    for function in (
        random_darkness,
        random_brightness_contrast,
        random_blur,
        random_equalization,
        random_clahe,
        expose,
    )
}
"""Transforms of the pixels of a scaled image with the names of their settings, in the order of their application."""


def transform(
    image: np.ndarray,
    boxes: np.ndarray,
    label: np.ndarray,
    ignore: np.ndarray,
    bucket: tuple[int, int],
    rng: np.random.Generator,
    *,
    scale_range: tuple[float, ...] = (),
    side_range: tuple[float, ...] = (),
    anywhere_probability: float = 0.0,
    reference_boxes: str | Path = "",
    horizontal_flip: bool = False,
    min_face: float = 0.0,
    **settings,
) -> dict[str, np.ndarray]:
    """Fit an image with its boxes into `bucket`, the size of the network's input, and change it at random.

    scale_range, side_range, anywhere_probability, reference_boxes: the window to crop, see `choose_window`; the boxes
    that it regards are those that are not ignored.
    horizontal_flip: mirror half of the images.
    min_face: ignore boxes whose shorter side is below this number of pixels of the bucket, or 0.
    settings: keyword arguments of TRANSFORMS; all are off by default. They act after scaling, and not on the padding.

    Returns image uint8 [*bucket, 3], boxes float32 [M, 4], label int32 [M], ignore bool [M], image_size int32 [2] (the
    size without padding on the right and at the bottom), scale float32. TypeError on an unknown setting.
    """
    if unknown := settings.keys() - {name for names in TRANSFORMS.values() for name in names}:
        raise TypeError(f"unknown transform settings: {', '.join(sorted(unknown))}")
    size = image.shape[:2]
    window = choose_window(
        size, boxes[~ignore], bucket, rng, scale_range, side_range, anywhere_probability, reference_boxes
    )
    image = resize(crop(image, window.top_left, window.size), window.scale)
    boxes, kept, partial = crop_boxes(boxes, size, window.top_left, window.size)
    boxes = scale_boxes(boxes, window.scale, image.shape[:2])
    if horizontal_flip and rng.random() < 0.5:
        image, boxes = flip(image), flip_boxes(boxes, image.shape[1])
    for change, names in TRANSFORMS.items():
        image = change(rng, image, **{name: settings[name] for name in names if name in settings})
    y, x = (round(max(0, -start) * window.scale) for start in window.top_left)
    image_size = np.minimum(np.add(image.shape[:2], (y, x)), bucket)
    boxes = clip_boxes(boxes + np.array([x, y, x, y], np.float32), image_size).astype(np.float32)
    shorter_side = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    small = (shorter_side < min_face) | (shorter_side <= 0)  # rounding can leave a box at the border without area
    return {
        "image": pad(image, bucket, (y, x)),
        "boxes": boxes,
        "label": label[kept].astype(np.int32),
        "ignore": ignore[kept] | partial | small,
        "image_size": image_size.astype(np.int32),
        "scale": np.float32(window.scale),
    }
