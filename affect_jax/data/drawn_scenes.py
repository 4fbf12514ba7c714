"""Drawn scenes: drawn faces of many sizes on cluttered backgrounds, by day or in the dark, for demos and tests.

N faces, (H, W) of a scene, P scenes of a split, S side of a face's canvas. The background also contains round shapes
and skin colors, so that neither alone identifies a face.
"""

from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np

from affect_jax.data import SPLITS
from affect_jax.data.drawn_faces import EXPRESSIONS, face_parameters, head_mask, render_face
from affect_jax.data.low_light import low_light, random_low_light
from affect_jax.data.split import BoxesSplit
from affect_jax.data.transforms import gaussian_blur

MIN_HEIGHT, MAX_HEIGHT = 8, 128
HEAD_SCALE = 0.42  # half the height of the head in fractions of its canvas: it stays inside at any roll
EMPTY_SHARE = 0.1
MAX_FACES = 8
MAX_COVERED = 0.35  # of the smaller of two heads
ATTEMPTS = 20
LAYOUT, BACKGROUND, DARKNESS, FACES = range(1, 5)
"""Independent random streams of a scene."""


class Place(NamedTuple):
    """Position and size of a face's square canvas in its scene."""

    x: int
    y: int
    size: int


class DrawnScenes(BoxesSplit):
    """A split of drawn scenes. Example i of a split and seed is always the same image; splits have no common images.

    With `dark`, the same scenes are shown in low light.
    """

    class_names = ("face",)
    LICENCE = "drawn by affect_jax: no data of other people"

    def __init__(
        self,
        split: str,
        num_examples: int,
        seed: int = 0,
        image_size: tuple[int, int] = (320, 448),
        dark: bool = False,
    ):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
        if min(image_size) < 4 * MIN_HEIGHT:
            raise ValueError(f"image_size is {tuple(image_size)}; each side needs at least {4 * MIN_HEIGHT} pixels")
        self.split, self.num_examples, self.seed, self.dark = split, num_examples, seed, dark
        self.image_size = tuple(image_size)

    def __len__(self) -> int:
        return self.num_examples

    def sizes(self) -> np.ndarray:
        """Return (height, width) of every scene, int32 [P, 2]."""
        return np.tile(np.array(self.image_size, np.int32), (self.num_examples, 1))

    def box_counts(self) -> np.ndarray:
        """Return the number of faces of every scene, int32 [P]."""
        return np.array([len(self._places(index)) for index in range(self.num_examples)], np.int32)

    def image_names(self, indices: np.ndarray) -> list[str]:
        """Return the name of each scene."""
        return [f"drawn_scenes, {self.split} {index}" for index in indices]

    def annotations(self, index: int) -> dict[str, np.ndarray]:
        """Return boxes float32 [N, 4], label int32 [N] and ignore bool [N]."""
        heads = [(place, head_mask(self._face(index, n), place.size)) for n, place in enumerate(self._places(index))]
        return annotate([tight_box(mask, place) for place, mask in heads])

    def read_image(self, index: int) -> dict[str, np.ndarray]:
        """Return image uint8 [H, W, 3] (RGB) and the arrays of `annotations`."""
        scene = cluttered_background(self._rng(index, BACKGROUND), self.image_size)
        boxes = []
        for number, place in enumerate(self._places(index)):
            face = self._face(index, number)
            mask = head_mask(face, place.size)
            tint = skin_tint(self._rng(index, FACES, number, 1))
            paste(scene, render_face(face, place.size)[..., None] * tint, mask, place)
            boxes.append(tight_box(mask, place))
        if self.dark:
            rng = self._rng(index, DARKNESS)
            scene = low_light(scene, random_low_light(rng), rng)
        return {"image": scene, **annotate(boxes)}

    def _rng(self, index: int, *what: int) -> np.random.Generator:
        if not 0 <= index < self.num_examples:
            raise IndexError(f"index {index} of {self.num_examples} drawn scenes")
        return np.random.default_rng((self.seed, SPLITS.index(self.split), index, *what))

    def _places(self, index: int) -> list[Place]:
        return random_places(self._rng(index, LAYOUT), self.image_size)

    def _face(self, index: int, number: int):
        """Return the parameters of a face whose head is in the middle of its canvas."""
        rng = self._rng(index, FACES, number)
        face = face_parameters(rng, str(rng.choice(list(EXPRESSIONS))))
        return replace(face, view=replace(face.view, center=(0.5, 0.5), scale=HEAD_SCALE))


