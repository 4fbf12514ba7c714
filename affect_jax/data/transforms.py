"""Transforms of whole images on the host, with OpenCV; boxes move with the pixels.

H W image, N boxes. Images are RGB uint8 [H, W, 3]; boxes are [x1, y1, x2, y2], float32 [N, 4], absolute pixels of
their image, half-open. Sizes are (height, width). Nothing is changed in place.

To add a random transform: write a function `(rng, image, boxes, *, settings) -> image, boxes` that returns both
unchanged where its settings are at their defaults, add it to TRANSFORMS, and add its settings to `config.transform` in
affect_jax/config.py.
"""

from functools import cache
from inspect import getfullargspec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from affect_jax.files import explained, read_json

REFERENCE_SIZE = (720, 1080)
"""Height and width of the images of reference boxes: those of DARK FACE."""
MAX_REFERENCE_SCALE = 2.0
"""Largest scale of a reference window: larger ones show only blur."""
CLAHE_TILES = (8, 8)
SRGB_KNEE, LINEAR_KNEE = 0.04045, 0.0031308
MOST_GAIN = 8.0
"""Largest factor by which `raise_exposure` brightens an image; what is darker has too few levels."""
HARMLESS_NOISE, SIGMA_PER_NOISE, MOST_SIGMA = 2.0, 0.33, 2.5
"""Noise, in gray levels after brightening, that is not smoothed; sigma in pixels over the root of the rest; its limit.

Chosen for the AP50 of YuNet on darkened validation images of WIDER FACE.
"""
NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


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


