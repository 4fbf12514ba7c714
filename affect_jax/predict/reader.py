"""Pictures to faces with their expressions, in batches of fixed shapes, each compiled once.

B batch, N pictures or faces, H W a picture's, K classes. Pictures are RGB uint8 [H, W, 3] of any size; boxes are
[x1, y1, x2, y2] in pixels of their picture.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from affect_jax.data.boxes_pipeline import choose_buckets
from affect_jax.data.images import crop_box, fit, to_channels
from affect_jax.data.transforms import clip_boxes, resize_to_fit
from affect_jax.predict.media import Frame
from affect_jax.runs.model_file import Trained, read
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import PredictFn, Task
from affect_jax.train.mesh import one_device
from affect_jax.train.prediction import compile_predict
from affect_jax.train.state import Network, make_apply

SHIPPED = Path(__file__).parent / "weights"
CLASSIFIER, DETECTOR = SHIPPED / "ferplus_mobilenet_v2.safetensors", SHIPPED / "widerface_rcnn.safetensors"
WHOLE = "whole"
"""In the place of a detector: every picture is a face already."""


class Face(NamedTuple):
    """A face in a picture."""

    box: tuple[float, float, float, float]
    score: float
    """Of the detector, 0 to 1; 1 of a whole picture."""
    expression: str | None
    """The most probable one; None where its probability is under min_confidence."""
    probabilities: dict[str, float]


def load(
    classifier: str | Path = CLASSIFIER,
    detector: str | Path = DETECTOR,
    *,
    batch_size: int | None = None,
    margin: float = 0.1,
    min_score: float = 0.7,
    min_confidence: float = 0.0,
) -> "FaceReader":
    """The reader of faces by these networks, each a model file or a run's folder; detector "whole" looks for none.

    batch_size: pictures, and faces, that go through a network at once. Default: 8, and 1 on CPU, where more take as
        much longer, and a last batch that is not full is padded for nothing.
    margin: what a face's square has beyond the box's longer side, on each side, as a fraction of it.
    min_score: of the detector; boxes under it are left out. On WIDER FACE's val 85 % of those from 0.7 on are right,
        and 73 % of those from 0.5 on.
    min_confidence: probability under which no expression is named.
    """
    batch_size = batch_size or (1 if jax.default_backend() == "cpu" else 8)
    find = None if str(detector) == WHOLE else Detector(read(detector), batch_size, min_score)
    return FaceReader(Classifier(read(classifier), batch_size), find, batch_size, margin, min_confidence)


class FaceReader:
    """Called with pictures RGB uint8 [H, W, 3] of any sizes, gives the faces of each."""

    def __init__(
        self,
        classifier: "Classifier",
        detector: "Detector | None",
        batch_size: int,
        margin: float,
        min_confidence: float,
    ):
        self.classifier, self.detector, self.batch_size = classifier, detector, batch_size
        self.margin, self.min_confidence = margin, min_confidence

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """The faces of each picture, by falling score; ValueError on what is no such picture."""
        check_pictures(images)
        found = self.detector(images) if self.detector else [whole_picture(image) for image in images]
        margin = self.margin if self.detector else 0.0
        crops = [
            crop_box(image, box, margin) if self.detector else image
            for image, one in zip(images, found, strict=True)
            for box in one["boxes"]
        ]
        probabilities = iter(self.classifier(crops))
        return [
            [
                self._face(box, score, next(probabilities))
                for box, score in zip(one["boxes"], one["scores"], strict=True)
            ]
            for one in found
        ]

    def stream(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, list[Face]]]:
        """Every frame with its faces, in order; no more than a batch of them is held, or read ahead."""
        for batch in batched(frames, self.batch_size):
            yield from zip(batch, self([frame.image for frame in batch]), strict=True)

    def _face(self, box: np.ndarray, score: float, probabilities: np.ndarray) -> Face:
        by_name = dict(zip(self.classifier.class_names, map(float, probabilities), strict=True))
        best = max(by_name, key=by_name.get)
        expression = best if by_name[best] >= self.min_confidence else None
        return Face(tuple(map(float, box)), float(score), expression, by_name)


class Classifier:
    """Called with pictures of faces, gives the probabilities of the classes, float32 [N, K]."""

    def __init__(self, trained: Trained, batch_size: int):
        check_task(trained, "classification")
        self.class_names, self.image_shape = trained.data
        self._batch_size, self._variables = batch_size, trained.variables
        self._predict = compiled_predict(trained)

    def __call__(self, faces: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities of each face."""
        inputs = [face_input(face, self.image_shape) for face in faces]
        pending = [
            (self._predict(self._variables, {"image": padded(batch, self._batch_size)})["probs"], len(batch))
            for batch in batched(inputs, self._batch_size)
        ]
        empty = np.zeros((0, len(self.class_names)), np.float32)
        return np.concatenate([empty, *(np.asarray(probs)[:count] for probs, count in pending)])


