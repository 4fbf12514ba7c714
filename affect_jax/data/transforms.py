"""Changes of whole pictures on the host, with OpenCV, their boxes moving with the pixels.

H W picture, N boxes. Pictures are RGB uint8 [H, W, 3]; boxes are [x1, y1, x2, y2], float32 [N, 4], absolute pixels of
their picture, half-open. Sizes are (height, width). Nothing is changed in place.
"""

from typing import NamedTuple

import cv2
import numpy as np

CLAHE_TILES = (8, 8)
SRGB_KNEE, LINEAR_KNEE = 0.04045, 0.0031308


def fitting_scale(image_size: tuple[int, int], size: tuple[int, int]) -> float:
    """How much a picture of image_size is scaled to fill `size` as far as its aspect lets it."""
    return min(size[0] / image_size[0], size[1] / image_size[1])


def resize(image: np.ndarray, boxes: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Picture and boxes at `scale`: pixel x lands on exactly scale * x, though sides are rounded to whole pixels."""
    if scale == 1:
        return image, boxes
    height, width = (round(side * scale) for side in image.shape[:2])
    # by factors, not by size: OpenCV would recompute them from rounded sides, and far boxes would be off
    size = None if min(height, width) else (max(1, width), max(1, height))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, size, fx=scale, fy=scale, interpolation=interpolation)
    return resized, clip_boxes(boxes * np.float32(scale), resized.shape[:2])


def pad(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture in the upper left corner of one of `size`, zeros elsewhere."""
    padded = np.zeros((*size, 3), np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def resize_to_fit(image: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, float]:
    """The picture scaled, its aspect kept, until it fits into `size`, zeros right of it and below.

    Gives image uint8 [*size, 3], boxes in its pixels, and the scale: new pixels per old pixel.
    """
    scale = fitting_scale(image.shape[:2], size)
    image, boxes = resize(image, boxes, scale)
    return pad(image, size), boxes, scale


def clip_boxes(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Boxes cut at the picture's border."""
    height, width = image_size
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))


def crop(
    image: np.ndarray, boxes: np.ndarray, top_left: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The window of `size` at top_left (y, x), its boxes, and which of the N it keeps: bool [N].

    A box is kept where its centre is inside the window, and cut at the window's border.
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
    """A window that fills `size` at a random scale: so that small faces are seen large, and large ones small.

    The scale is drawn log-uniformly within scale_range, in units of the one at which the whole picture fits. The window
    holds the centre of a box drawn at random, where there is one. Gives its pixels, not yet scaled, its boxes, which of
    the N it keeps (see `crop`), and the scale to resize it by.
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
    """Picture and boxes mirrored left to right."""
    x1, y1, x2, y2 = boxes.T
    width = np.float32(image.shape[1])
    return np.ascontiguousarray(image[:, ::-1]), np.stack([width - x2, y1, width - x1, y2], axis=1)


def brightness_contrast(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Gray levels `brightness` added, and differences from the picture's mean scaled by `contrast`; clipped."""
    levels = np.arange(256, dtype=np.float32)
    mean = np.float32(image.mean())
    table = np.clip(np.rint(levels * contrast + mean * (1 - contrast) + brightness), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurred by a Gaussian of sigma pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


def equalize_histogram(image: np.ndarray) -> np.ndarray:
    """The luminance's levels spread evenly over 0 to 255; colors keep their differences from it."""
    luminance, *colors = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb))
    return cv2.cvtColor(cv2.merge([cv2.equalizeHist(luminance), *colors]), cv2.COLOR_YCrCb2RGB)


def clahe(image: np.ndarray, clip_limit: float) -> np.ndarray:
    """The luminance equalized tile by tile, its contrast limited (Zuiderveld 1994, "Contrast limited adaptive ...").

    `clip_limit` is how many times its mean a histogram's bin may hold.
    """
    luminance, *colors = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb))
    equalized = cv2.createCLAHE(clip_limit, CLAHE_TILES).apply(luminance)
    return cv2.cvtColor(cv2.merge([equalized, *colors]), cv2.COLOR_YCrCb2RGB)


class LowLight(NamedTuple):
    """How a daylight picture becomes a dark one; lengths of light are fractions of the brightest that can be held."""

    exposure: float
    """What is left of the light."""
    gamma: float
    """Power on what is left: above 1 shadows fall deeper than lights."""
    color_cast: tuple[float, float, float]
    """Of the lamps: gains on red, green, blue."""
    photons: float
    """That the brightest light would be counted as: the fewer, the more shot noise."""
    read_noise: float
    """Standard deviation of the sensor's own noise."""


def random_low_light(rng: np.random.Generator, exposure: tuple[float, float] = (0.03, 0.3)) -> LowLight:
    """A dark scene, its exposure drawn log-uniformly within `exposure`."""
    warmth = rng.uniform(-0.1, 0.3)  # street lamps are warm more often than not
    return LowLight(
        exposure=float(np.exp(rng.uniform(*np.log(exposure)))),
        gamma=float(rng.uniform(1.0, 1.3)),
        color_cast=(1 + warmth, 1.0, 1 - warmth),
        photons=float(np.exp(rng.uniform(*np.log((500, 5000))))),
        read_noise=float(np.exp(rng.uniform(*np.log((0.0003, 0.003))))),
    )