def pad(image: np.ndarray, size: tuple[int, int], top_left: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return zeros of `size` with the image placed at top_left (y, x), cut where it does not fit."""
    y, x = top_left
    padded = np.zeros((*size, 3), np.uint8)
    region = padded[y : y + image.shape[0], x : x + image.shape[1]]
    region[:] = image[: region.shape[0], : region.shape[1]]
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


class Window(NamedTuple):
    """A rectangle in pixels of an image, to be scaled to the network's input; it may extend beyond the image."""

    top_left: tuple[int, int]
    size: tuple[int, int]
    scale: float


def crop(
    image: np.ndarray, boxes: np.ndarray, top_left: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Crop the window of `size` at top_left (y, x) to the image.

    Returns its pixels; its boxes [M, 4], clipped at its border; their positions among the N, int [M]; and `partial`,
    bool [M]: boxes that reach into the window although their centre is outside. Half a face is neither an object nor
    background, so that these should be ignored.
    """
    (top, left), (bottom, right) = np.maximum(top_left, 0), np.add(top_left, size)
    image = image[top:bottom, left:right]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - (left, top)
    inside = ((centres >= 0) & (centres < image.shape[1::-1])).all(axis=1)
    moved = clip_boxes(boxes - np.array([left, top, left, top], np.float32), image.shape[:2])
    (kept,) = np.nonzero((moved[:, 2:] > moved[:, :2]).all(axis=1))
    return image, moved[kept], kept, ~inside[kept]


def random_corner(
    image_size: tuple[int, int], window: tuple[int, int], boxes: np.ndarray, rng: np.random.Generator
) -> tuple[int, int]:
    """Draw the top left corner (y, x) of a window that contains the centre of a random box, if there is any.

    The window is inside the image or, along an axis on which it is larger, contains the image.
    """
    corner = []
    centre = boxes[rng.integers(len(boxes))].reshape(2, 2).mean(axis=0)[::-1].astype(int) if len(boxes) else None
    for axis, (length, side) in enumerate(zip(window, image_size, strict=True)):
        low, high = min(0, side - length), max(0, side - length)
        if centre is not None:
            low, high = np.clip((centre[axis] - length + 1, centre[axis]), low, high)
        corner.append(int(rng.integers(low, high + 1)))
    return tuple(corner)


def random_scale_window(
    image_size: tuple[int, int],
    boxes: np.ndarray,
    size: tuple[int, int],
    scale_range: tuple[float, float],
    rng: np.random.Generator,
) -> Window:
    """Draw a window inside the image that fills `size` at a random scale, so that faces are seen at many sizes.

    The scale is drawn log-uniformly from scale_range, relative to the scale at which the whole image fits. The window
    contains the centre of a random box, if there is any.
    """
    scale = fitting_scale(image_size, size) * np.exp(rng.uniform(*np.log(scale_range)))
    window = tuple(min(side, max(1, int(wanted / scale))) for side, wanted in zip(image_size, size, strict=True))
    return Window(random_corner(image_size, window, boxes, rng), window, float(scale))


def random_side_window(
    image_size: tuple[int, int],
    boxes: np.ndarray,
    size: tuple[int, int],
    side_range: tuple[float, float],
    anywhere_probability: float,
    rng: np.random.Generator,
) -> Window:
    """Draw a window with the shape of `size`, whose shorter side is a random multiple of the image's shorter side.

    The multiple is drawn uniformly from side_range; a window that is larger than the image contains it. The window
    contains the centre of a random box, if there is any; with anywhere_probability it is placed without regard to the
    boxes. The sizes are the sample redistribution of SCRFD (Guo et al. 2021, arXiv:2105.04714).
    """
    scale = min(size) / (rng.uniform(*side_range) * min(image_size))
    window = tuple(max(1, round(side / scale)) for side in size)
    boxes = boxes[:0] if rng.random() < anywhere_probability else boxes
    return Window(random_corner(image_size, window, boxes, rng), window, float(scale))


@cache
def read_reference_boxes(path: str | Path) -> np.ndarray:
    """Return the boxes of a JSON file, float64 [R, 4]: x, y, width and height in pixels of REFERENCE_SIZE.

    The file holds {name of an image: {"boxes": [[x, y, width, height], ...]}}. It is read once per process. ValueError
    if it has another content, has no box or has a box without area.
    """
    with explained(path):
        boxes = np.array([box for image in read_json(path).values() for box in image["boxes"]], float)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not (boxes[:, 2:] > 0).all():
            raise ValueError("reference boxes must be [x, y, width, height] with an area, and at least one")
    return boxes


def random_reference_window(
    image_size: tuple[int, int],
    boxes: np.ndarray,
    size: tuple[int, int],
    references: np.ndarray,
    rng: np.random.Generator,
) -> Window:
    """Draw a window with the shape of `size` in which a random box gets the height and place of a random reference.

    `references` are those of read_reference_boxes. The box gets the height of its reference in pixels; its centre gets
    the same fraction of the window's sides that the centre of the reference has of REFERENCE_SIZE. The box is drawn
    from those that need a scale between that at which the whole image fits and MAX_REFERENCE_SCALE. If there are none,
    the scale is the nearest of these, for the box that needs the smallest change. The window may extend beyond the
    image.
    """
    x, y, width, height = references[rng.integers(len(references))]
    scales = height / (boxes[:, 3] - boxes[:, 1])
    allowed = np.clip(scales, fitting_scale(image_size, size), MAX_REFERENCE_SCALE)
    change = np.abs(np.log(scales / allowed))
    chosen = rng.choice(np.flatnonzero(change == change.min()))
    scale = float(allowed[chosen])
    place = np.array([y + height / 2, x + width / 2]) / REFERENCE_SIZE * size
    corner = boxes[chosen].reshape(2, 2).mean(axis=0)[::-1] - place / scale
    window = tuple(max(1, round(side / scale)) for side in size)
    top, left = np.clip(np.rint(corner), np.subtract(1, window), np.subtract(image_size, 1))  # share a pixel
    return Window((int(top), int(left)), window, scale)


def flip_horizontally(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror image and boxes left to right."""
    return np.ascontiguousarray(image[:, ::-1]), flip_boxes(boxes, image.shape[1])


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Mirror boxes [N, 4] of an image of this width left to right."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([np.float32(width) - x2, y1, np.float32(width) - x1, y2], axis=1)


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
    luminance = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.abs(cv2.filter2D(luminance, -1, NOISE_KERNEL)).mean() * np.sqrt(np.pi / 2) / 6)


def raise_exposure(image: np.ndarray, level: float) -> np.ndarray:
    """Brighten an image whose mean is below `level`, at most MOST_GAIN times, and smooth the noise that this amplifies.

    The Gaussian is wider the stronger the noise is. A brighter image is returned unchanged.
    """
    mean = sum(cv2.mean(image)[:3]) / 3
    gain = min(level / mean, MOST_GAIN) if mean else 1.0
    if gain <= 1:
        return image
    noise = estimate_noise(image) * gain
    sigma = min(SIGMA_PER_NOISE * np.sqrt(max(noise - HARMLESS_NOISE, 0)), MOST_SIGMA)
    brightened = image.astype(np.float32) * np.float32(gain)
    if sigma:
        brightened = gaussian_blur(brightened, sigma)
    return np.clip(np.rint(brightened), 0, 255).astype(np.uint8)


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


def expose(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, *, exposure_level: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Brighten a dark image to `exposure_level`, see `raise_exposure`; nothing is random."""
    return raise_exposure(image, exposure_level), boxes


TRANSFORMS = {
    function: getfullargspec(function).kwonlyargs
    for function in (
        random_flip,
        random_darkness,
        random_brightness_contrast,
        random_blur,
        random_equalization,
        random_clahe,
        expose,
    )
}
"""All transforms of a scaled image with the names of their settings, in the order in which they are applied."""


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
    min_face: float = 0.0,
    **settings,
) -> dict[str, np.ndarray]:
    """Fit an image with its boxes into `bucket`, the size of the network's input, and change it at random.

    scale_range: crop a window at a scale in this range, see `random_scale_window`.
    side_range, anywhere_probability: crop a window of a size in this range, see `random_side_window`.
    reference_boxes: in an image with boxes that are not ignored, crop a window of `random_reference_window` instead;
    a JSON file, see read_reference_boxes.
    If none of them is set, the whole image is used.
    min_face: ignore boxes whose shorter side is below this number of pixels of the bucket.
    settings: keyword arguments of TRANSFORMS; all are off by default. They act after scaling, and not on the padding.

    Returns image uint8 [*bucket, 3], boxes float32 [M, 4], label int32 [M], ignore bool [M], image_size int32 [2] (the
    size without padding on the right and at the bottom), scale float32. TypeError on an unknown setting.
    """
    if unknown := settings.keys() - {name for names in TRANSFORMS.values() for name in names}:
        raise TypeError(f"unknown transform settings: {', '.join(sorted(unknown))}")
    size, faces = image.shape[:2], boxes[~ignore]
    if reference_boxes and len(faces):
        window = random_reference_window(size, faces, bucket, read_reference_boxes(reference_boxes), rng)
    elif scale_range:
        window = random_scale_window(size, faces, bucket, scale_range, rng)
    elif side_range:
        window = random_side_window(size, faces, bucket, side_range, anywhere_probability, rng)
    else:
        window = Window((0, 0), size, fitting_scale(size, bucket))
    image, boxes, kept, partial = crop(image, boxes, window.top_left, window.size)
    image, boxes = resize(image, boxes, window.scale)
    for change, names in TRANSFORMS.items():
        image, boxes = change(rng, image, boxes, **{name: settings[name] for name in names if name in settings})
    small = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) < min_face
    y, x = (round(max(0, -start) * window.scale) for start in window.top_left)
    image_size = np.minimum(np.add(image.shape[:2], (y, x)), bucket)
    return {
        "image": pad(image, bucket, (y, x)),
        "boxes": clip_boxes(boxes + np.array([x, y, x, y], np.float32), image_size).astype(np.float32),
        "label": label[kept].astype(np.int32),
        "ignore": ignore[kept] | partial | small,
        "image_size": image_size.astype(np.int32),
        "scale": np.float32(window.scale),
    }