def annotate(boxes: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return boxes, label and ignore of the heads of a scene."""
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "label": np.zeros(len(boxes), np.int32),
        "ignore": np.zeros(len(boxes), np.bool_),
    }


def random_places(rng: np.random.Generator, image_size: tuple[int, int]) -> list[Place]:
    """Draw the places of the faces: log-uniform heights, little overlap, sometimes none; small faces first."""
    if rng.random() < EMPTY_SHARE:
        return []
    highest = min(MAX_HEIGHT, 0.6 * min(image_size))
    heights = np.exp(rng.uniform(np.log(MIN_HEIGHT), np.log(highest), rng.integers(1, MAX_FACES + 1)))
    places = []
    for size in np.rint(np.sort(heights) / (2 * HEAD_SCALE)).astype(int):
        for _ in range(ATTEMPTS):
            x, y = rng.integers(0, image_size[1] - size + 1), rng.integers(0, image_size[0] - size + 1)
            place = Place(int(x), int(y), int(size))
            if all(covered(place, other) <= MAX_COVERED for other in places):
                places.append(place)
                break
    return places


def covered(a: Place, b: Place) -> float:
    """Return the intersection of two canvases as a fraction of the smaller canvas."""
    width = min(a.x + a.size, b.x + b.size) - max(a.x, b.x)
    height = min(a.y + a.size, b.y + b.size) - max(a.y, b.y)
    return max(0, width) * max(0, height) / min(a.size, b.size) ** 2


def tight_box(mask: np.ndarray, place: Place) -> np.ndarray:
    """Return the box of the head in the scene: pixels whose mask is above one half."""
    ys, xs = np.nonzero(mask > 127)
    return np.array([xs.min() + place.x, ys.min() + place.y, xs.max() + 1 + place.x, ys.max() + 1 + place.y])


def paste(scene: np.ndarray, face: np.ndarray, mask: np.ndarray, place: Place) -> None:
    """Blend the face [S, S, 3] into the scene by its mask."""
    region = scene[place.y : place.y + place.size, place.x : place.x + place.size]
    share = mask[..., None].astype(np.float32) / 255
    region[:] = np.clip(np.rint(face * share + region * (1 - share)), 0, 255).astype(np.uint8)


def skin_tint(rng: np.random.Generator) -> np.ndarray:
    """Draw gains on red, green and blue for a skin color in a light."""
    warmth = rng.uniform(0.05, 0.25)
    return np.array([1 + warmth, 1 - 0.2 * warmth, 1 - warmth], np.float32) * rng.uniform(0.95, 1.05, 3).astype(
        np.float32
    )


def cluttered_background(rng: np.random.Generator, image_size: tuple[int, int]) -> np.ndarray:
    """Draw a gradient with shapes of all sizes, a third of them in skin colors, and grain: RGB uint8 [H, W, 3]."""
    height, width = image_size
    corners = rng.uniform(0, 255, (2, 2, 3)).astype(np.float32)
    scene = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    for _ in range(rng.integers(10, 50)):
        draw_shape(scene, rng)
    scene = gaussian_blur(scene, rng.uniform(0.3, 1.5))
    grain = rng.standard_normal(scene.shape, np.float32) * np.float32(rng.uniform(1, 6))
    return np.clip(np.rint(scene + grain), 0, 255).astype(np.uint8)


def draw_shape(scene: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a random ellipse, polygon, rectangle or line."""
    height, width = scene.shape[:2]
    center = rng.uniform(0, (width, height))
    radius = np.exp(rng.uniform(np.log(3), np.log(min(height, width) / 3)))
    color = rng.uniform(0, 255, 3) if rng.random() < 0.67 else np.clip(rng.uniform(60, 225) * skin_tint(rng), 0, 255)
    color = [float(level) for level in color]
    kind = rng.integers(4)
    if kind == 0:
        axes = np.rint(radius * rng.uniform(0.4, 1, 2)).astype(int) + 1
        cv2.ellipse(scene, np.rint(center).astype(int).tolist(), axes.tolist(), rng.uniform(0, 180), 0, 360, color, -1)
    elif kind == 1:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(scene, [np.rint(points).astype(np.int32)], color, cv2.LINE_AA)
    elif kind == 2:
        corner = center + radius * rng.uniform(0.3, 2, 2)
        cv2.rectangle(scene, np.rint(center).astype(int).tolist(), np.rint(corner).astype(int).tolist(), color, -1)
    else:
        end = center + radius * rng.normal(0, 2, 2)
        start, end = (np.rint(point).astype(int).tolist() for point in (center, end))
        cv2.line(scene, start, end, color, int(rng.integers(1, 6)), cv2.LINE_AA)
