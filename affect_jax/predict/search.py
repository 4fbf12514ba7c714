"""Sizes at which an image is searched for faces, and how the detections of several searches are merged.

Few sizes are used, so that few programs are compiled.

1. The finest search enlarges the image `enlarge` times, or as far as the limit of pixels allows.
2. With `enlarge` above 1, a second search uses the image's own size or, if the finest is not larger than that, a size
   `enlarge` times smaller than the finest. Several searches make fewer mistakes than one.
3. A third is the second, mirrored.
4. If the last of these is large, an overview finds faces that are larger than the detector has learned.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

from affect_jax.data.windows import fitting_scale
from affect_jax.evaluate.boxes import box_iou

SIDES = (256, 384, 480, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096, 6144)
"""Heights and widths of searches, pixels: multiples of 32."""
MOST_PIXELS = 1536 * 2048
"""Pixels of the largest search by default: photographs of up to 3 megapixels are not reduced."""
ENLARGE = 1.5
"""The default of `enlarge` for images."""
OVERVIEW_PIXELS = 384 * 512
TOLERANCE = 0.95
"""A smaller search is preferred if its scale is at least this fraction of the best."""
SMALLEST_FACE, LARGEST_FACE = 6, 256
"""Sides of faces that a search finds, pixels of the search; the last search finds larger ones too."""
SMALLEST_OF_OVERVIEW = 128
"""Side of the smallest face that the overview is used for, pixels of the finest search."""
SAME_FACE_IOU = 0.5
SCORE_POWER = 3
"""Exponent of a detection's score in the averages of its face: the surest detections count most."""

Size = tuple[int, int]


class Search(NamedTuple):
    """One call of the detector: `scale` pixels of the search per pixel of the image, which may be mirrored.

    It is used for faces whose longer sides are from `smallest` to `largest`, pixels of the image.
    """

    size: Size
    scale: float
    mirrored: bool = False
    smallest: float = 0.0
    largest: float = np.inf


@cache
def plan_searches(image_size: Size, most_pixels: int = MOST_PIXELS, enlarge: float = 1.0) -> tuple[Search, ...]:
    """Return the searches of an image of image_size (height, width), the finest first; there are one to four."""
    searches = [_best_search(image_size, most_pixels, enlarge)]
    finest = searches[0].scale
    if enlarge > 1:
        second = _best_search(image_size, most_pixels, 1.0 if finest > 1 else finest / enlarge)
        searches += [second, second._replace(mirrored=True)]
    size = searches[-1].size
    if size[0] * size[1] > 2 * OVERVIEW_PIXELS:
        overview = _best_search(image_size, OVERVIEW_PIXELS, 1.0)._replace(smallest=SMALLEST_OF_OVERVIEW / finest)
        # for a few images, padding costs less than the compilation of a further program
        has_program = enlarge > 1 and size[0] * size[1] <= 4 * OVERVIEW_PIXELS
        searches.append(overview._replace(size=size) if has_program else overview)
    coarsest = searches[-1].scale
    return tuple(
        search if search.scale == coarsest else search._replace(largest=LARGEST_FACE / search.scale)
        for search in searches
    )


def smallest_face(image_size: Size, most_pixels: int = MOST_PIXELS) -> float:
    """Return the side of the smallest face that is searched for without enlargement, pixels of the image."""
    return SMALLEST_FACE / plan_searches(image_size, most_pixels)[0].scale


def merge(found: Sequence[tuple[Search, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Merge the detections of an image's searches, (search, boxes [D, 4] in pixels of the image, scores [D]).

    Returns boxes [D, 4] and scores [D], highest score first. Boxes of the same face are averaged. The score is the
    power mean over the searches that are used for faces of this size, 0 for those that did not find it. Searches are
    weighted by their scale, because finer ones are more exact.
    """
    if len(found) == 1:
        return found[0][1:]
    searches = [search for search, _, _ in found]
    boxes = np.concatenate([boxes for _, boxes, _ in found])
    scores = np.concatenate([scores for _, _, scores in found])
    source = np.repeat(np.arange(len(found)), [len(its_scores) for _, _, its_scores in found])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
    used = np.stack([(search.smallest <= sides) & (sides <= search.largest) for search in searches], axis=1)
    weights = used * [search.scale for search in searches]  # [D, searches]
    iou = box_iou(boxes, boxes)
    remaining = np.argsort(-scores, kind="stable")
    remaining = remaining[used[remaining, source[remaining]]]
    merged_boxes, merged_scores = [np.zeros((0, 4))], []
    while len(remaining):
        best = remaining[0]
        is_same = iou[best, remaining] >= SAME_FACE_IOU
        same, remaining = remaining[is_same], remaining[~is_same]
        highest = np.zeros(len(searches))
        np.maximum.at(highest, source[same], scores[same])
        merged_scores.append(np.average(highest**SCORE_POWER, weights=weights[best]) ** (1 / SCORE_POWER))
        trust = weights[same, source[same]] * np.maximum(scores[same], 1e-3) ** SCORE_POWER
        merged_boxes.append(np.average(boxes[same], axis=0, weights=trust)[None])
    order = np.argsort(-np.array(merged_scores), kind="stable")
    return np.concatenate(merged_boxes)[order].astype(np.float32), np.array(merged_scores)[order].astype(np.float32)


def _best_search(image_size: Size, most_pixels: int, enlarge: float) -> Search:
    """Return the smallest search whose scale, at most `enlarge`, is about the largest that most_pixels allow."""
    sizes = [size for size in product(SIDES, SIDES) if size[0] * size[1] <= most_pixels]
    searches = [Search(size, min(enlarge, fitting_scale(image_size, size))) for size in sizes]
    largest = max(search.scale for search in searches)
    enough = [search for search in searches if search.scale >= TOLERANCE * largest]
    return min(enough, key=lambda search: (search.size[0] * search.size[1], -search.scale))
