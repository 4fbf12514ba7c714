"""Trained networks as functions of images of any size, in batches of fixed shapes that are compiled once each.

B batch, N images or faces, D detections, H W of an image, K classes. Images are RGB uint8 [H, W, 3]; boxes are
[x1, y1, x2, y2] in pixels of their image.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from affect_jax.data.faces import face_input
from affect_jax.data.transforms import raise_exposure
from affect_jax.data.windows import clip_boxes, flip, flip_boxes, pad, resize
from affect_jax.evaluate.tta import check_tta
from affect_jax.predict.programs import Programs
from affect_jax.predict.search import ENLARGE, MOST_PIXELS, Search, merge, plan_searches, smallest_face
from affect_jax.runs.model_file import Trained, check_weights, load_trained
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import Batch, PredictFn, Task
from affect_jax.train.mesh import one_device
from affect_jax.train.prediction import compile_predict
from affect_jax.train.state import Network, make_apply

CANDIDATE_SCORE = 0.5
"""A detection of one search is kept if its score is at least this fraction of `min_score`. The final score is a mean
over searches."""


class Classifier:
    """Callable that returns the class probabilities of images of faces.

    Faces are classified `batch_size` at a time. On CPU, where a padded batch takes as long as a full one, a last batch
    that would be at most half full is classified one face at a time.
    """

    def __init__(self, trained: Trained, batch_size: int, tta: str = "none"):
        check_task(trained, "classification")
        check_tta(tta)
        self.class_names, self.image_shape = trained.data
        self._batch_size = batch_size
        self._size_for_few = 1 if jax.default_backend() == "cpu" else batch_size
        self._predict = build_programs(trained, {"tta": tta})

    def prepare(self) -> None:
        """Begin to compile the program for few faces, if that was not done before; do not wait for it."""
        self._predict.prepare({"image": jax.ShapeDtypeStruct((self._size_for_few, *self.image_shape), np.uint8)})

    def __call__(self, faces: Sequence[np.ndarray]) -> np.ndarray:
        """Return the probabilities of each face, float32 [N, K]."""
        inputs = [face_input(face, self.image_shape) for face in faces]
        pending = []
        for batch in batched(inputs, self._batch_size):
            size = self._batch_size if len(batch) > self._batch_size // 2 else self._size_for_few
            for part in batched(batch, size):
                pending.append((self._predict({"image": padded(part, size)})["probs"], len(part)))
        empty = np.zeros((0, len(self.class_names)), np.float32)
        return np.concatenate([empty, *(np.asarray(probs)[:count] for probs, count in pending)])


class Detector:
    """Callable that returns the boxes and scores of the faces of images."""

    def __init__(self, trained: Trained, batch_size: int, min_score: float, most_pixels: int = MOST_PIXELS):
        check_task(trained, "detection")
        if len(classes := trained.data.class_names) > 1:
            raise ValueError(f"the detector finds {', '.join(classes)}; give one that finds faces alone")
        self._batch_size, self._min_score, self._most_pixels = batch_size, min_score, most_pixels
        self._min_score_of_search = CANDIDATE_SCORE * min_score
        self._proposal_weight = proposal_weight(trained)
        self._exposure_level = trained.config.preprocess.exposure_level
        self._detect = build_programs(without_low_proposals(trained, self._min_score_of_search))

    def prepare(self, images: Sequence[np.ndarray], enlarge: Sequence[float]) -> list[tuple[Search, ...]]:
        """Begin to compile the programs for these images, without waiting; return the searches of each image."""
        plans = [
            plan_searches(image.shape[:2], self._most_pixels, factor)
            for image, factor in zip(images, enlarge, strict=True)
        ]
        for plan in plans:
            for search in plan:
                image, sides = (self._batch_size, *search.size, 3), (self._batch_size, 2)
                shapes = {
                    "image": jax.ShapeDtypeStruct(image, np.uint8),
                    "image_size": jax.ShapeDtypeStruct(sides, np.int32),
                }
                self._detect.prepare(shapes, for_many=len(plan) == 1)  # frames of videos are searched once
        return plans

    def __call__(self, images: Sequence[np.ndarray], enlarge: Sequence[float] = ()) -> list[dict[str, np.ndarray]]:
        """Return "boxes" float32 [D, 4] and "scores" float32 [D] of each image, highest score first.

        "full" is True if a search had more faces, or more proposals that may be faces, than it can return, so that some
        may be missing. Each image is searched at its factor of `enlarge` times its size, by default in its own size.
        """
        by_size = defaultdict(list)
        for row, searches in enumerate(self.prepare(images, enlarge or [1.0] * len(images))):
            for search in searches:
                by_size[search.size].append((row, search))
        pending = [
            (batch, self._dispatch([(images[row], search) for row, search in batch]))
            for searches in by_size.values()
            for batch in batched(searches, self._batch_size)
        ]
        found, full = [[] for _ in images], [False for _ in images]
        for batch, outputs in pending:
            outputs = jax.device_get(outputs)
            for index, (row, search) in enumerate(batch):
                one = {name: values[index] for name, values in outputs["detections"].items()}
                found[row].append((search, *self._in_image(one, search, images[row].shape[:2])))
                if search.smallest == 0:  # the overview may be full of small faces, which it is not used for
                    # without a weight, any proposal can become a face; the surest ones usually do
                    highest = outputs["left_out"][index] ** (self._proposal_weight or 1.0)
                    full[row] |= bool(highest > self._min_score or self._may_be_good(one).all())
        merged = [self._good_enough(*merge(searches)) for searches in found]
        return [{**faces, "full": is_full} for faces, is_full in zip(merged, full, strict=True)]

    def smallest_face(self, image_size: tuple[int, int]) -> float:
        """Return the side of the smallest face that is searched for, pixels of an image of (height, width)."""
        return smallest_face(image_size, self._most_pixels)

    def _dispatch(self, batch: Sequence[tuple[np.ndarray, Search]]) -> dict:
        """Return the outputs of the network for images by searches of one size, still on the device."""
        resized = [self._resize(image, search) for image, search in batch]
        size = batch[0][1].size
        inputs = {
            "image": padded([pad(image, size) for image in resized], self._batch_size),
            "image_size": padded([np.array(image.shape[:2], np.int32) for image in resized], self._batch_size),
        }
        return self._detect(inputs)

    def _resize(self, image: np.ndarray, search: Search) -> np.ndarray:
        """Mirror and scale an image for a search, and raise its exposure, which is done at the smaller size."""
        image = flip(image) if search.mirrored else image
        reduced = resize(image, min(search.scale, 1.0))
        return resize(raise_exposure(reduced, self._exposure_level), max(search.scale, 1.0))

    def _in_image(
        self, detections: dict[str, np.ndarray], search: Search, image_size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes in pixels of the image and the scores of the detections that may be good enough."""
        good = self._may_be_good(detections)
        boxes, scores = detections["boxes"][good] / search.scale, detections["scores"][good]
        if search.mirrored:
            boxes = flip_boxes(boxes, image_size[1])
        boxes = clip_boxes(boxes, image_size)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return boxes[kept], scores[kept]

    def _may_be_good(self, detections: dict[str, np.ndarray]) -> np.ndarray:
        """Return True for the detections of a search that may be good enough, bool [D]."""
        return detections["valid"] & (detections["scores"] >= self._min_score_of_search)

    def _good_enough(self, boxes: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return the merged detections with a score of at least min_score."""
        kept = scores >= self._min_score
        return {"boxes": boxes[kept], "scores": scores[kept]}


def image_detector(detector: str | Path, min_score: float, enlarge: float = ENLARGE) -> Callable:
    """Return a function that finds the faces of one image by the searches of `load`, for evaluation."""
    search = Detector(load_trained(detector), 1, min_score)

    def detect(image: np.ndarray) -> dict[str, np.ndarray]:
        (found,) = search([image], [enlarge])
        return {"boxes": found["boxes"], "scores": found["scores"], "label": np.zeros(len(found["boxes"]), np.int32)}

    return detect


def without_low_proposals(trained: Trained, min_score: float) -> Trained:
    """Return the detector without proposals that cannot reach min_score, which take time.

    A score is at most the proposal's score to the power of its weight.
    """
    config = trained.config.copy_and_resolve_references()
    if weight := proposal_weight(trained):
        config.model.rpn.score_thresh = max(config.model.rpn.score_thresh, min_score ** (1 / weight))
    return trained._replace(config=config)


def proposal_weight(trained: Trained) -> float:
    """Return the weight of a proposal's score in the score of its detection."""
    return trained.config.model.get("box", {}).get("proposal_weight", 0.0)


def build_programs(trained: Trained, options: Mapping[str, Any] = MappingProxyType({})) -> Programs:
    """Return the prediction of a trained network, with the task's options, for all shapes of its inputs."""
    description = f"{trained.config.to_json()} {trained.data} {dict(options)}"
    return Programs(compiled_predict(trained, options), trained.variables, description)


def compiled_predict(trained: Trained, options: Mapping[str, Any] = MappingProxyType({})) -> PredictFn:
    """Return the jitted prediction of a trained network, with the task's options, for this device.

    Its first call raises ValueError if the weights do not fit the network.
    """
    task = build_device_task(trained)
    predict_fn = task.predict_fn(make_apply(task.build_network(trained.data)), trained.data, options)

    def predict(variables: dict, batch: Batch) -> dict[str, Any]:
        try:
            return predict_fn(variables, batch)
        except Exception:  # while it is traced
            check_weights(trained)
            raise

    return compile_predict(predict, one_device())


def network(trained: Trained) -> Network:
    """Return the flax module of a trained network for this device."""
    return build_device_task(trained).build_network(trained.data)


def build_device_task(trained: Trained) -> Task:
    """Build the task of a trained network; on CPU, where bfloat16 is emulated, it computes in float32."""
    config = trained.config.copy_and_resolve_references()
    if jax.default_backend() == "cpu":
        config.dtype = "float32"
    return build_task(config)


def check_task(trained: Trained, expected: str) -> None:
    """Raise ValueError if the model is for the other task."""
    if trained.config.task != expected:
        raise ValueError(f"{trained.about['source']} is a model for {trained.config.task}; expected {expected}")


def batched(items: Iterable, size: int) -> Iterator[tuple]:
    """Yield the items in tuples of `size`, the last possibly shorter (itertools.batched needs Python 3.12)."""
    items = iter(items)
    return iter(lambda: tuple(islice(items, size)), ())


def padded(arrays: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Stack the arrays into [count, ...]; the last is repeated. A single array is not copied."""
    return arrays[0][None] if count == 1 else np.stack([*arrays, *[arrays[-1]] * (count - len(arrays))])