def low_light(image: np.ndarray, settings: LowLight, rng: np.random.Generator) -> np.ndarray:
    """The picture as a camera takes it in the dark: in linear light, exposure, gamma, color cast, shot and read noise.

    Shot noise is Poisson's, drawn as the normal distribution of its variance: at a tenth of the time.
    """
    light = LINEAR_OF_LEVEL * np.float32(settings.exposure)
    light = light[:, None] ** np.float32(settings.gamma) * np.array(settings.color_cast, np.float32)  # [256, 3]
    noise = np.sqrt(light / np.float32(settings.photons) + np.float32(settings.read_noise) ** 2)
    tables = [table[None].astype(np.float32) for table in (light, noise)]
    mean, deviation = (cv2.LUT(image, table) for table in tables)
    seen = mean + deviation * rng.standard_normal(image.shape, np.float32)
    return encode_srgb(seen)


def linear_of_srgb(levels: np.ndarray) -> np.ndarray:
    """Light, 0 to 1, of sRGB values from 0 to 255 (IEC 61966-2-1)."""
    values = np.asarray(levels, np.float32) / 255
    return np.where(values <= SRGB_KNEE, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


LINEAR_OF_LEVEL = linear_of_srgb(np.arange(256))
_STEPS = 1 << 14
_LIGHT = np.linspace(0, 1, _STEPS + 1, dtype=np.float32)
_SRGB = np.where(_LIGHT <= LINEAR_KNEE, _LIGHT * 12.92, 1.055 * _LIGHT ** (1 / 2.4) - 0.055)
LEVEL_OF_LIGHT = np.rint(_SRGB * 255).astype(np.uint8)
"""sRGB of light in steps: a power of every pixel would cost more than all the rest."""


def encode_srgb(light: np.ndarray) -> np.ndarray:
    """sRGB uint8 of light, cut to 0 and 1; at most one level from the exact one."""
    return LEVEL_OF_LIGHT[np.rint(np.clip(light, 0, 1) * _STEPS).astype(np.int32)]


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
    horizontal_flip: bool = False,
    low_light_probability: float = 0.0,
    low_light_exposure: tuple[float, float] = (0.03, 0.3),
    brightness: float = 0.0,
    contrast: float = 0.0,
    blur_probability: float = 0.0,
    blur_sigma: float = 1.0,
    equalize_probability: float = 0.0,
    clahe_probability: float = 0.0,
    clahe_limit: float = 2.0,
) -> dict[str, np.ndarray]:
    """A picture with its boxes, made ready for a network whose pictures are of size `bucket`; all is off by default.

    scale_range: a window at a scale within it, see `random_scale_crop`; empty takes the whole picture.
    min_face: boxes whose shorter side is under so many pixels, of the bucket, are marked to be ignored.
    horizontal_flip: every second picture.
    low_light_probability, low_light_exposure: see `random_low_light`.
    brightness: adds up to this fraction of the range of values, either way.
    contrast: scales differences from the mean by 1 - contrast to 1 + contrast.
    blur_probability, blur_sigma: blurred by up to so many pixels.
    equalize_probability, clahe_probability, clahe_limit: equalized, see there.

    Changes of values come after scaling, and do not touch the padding. Gives image uint8 [*bucket, 3], boxes float32
    [M, 4], label int32 [M], ignore bool [M], image_size int32 [2] of what is not padding, scale float32.
    """
    scale = fitting_scale(image.shape[:2], bucket)
    if scale_range:
        image, boxes, kept, scale = random_scale_crop(image, boxes, bucket, scale_range, rng)
        label, ignore = label[kept], ignore[kept]
    image, boxes = resize(image, boxes, scale)
    if horizontal_flip and rng.random() < 0.5:
        image, boxes = flip_horizontally(image, boxes)
    if rng.random() < low_light_probability:
        image = low_light(image, random_low_light(rng, low_light_exposure), rng)
    if brightness or contrast:
        image = brightness_contrast(
            image, 255 * rng.uniform(-brightness, brightness), 1 + rng.uniform(-contrast, contrast)
        )
    if rng.random() < blur_probability:
        image = gaussian_blur(image, rng.uniform(0.1, max(0.1, blur_sigma)))
    if rng.random() < equalize_probability:
        image = equalize_histogram(image)
    if rng.random() < clahe_probability:
        image = clahe(image, clahe_limit)
    small = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) < min_face
    return {
        "image": pad(image, bucket),
        "boxes": boxes.astype(np.float32),
        "label": label.astype(np.int32),
        "ignore": ignore | small,
        "image_size": np.array(image.shape[:2], np.int32),
        "scale": np.float32(scale),
    }
