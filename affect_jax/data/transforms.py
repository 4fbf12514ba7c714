"""Transforms of whole images on the host, with OpenCV; boxes move with the pixels.

H W image, N boxes. Images are RGB uint8 [H, W, 3]; boxes are [x1, y1, x2, y2], float32 [N, 4], absolute pixels of
their image, half-open. Sizes are (height, width). Nothing is changed in place.

To add a random transform: write a function `(rng, image, boxes, *, settings) -> image, boxes` that returns both
unchanged where its settings are at their defaults, add it to TRANSFORMS, and add its settings to `config.transform` in
affect_jax/config.py.
"""

from inspect import getfullargspec
from typing import NamedTuple

import cv2
import numpy as np

CLAHE_TILES = (8, 8)
SRGB_KNEE, LINEAR_KNEE = 0.04045, 0.0031308


def fitting_scale(image_size: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the largest scale at which an image of `image_size` fits into `size`."""
    return min(size[0] / image_size[0], size[1] / image_size[1])


def resize(image: np.ndarray, boxes: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale image and boxes: pixel x moves to exactly scale * x, although sides are rounded to whole pixels."""
    if scale == 1:
        return image, boxes
    height, width = (round(side * scale) for side in image.shape[:2])
    # pass factors, not a size: OpenCV would compute them from rounded sides, and distant boxes would be off
    size = None if min(height, width) else (max(1, width), max(1, height))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, size, fx=scale, fy=scale, interpolation=interpolation)
    return resized, clip_boxes(boxes * np.float32(scale), resized.shape[:2])


def pad(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pad the image with zeros on the right and at the bottom to `size`."""
    padded = np.zeros((*size, 3), np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def resize_to_fit(image: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, float]:
    """Scale the image, aspect kept, to fit into `size`, and pad it with zeros on the right and at the bottom.

    Returns image uint8 [*size, 3], boxes in its pixels, and the scale: new pixels per old pixel.
    """
    scale = fitting_scale(image.shape[:2], size)
    image, boxes = resize(image, boxes, scale)
    return pad(image, size), boxes, scale


def clip_boxes(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Clip boxes at the image's border."""
    height, width = image_size
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))