class Detector:
    """Called with pictures, gives of each its boxes float32 [D, 4] and scores float32 [D], falling."""

    def __init__(self, trained: Trained, batch_size: int, min_score: float):
        check_task(trained, "detection")
        data = trained.config.data
        self._buckets, self._batch_size = data.eval_buckets or data.buckets, batch_size
        self._variables, self._min_score = trained.variables, min_score
        self._detect = compiled_predict(trained)

    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Boxes and scores of each picture."""
        chosen = choose_buckets(np.array([image.shape[:2] for image in images]).reshape(-1, 2), self._buckets)
        pending = []
        for place in np.unique(chosen):
            for rows in batched(np.flatnonzero(chosen == place), self._batch_size):
                pending.append((rows, *self._dispatch([images[row] for row in rows], self._buckets[place])))
        found = [{}] * len(images)
        for rows, detections, scales in pending:
            detections = jax.device_get(detections)
            for place, (row, scale) in enumerate(zip(rows, scales, strict=True)):
                boxes = clip_boxes(detections["boxes"][place] / scale, images[row].shape[:2])
                scores = detections["scores"][place]
                kept = detections["valid"][place] & (scores >= self._min_score) & (boxes[:, 2:] > boxes[:, :2]).all(1)
                found[row] = {"boxes": boxes[kept], "scores": scores[kept]}
        return found

    def _dispatch(self, images: list[np.ndarray], bucket: tuple[int, int]) -> tuple[dict, list[float]]:
        """Detections on the device, and each picture's scale."""
        no_boxes = np.zeros((0, 4), np.float32)
        fitted = [resize_to_fit(image, no_boxes, bucket) for image in images]
        scales = [scale for _, _, scale in fitted]
        sizes = [
            np.minimum(np.rint(np.array(image.shape[:2]) * scale), bucket).astype(np.int32)
            for image, scale in zip(images, scales, strict=True)
        ]
        batch = {
            "image": padded([image for image, _, _ in fitted], self._batch_size),
            "image_size": padded(sizes, self._batch_size),
        }
        return self._detect(self._variables, batch)["detections"], scales


def compiled_predict(trained: Trained) -> PredictFn:
    """Return the jitted prediction of a trained network for this device."""
    task = build_device_task(trained)
    return compile_predict(task.predict_fn(make_apply(task.build_network(trained.data)), trained.data), one_device())


def network(trained: Trained) -> Network:
    """Return the flax module of a trained network for this device."""
    return build_device_task(trained).build_network(trained.data)


def build_device_task(trained: Trained) -> Task:
    """Build the task of a trained network; on CPU, where bfloat16 is emulated, it computes in float32."""
    config = trained.config.copy_and_resolve_references()
    if jax.default_backend() == "cpu":
        config.dtype = "float32"
    return build_task(config)


def face_input(face: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """A picture RGB uint8 [H, W, 3] of any size as a classifier's input, uint8 of image_shape."""
    height, width, channels = image_shape
    return to_channels(fit(face, (height, width)), channels).reshape(image_shape)


def check_task(trained: Trained, wanted: str) -> None:
    """ValueError where the network is of the other kind."""
    if trained.config.task != wanted:
        raise ValueError(
            f"{trained.about['source']} is made for {trained.config.task}; one for {wanted} is wanted here"
        )


def check_pictures(images: Sequence[np.ndarray]) -> None:
    """ValueError where one is not RGB uint8 [H, W, 3]."""
    for place, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"picture {place} is {image.dtype} {list(image.shape)}; pictures are uint8 [height, width, 3], RGB"
            )


def batched(items: Iterable, size: int) -> Iterator[tuple]:
    """The items in tuples of `size`, the last one shorter; itertools' own needs Python 3.12."""
    items = iter(items)
    return iter(lambda: tuple(islice(items, size)), ())


def padded(arrays: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The arrays in one, [count, ...], the last one repeated."""
    return np.stack([*arrays, *[arrays[-1]] * (count - len(arrays))])


def whole_picture(image: np.ndarray) -> dict[str, np.ndarray]:
    """The picture as the one face in it."""
    height, width = image.shape[:2]
    return {"boxes": np.array([[0, 0, width, height]], np.float32), "scores": np.ones(1, np.float32)}
