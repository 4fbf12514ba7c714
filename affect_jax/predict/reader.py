"""Find the faces of images and classify their expressions.

Images are RGB uint8 [H, W, 3] of any size; boxes are [x1, y1, x2, y2] in pixels of their image.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from affect_jax.data.faces import crop_box
from affect_jax.predict.media import Frame
from affect_jax.predict.networks import Classifier, Detector, batched
from affect_jax.predict.search import ENLARGE, MOST_PIXELS, SIDES, SMALLEST_FACE
from affect_jax.runs.model_file import load_trained

BUNDLED_WEIGHTS = Path(__file__).parent / "weights"
CLASSIFIER = BUNDLED_WEIGHTS / "ferplus_vgg.safetensors"
DETECTOR = BUNDLED_WEIGHTS / "widerface_yunet.safetensors"
WHOLE = "whole"
"""Given instead of a detector: every image is one face."""
MARGIN, MIN_SCORE = 0.1, 0.65
"""Defaults of `load`."""
FULL = "it has more faces than one search can find, some may be missing; cut the image into parts"
RANGES = {
    "batch_size": (1, None),
    "margin": (0, 5),
    "min_score": (0, 1),
    "min_confidence": (0, 1),
    "most_pixels": (SIDES[0] ** 2, None),
    "enlarge": (1, None),
}
"""Lowest and highest values of the arguments of `load`."""


class Face(NamedTuple):
    """A face in an image."""

    box: tuple[float, float, float, float]
    score: float
    """Detection score, 0 to 1; 1 for a whole image."""
    expression: str | None
    """The most probable class; None if its probability is below min_confidence."""
    probabilities: dict[str, float]
    """Probabilities by class name; they sum to 1."""


def load(
    classifier: str | Path = CLASSIFIER,
    detector: str | Path = DETECTOR,
    *,
    batch_size: int | None = None,
    margin: float = MARGIN,
    min_score: float = MIN_SCORE,
    min_confidence: float = 0.0,
    most_pixels: int = MOST_PIXELS,
    enlarge: float = ENLARGE,
    tta: str = "none",
) -> "FaceReader":
    """Load a face reader from a classifier and a detector.

    Args:
        classifier: a model file, or the folder of a run or an export.
        detector: the same; "whole" skips detection and takes every image as one face.
        batch_size: number of images, and of faces, in one call of a network. Default: 8; on CPU 1 for detection, where
            larger batches are no faster, and 4 for faces.
        margin: added to each side of a face's square crop, as a fraction of the longer side of its box.
        min_score: detections with a lower score are dropped. In 180 of WIDER FACE's validation images, 90 % of the
            detections with a score of at least 0.65 are right, and 78 % of those with at least 0.5. With one search in
            the image's own size, these are 87 and 77 %.
        min_confidence: below this probability the face has no expression.
        most_pixels: number of pixels that an image is reduced to before the search, if it has more. With fewer pixels
            the search is faster and finds fewer of the small faces.
        enlarge: an image is searched at this many times its size, if most_pixels allow, and in its own size, once as it
            is and once mirrored, so that smaller faces are found and fewer mistakes are made. Frames of a stream with a
            time, those of videos, are searched in their own size only, which is faster.
        tta: test-time augmentation of the classifier, one of evaluate.tta.TTA: "flip" averages the probabilities of a
            face and its mirror image, "flip_shift" those of ten views.

    Raises FileNotFoundError if a model does not exist, ValueError if it is not a model of the expected task, `tta` is
    unknown or another argument is not in its range of RANGES.
    """
    check_options(
        batch_size=1 if batch_size is None else batch_size,
        margin=margin,
        min_score=min_score,
        min_confidence=min_confidence,
        most_pixels=most_pixels,
        enlarge=enlarge,
    )
    on_cpu = jax.default_backend() == "cpu"
    num_images, num_faces = (batch_size or size for size in ((1, 4) if on_cpu else (8, 8)))
    name_faces = Classifier(load_trained(classifier), num_faces, tta)
    if str(detector) == WHOLE:
        return FaceReader(name_faces, None, num_faces, margin, min_confidence, enlarge)
    find_faces = Detector(load_trained(detector), num_images, min_score, most_pixels)
    return FaceReader(name_faces, find_faces, num_images, margin, min_confidence, enlarge)


class FaceReader:
    """Callable that returns the faces of each of a list of images."""

    def __init__(
        self,
        classifier: Classifier,
        detector: Detector | None,
        batch_size: int,
        margin: float,
        min_confidence: float,
        enlarge: float,
    ):
        self.classifier, self.detector, self.batch_size = classifier, detector, batch_size
        self.margin, self.min_confidence, self.enlarge = margin, min_confidence, enlarge

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """Return the faces of each image, highest score first.

        Raises ValueError if an image is not RGB uint8 [H, W, 3].
        """
        return [faces for faces, _ in self._read(images, [self.enlarge] * len(images))]

    def stream(
        self, frames: Iterable[Frame], cut: Callable[[str, str], None] = lambda file, reason: None
    ) -> Iterator[tuple[Frame, list[Face]]]:
        """Yield each frame with its faces, in order; at most one batch of frames is read ahead.

        `cut` is called with the file and the reason, once per file, if faces may be missing because there are too many.
        """
        full_file = None
        for batch in batched(frames, self.batch_size):
            enlarge = [self.enlarge if frame.time is None else 1.0 for frame in batch]
            read = self._read([frame.image for frame in batch], enlarge)
            for frame, (faces, full) in zip(batch, read, strict=True):
                if full and frame.file != full_file:
                    full_file = frame.file
                    cut(frame.file, FULL)
                yield frame, faces

    def _read(self, images: Sequence[np.ndarray], enlarge: Sequence[float]) -> list[tuple[list[Face], bool]]:
        """Return the faces of each image, searched at `enlarge` times its size, and True if a search was full."""
        check_images(images)
        if self.detector:
            self.detector.prepare(images, enlarge)
            self.classifier.prepare()  # at the same time; after the detector, whose programs take longer
            detections = self.detector(images, enlarge)
            crops = [
                crop_box(image, box, self.margin)
                for image, found in zip(images, detections, strict=True)
                for box in found["boxes"]
            ]
        else:
            detections, crops = [whole_image(image) for image in images], images
        probabilities = iter(self.classifier(crops))
        return [
            (
                [
                    self._face(box, score, next(probabilities))
                    for box, score in zip(found["boxes"], found["scores"], strict=True)
                ],
                found["full"],
            )
            for found in detections
        ]

    def remark(self, image_size: tuple[int, int]) -> str:
        """Return a remark on faces that are too small to be found in an image of (height, width), or ""."""
        if not self.detector:
            return ""
        smallest = self.detector.smallest_face(image_size)
        return f"faces below {smallest:.0f} pixels are not found" if smallest >= 2 * SMALLEST_FACE else ""

    def _face(self, box: np.ndarray, score: float, probabilities: np.ndarray) -> Face:
        by_name = dict(zip(self.classifier.class_names, map(float, probabilities), strict=True))
        best = max(by_name, key=by_name.get)
        expression = best if by_name[best] >= self.min_confidence else None
        return Face(tuple(map(float, box)), float(score), expression, by_name)


def check_options(**options: float) -> None:
    """Raise ValueError if an argument of `load` is not a number in its range of RANGES."""
    for name, value in options.items():
        lowest, highest = RANGES[name]
        kind, noun = (Integral, "a whole number") if name == "batch_size" else (Real, "a number")
        in_range = isinstance(value, kind) and lowest <= value <= (sys.float_info.max if highest is None else highest)
        if not in_range:
            expected = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
            raise ValueError(f"{name} is {value!r}; must be {noun} {expected}")


def check_images(images: Sequence[np.ndarray]) -> None:
    """Raise ValueError if an image is not RGB uint8 [H, W, 3]."""
    for index, image in enumerate(images):
        if not hasattr(image, "dtype"):
            kind = type(image).__name__
            raise ValueError(f"image {index} is a {kind}; read it with affect_jax.data.images.read_image")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"image {index} is {image.dtype} {list(image.shape)}; images must be uint8 [height, width, 3], RGB"
            )


def whole_image(image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the whole image as a single detection."""
    height, width = image.shape[:2]
    return {"boxes": np.array([[0, 0, width, height]], np.float32), "scores": np.ones(1, np.float32), "full": False}