def crop(
    image: np.ndarray, boxes: np.ndarray, top_left: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crop the window of `size` at top_left (y, x); return its pixels, its boxes, and the mask of kept boxes, bool [N].

    A box is kept where its centre is inside the window, and clipped at the window's border.
    """
    y, x = top_left
    image = image[y : y + size[0], x : x + size[1]]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - (x, y)
    kept = ((centres >= 0) & (centres < image.shape[1::-1])).all(axis=1)
    moved = boxes[kept] - np.array([x, y, x, y], np.float32)
    return image, clip_boxes(moved, image.shape[:2]), kept


def random_scale_crop(
    image: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int],
    scale_range: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Crop a window that fills `size` at a random scale, so that the network sees each face at many sizes.

    The scale is drawn log-uniformly from scale_range, relative to the scale at which the whole image fits. The window
    contains the centre of a random box, if there is any. Returns its pixels before scaling, its boxes, which of the N
    are kept (see `crop`), and the scale to resize it by.
    """
    scale = fitting_scale(image.shape[:2], size) * np.exp(rng.uniform(*np.log(scale_range)))
    window = [min(side, max(1, int(wanted / scale))) for side, wanted in zip(image.shape[:2], size, strict=True)]
    lowest, highest = [0, 0], [side - cut for side, cut in zip(image.shape[:2], window, strict=True)]
    if len(boxes):
        x1, y1, x2, y2 = boxes[rng.integers(len(boxes))]
        for axis, centre in enumerate((int((y1 + y2) / 2), int((x1 + x2) / 2))):
            last = highest[axis]
            lowest[axis] = min(max(0, centre - window[axis] + 1), last)
            highest[axis] = max(min(last, centre), lowest[axis])
    top_left = tuple(int(rng.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True))
    return *crop(image, boxes, top_left, tuple(window)), float(scale)


def flip_horizontally(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror image and boxes left to right."""
    x1, y1, x2, y2 = boxes.T
    width = np.float32(image.shape[1])
    return np.ascontiguousarray(image[:, ::-1]), np.stack([width - x2, y1, width - x1, y2], axis=1)


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


def clahe(image: np.ndarray, clip_limit: float) -> np.ndarray:
    """Equalize the luminance tile by tile with limited contrast (Zuiderveld 1994, "Contrast limited adaptive ...").

    `clip_limit` limits a bin of a histogram, in multiples of the mean bin.
    """
    luminance, *colors = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb))
    equalized = cv2.createCLAHE(clip_limit, CLAHE_TILES).apply(luminance)
    return cv2.cvtColor(cv2.merge([equalized, *colors]), cv2.COLOR_YCrCb2RGB)


class LowLight(NamedTuple):
    """Settings that turn a daylight image into a dark image; light is a fraction of the sensor's full scale."""

    exposure: float
    """Fraction of the light that remains."""
    gamma: float
    """Exponent on the remaining light: above 1, shadows lose more than highlights."""
    color_cast: tuple[float, float, float]
    """Gains on red, green and blue: the color of the lamps."""
    photons: float
    """Number of photons at full scale; fewer photons give more shot noise."""
    read_noise: float
    """Standard deviation of the sensor's own noise."""


def random_low_light(rng: np.random.Generator, exposure: tuple[float, float] = (0.03, 0.3)) -> LowLight:
    """Draw settings of a dark scene, the exposure log-uniformly from the range `exposure`."""
    warmth = rng.uniform(-0.1, 0.3)  # street lamps are warm more often than not
    return LowLight(
        exposure=float(np.exp(rng.uniform(*np.log(exposure)))),
        gamma=float(rng.uniform(1.0, 1.3)),
        color_cast=(1 + warmth, 1.0, 1 - warmth),
        photons=float(np.exp(rng.uniform(*np.log((500, 5000))))),
        read_noise=float(np.exp(rng.uniform(*np.log((0.0003, 0.003))))),
    )


def low_light(image: np.ndarray, settings: LowLight, rng: np.random.Generator) -> np.ndarray:
    """Darken an image as a camera would see it: exposure, gamma, color cast, shot and read noise in linear light.

    The Poisson distribution of shot noise is approximated by a normal distribution, which takes a tenth of the time.
    """
    light = LINEAR_OF_LEVEL * np.float32(settings.exposure)
    light = light[:, None] ** np.float32(settings.gamma) * np.array(settings.color_cast, np.float32)  # [256, 3]
    noise = np.sqrt(light / np.float32(settings.photons) + np.float32(settings.read_noise) ** 2)
    tables = [table[None].astype(np.float32) for table in (light, noise)]
    mean, deviation = (cv2.LUT(image, table) for table in tables)
    seen = mean + deviation * rng.standard_normal(image.shape, np.float32)
    return encode_srgb(seen)


def linear_of_srgb(levels: np.ndarray) -> np.ndarray:
    """Convert sRGB values from 0 to 255 to light from 0 to 1 (IEC 61966-2-1)."""
    values = np.asarray(levels, np.float32) / 255
    return np.where(values <= SRGB_KNEE, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


LINEAR_OF_LEVEL = linear_of_srgb(np.arange(256))
_STEPS = 1 << 14
_LIGHT = np.linspace(0, 1, _STEPS + 1, dtype=np.float32)
_SRGB = np.where(_LIGHT <= LINEAR_KNEE, _LIGHT * 12.92, 1.055 * _LIGHT ** (1 / 2.4) - 0.055)
LEVEL_OF_LIGHT = np.rint(_SRGB * 255).astype(np.uint8)
"""Table from light to sRGB: computing a power for every pixel would cost more than everything else."""


def encode_srgb(light: np.ndarray) -> np.ndarray:
    """Convert light, clipped to [0, 1], to sRGB uint8, exact to one level."""
    return LEVEL_OF_LIGHT[np.rint(np.clip(light, 0, 1) * _STEPS).astype(np.int32)]


def random_flip(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, *, horizontal_flip: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Flip half of the images."""
    if horizontal_flip and rng.random() < 0.5:
        return flip_horizontally(image, boxes)
    return image, boxes


def random_darkness(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes: np.ndarray,
    *,
    low_light_probability: float = 0.0,
    low_light_exposure: tuple[float, float] = (0.03, 0.3),
) -> tuple[np.ndarray, np.ndarray]:
    """Darken an image by `random_low_light` within `low_light_exposure`."""
    if rng.random() < low_light_probability:
        image = low_light(image, random_low_light(rng, low_light_exposure), rng)
    return image, boxes


def random_brightness_contrast(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, *, brightness: float = 0.0, contrast: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Change brightness and contrast.

    brightness: add up to this fraction of the range of values, positive or negative.
    contrast: scale the differences from the image's mean by 1 - contrast to 1 + contrast.
    """
    if brightness or contrast:
        image = brightness_contrast(
            image, 255 * rng.uniform(-brightness, brightness), 1 + rng.uniform(-contrast, contrast)
        )
    return image, boxes


def random_blur(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes: np.ndarray,
    *,
    blur_probability: float = 0.0,
    blur_sigma: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Blur by a Gaussian of up to `blur_sigma` pixels."""
    if rng.random() < blur_probability:
        image = gaussian_blur(image, rng.uniform(0.1, max(0.1, blur_sigma)))
    return image, boxes


def random_equalization(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, *, equalize_probability: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Equalize the histogram, see `equalize_histogram`."""
    if rng.random() < equalize_probability:
        image = equalize_histogram(image)
    return image, boxes


def random_clahe(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes: np.ndarray,
    *,
    clahe_probability: float = 0.0,
    clahe_limit: float = 2.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Equalize with limited contrast, see `clahe`."""
    if rng.random() < clahe_probability:
        image = clahe(image, clahe_limit)
    return image, boxes


TRANSFORMS = {
    function: getfullargspec(function).kwonlyargs
    for function in (
        random_flip,
        random_darkness,
        random_brightness_contrast,
        random_blur,
        random_equalization,
        random_clahe,
    )
}
"""All random transforms of a scaled image with the names of their settings, in the order in which they are applied."""


def transform(
    image: np.ndarray,
    boxes: np.ndarray,
    label: np.ndarray,
    ignore: np.ndarray,
    bucket: tuple[int, int],
    rng: np.random.Generator,
    *,
    scale_range: tuple[float, ...] = (),
    min_face: float = 0.0,
    **settings,
) -> dict[str, np.ndarray]:
    """Fit an image with its boxes into `bucket`, the size of the network's input, and change it at random.

    scale_range: crop a window at a scale in this range, see `random_scale_crop`; empty keeps the whole image.
    min_face: ignore boxes whose shorter side is below this number of pixels of the bucket.
    settings: keyword arguments of TRANSFORMS; all are off by default. They act after scaling, and not on the padding.

    Returns image uint8 [*bucket, 3], boxes float32 [M, 4], label int32 [M], ignore bool [M], image_size int32 [2] (the
    size without padding), scale float32. TypeError on an unknown setting.
    """
    if unknown := settings.keys() - {name for names in TRANSFORMS.values() for name in names}:
        raise TypeError(f"unknown transform settings: {', '.join(sorted(unknown))}")
    scale = fitting_scale(image.shape[:2], bucket)
    if scale_range:
        image, boxes, kept, scale = random_scale_crop(image, boxes, bucket, scale_range, rng)
        label, ignore = label[kept], ignore[kept]
    image, boxes = resize(image, boxes, scale)
    for change, names in TRANSFORMS.items():
        image, boxes = change(rng, image, boxes, **{name: settings[name] for name in names if name in settings})
    small = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) < min_face
    return {
        "image": pad(image, bucket),
        "boxes": boxes.astype(np.float32),
        "label": label.astype(np.int32),
        "ignore": ignore | small,
        "image_size": np.array(image.shape[:2], np.int32),
        "scale": np.float32(scale),
    }
