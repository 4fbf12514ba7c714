"""Places and sizes in images: scaling, padding, cropping and mirroring, for pixels and for boxes; random windows.

H W image, N boxes. Images are RGB uint8 [H, W, 3]; boxes are [x1, y1, x2, y2], float32 [N, 4], absolute pixels of
their image, half-open. Sizes are (height, width). Nothing is changed in place.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from affect_jax.files import explained, read_json

REFERENCE_SIZE = (720, 1080)
"""Height and width of the images of reference boxes: those of DARK FACE."""
MAX_REFERENCE_SCALE = 2.0
"""Largest scale of a reference window: larger ones show only blur."""


def fitting_scale(image_size: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the largest scale at which an image of `image_size` fits into `size`."""
    return min(size[0] / image_size[0], size[1] / image_size[1])


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """Scale the image: pixel x moves to exactly scale * x, although sides are rounded to whole pixels."""
    if scale == 1:
        return image
    height, width = (round(side * scale) for side in image.shape[:2])
    # pass factors, not a size: OpenCV would compute them from rounded sides, and distant boxes would be off
    size = None if min(height, width) else (max(1, width), max(1, height))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, fx=scale, fy=scale, interpolation=interpolation)


def scale_boxes(boxes: np.ndarray, scale: float, image_size: tuple[int, int]) -> np.ndarray:
    """Scale boxes [N, 4] and clip them at the border of the scaled image, whose (height, width) is `image_size`."""
    return clip_boxes(boxes * np.float32(scale), image_size)


def pad(image: np.ndarray, size: tuple[int, int], top_left: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return zeros of `size` with the image placed at top_left (y, x), cut where it does not fit.

    An image of this size at (0, 0) is returned itself.
    """
    if image.shape[:2] == tuple(size) and tuple(top_left) == (0, 0):
        return image
    y, x = top_left
    padded = np.zeros((*size, 3), np.uint8)
    region = padded[y : y + image.shape[0], x : x + image.shape[1]]
    region[:] = image[: region.shape[0], : region.shape[1]]
    return padded


def clip_boxes(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Clip boxes at the image's border."""
    height, width = image_size
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))


class Window(NamedTuple):
    """A rectangle in pixels of an image, to be scaled to the network's input; it may extend beyond the image."""

    top_left: tuple[int, int]
    size: tuple[int, int]
    scale: float


def crop(image: np.ndarray, top_left: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the part of the image in the window of `size` at top_left (y, x)."""
    (top, left), (bottom, right) = np.maximum(top_left, 0), np.add(top_left, size)
    return image[top:bottom, left:right]


def crop_boxes(
    boxes: np.ndarray, image_size: tuple[int, int], top_left: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the boxes of the image that `crop` returns for an image of `image_size`.

    These are its boxes [M, 4], clipped at its border; their positions among the N, int [M]; and `partial`, bool [M]:
    boxes that reach into the window although their center is outside. Half a face is neither an object nor background,
    so that these should be ignored.
    """
    (top, left), (bottom, right) = np.maximum(top_left, 0), np.minimum(np.add(top_left, size), image_size)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 - (left, top)
    inside = ((centers >= 0) & (centers < (right - left, bottom - top))).all(axis=1)
    moved = clip_boxes(boxes - np.array([left, top, left, top], np.float32), (bottom - top, right - left))
    (kept,) = np.nonzero((moved[:, 2:] > moved[:, :2]).all(axis=1))
    return moved[kept], kept, ~inside[kept]


def random_corner(
    image_size: tuple[int, int], window: tuple[int, int], boxes: np.ndarray, rng: np.random.Generator
) -> tuple[int, int]:
    """Draw the top left corner (y, x) of a window that contains the center of a random box, if there is any.

    The window is inside the image or, along an axis on which it is larger, contains the image.
    """
    corner = []
    center = boxes[rng.integers(len(boxes))].reshape(2, 2).mean(axis=0)[::-1].astype(int) if len(boxes) else None
    for axis, (length, side) in enumerate(zip(window, image_size, strict=True)):
        low, high = min(0, side - length), max(0, side - length)
        if center is not None:
            low, high = np.clip((center[axis] - length + 1, center[axis]), low, high)
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
    contains the center of a random box, if there is any.
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
    contains the center of a random box, if there is any; with anywhere_probability it is placed without regard to the
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

    `references` are those of read_reference_boxes. The box gets the height of its reference in pixels; its center gets
    the same fraction of the window's sides that the center of the reference has of REFERENCE_SIZE. The box is drawn
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


def choose_window(
    image_size: tuple[int, int],
    boxes: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
    scale_range: tuple[float, ...],
    side_range: tuple[float, ...],
    anywhere_probability: float,
    reference_boxes: str | Path,
) -> Window:
    """Draw a window to be scaled to `size`, of the kind whose setting is not empty; without any, the whole image.

    scale_range: a window at a scale in this range, see `random_scale_window`.
    side_range, anywhere_probability: a window of a size in this range, see `random_side_window`.
    reference_boxes: in an image with boxes, a window of `random_reference_window` instead; a JSON file, see
    read_reference_boxes.
    """
    if reference_boxes and len(boxes):
        return random_reference_window(image_size, boxes, size, read_reference_boxes(reference_boxes), rng)
    if scale_range:
        return random_scale_window(image_size, boxes, size, scale_range, rng)
    if side_range:
        return random_side_window(image_size, boxes, size, side_range, anywhere_probability, rng)
    return Window((0, 0), image_size, fitting_scale(image_size, size))


def flip(image: np.ndarray) -> np.ndarray:
    """Mirror the image left to right."""
    return np.ascontiguousarray(image[:, ::-1])


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Mirror boxes [N, 4] of an image of this width left to right."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([np.float32(width) - x2, y1, np.float32(width) - x1, y2], axis=1)
