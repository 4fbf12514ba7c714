"""Sizes at which an image is searched for faces: few sizes, so that few programs are compiled.

An image is searched `enlarge` times as large as it is, if that is not too large; otherwise at the number of pixels that
one search may have. A large search is for small faces; a second search, an overview, then finds faces that are larger
than the detector has learned.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np

from affect_jax.data.transforms import fitting_scale

SIDES = (256, 384, 480, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096, 6144)
"""Heights and widths of searches, pixels: multiples of 32."""
MOST_PIXELS = 1536 * 2048
"""Pixels of the largest search by default: photographs of up to 3 megapixels are not reduced."""
OVERVIEW_PIXELS = 384 * 512
TOLERANCE = 0.95
"""A smaller search is preferred if its scale is at least this fraction of the best."""
SMALLEST_FACE, LARGEST_FACE = 6, 256
"""Sides of faces that a search finds, pixels of the search; an overview finds larger ones too."""
NMS_THRESH = 0.45

Size = tuple[int, int]


class Search(NamedTuple):
    """One call of the detector: `scale` pixels of the search per pixel of the image."""

    size: Size
    scale: float


@cache
def plan_searches(image_size: Size, most_pixels: int = MOST_PIXELS, enlarge: float = 1.0) -> tuple[Search, ...]:
    """Return the searches of an image of image_size (height, width), the finest first; there are one or two."""
    finest = _best_search(image_size, most_pixels, enlarge)
    if finest.size[0] * finest.size[1] <= 2 * OVERVIEW_PIXELS:
        return (finest,)
    return finest, _best_search(image_size, OVERVIEW_PIXELS, 1.0)


def smallest_face(image_size: Size, most_pixels: int = MOST_PIXELS) -> float:
    """Return the side of the smallest face that is searched for without enlargement, pixels of the image."""
    return SMALLEST_FACE / plan_searches(image_size, most_pixels)[0].scale


def merge(found: Sequence[tuple[Search, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Merge the detections of an image's searches, (search, boxes [D, 4] in pixels of the image, scores [D]).

    Returns boxes [D, 4] and scores [D], highest score first. Faces that are too large for the finest search are taken
    from the overview. Small faces are not, because its boxes of them are less exact.
    """
    if len(found) == 1:
        return found[0][1:]
    finest = found[0][0]
    boxes, scores = [], []
    for search, its_boxes, its_scores in found:
        sides = finest.scale * (its_boxes[:, 2:] - its_boxes[:, :2]).max(axis=1, initial=0)
        kept = sides <= LARGEST_FACE if search is finest else sides > LARGEST_FACE / 2
        boxes.append(its_boxes[kept])
        scores.append(its_scores[kept])
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    corners_and_sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    best_first = np.array(cv2.dnn.NMSBoxes(corners_and_sides, scores, 0.0, NMS_THRESH), int).reshape(-1)
    return boxes[best_first], scores[best_first]


def _best_search(image_size: Size, most_pixels: int, enlarge: float) -> Search:
    """Return the smallest search whose scale, at most `enlarge`, is about the largest that most_pixels allow."""
    sizes = [size for size in product(SIDES, SIDES) if size[0] * size[1] <= most_pixels]
    searches = [Search(size, min(enlarge, fitting_scale(image_size, size))) for size in sizes]
    largest = max(search.scale for search in searches)
    enough = [search for search in searches if search.scale >= TOLERANCE * largest]
    return min(enough, key=lambda search: (search.size[0] * search.size[1], -search.scale))
