"""Detection of boxes in images of any size: data, loss, prediction, metrics and records.

B batch, N ground-truth boxes padded, D detections of an image. Batches are those of affect_jax.data.boxes_pipeline.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from affect_jax.config import evaluation_buckets
from affect_jax.config_checks import ANCHOR_STRIDES, IMAGE_SIZE
from affect_jax.data import boxes_pipeline, open_split
from affect_jax.data.box_crops import BoxCrops
from affect_jax.data.boxes_pipeline import Size
from affect_jax.data.identity import identify, to_text
from affect_jax.data.pipeline import HostBatch, spread_indices
from affect_jax.data.split import BoxesSplit
from affect_jax.data.transforms import BRIGHTENINGS, transform
from affect_jax.data.windows import fitting_scale
from affect_jax.evaluate.anchor_coverage import best_anchor_iou, coverage_by_height
from affect_jax.evaluate.detection import detection_metrics, paired_bootstrap
from affect_jax.evaluate.figures import draw_boxes
from affect_jax.evaluate.single_boxes import largest_single_boxes
from affect_jax.files import whole_file
from affect_jax.models import build_model
from affect_jax.ops.photometric import normalize
from affect_jax.tasks import detection_report
from affect_jax.tasks.interface import (
    Apply,
    Batch,
    DataFacts,
    Evaluation,
    LossFn,
    PredictFn,
    Task,
    TrainingData,
    check_same_split,
)
from affect_jax.tasks.sections import Metrics, Section, Table

NETWORK_INPUTS = ("image", "image_size", "boxes", "label", "box_mask", "ignore")
MAX_PIXELS = 2**22
"""Pixels of all images of Detection.normalized_images: 28 images of 384x384."""
LARGE_FACES, LARGE_FACE_MARGIN = 40, 2.0
"""Number of crops around the largest faces of a split, and the side of a crop in longer sides of its face."""
VAL_METRICS = ("ap50", "ap50_tool", "coco_ap", "recall", "precision")
TRUTH_FIELDS, DETECTION_FIELDS = ("boxes", "label", "ignore"), ("boxes", "scores", "label")


class Detection(Task):
    """Boxes in images of any size, which are resized to one of a few buckets."""

    presentation = detection_report.PRESENTATION
    progress_metrics: Mapping[str, str] = MappingProxyType(
        {"ap50": "AP50", "recall": "recall", "precision": "precision"}
    )

    def data_facts(self, split: BoxesSplit) -> DataFacts:
        """Return the class names; a detector takes images of any size."""
        return DataFacts(split.class_names, ())

    def describe(self, train_split: BoxesSplit, validation: Evaluation) -> list[str]:
        """Return lines about the data for the start of a run."""
        sizes = " or ".join(f"[{self.config.batch_size}, {h}, {w}, 3]" for h, w in self.config.data.buckets)
        boxes = [int(split.box_counts().sum()) for split in (train_split, validation.split)]
        surplus = boxes_pipeline.describe_surplus(train_split, self.config.data.max_boxes)
        return [
            f"train: {len(train_split)} images with {boxes[0]} boxes; val: {len(validation.split)} with {boxes[1]};"
            f" classes: {', '.join(train_split.class_names)}",
            f"batch: {sizes}",
            *([surplus] if surplus else []),
        ]

    def build_network(self, data: DataFacts):
        """Build the config's network."""
        dtype = jnp.dtype(self.config.dtype)
        return build_model(**self.config.model, num_classes=len(data.class_names), dtype=dtype)

    def network_inputs(self, data: DataFacts) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a batch of one image; the parameters do not depend on its size."""
        image = jax.ShapeDtypeStruct((1, *self.config.data.buckets[0], 3), jnp.float32)
        return {"image": image, "image_size": jax.ShapeDtypeStruct((1, 2), jnp.int32)}

    def normalized_images(self, split: BoxesSplit, count: int) -> dict[str, jax.Array]:
        """Return images from all parts of the split, resized to the first bucket, as the network's inputs.

        There are `count` or, if the memory of their feature maps would be large, as many as have MAX_PIXELS.
        """
        bucket = height, width = self.config.data.buckets[0]
        indices = spread_indices(len(split), min(count, max(1, MAX_PIXELS // (height * width))))
        rngs = [np.random.default_rng(int(index)) for index in indices]
        settings = self._exposure()
        batch = boxes_pipeline.read_batch(split, indices, bucket, rngs, max_boxes=1, max_ignored=1, settings=settings)
        images = {name: jnp.asarray(batch[name]) for name in ("image", "image_size")}
        return prepare_batch(images, self.config.preprocess.mean, self.config.preprocess.std)

    def examples_per_epoch(self, split: BoxesSplit) -> int:
        """Return the number of images that an epoch visits."""
        limits = self.epoch_limits(split)
        return len(split) - sum(max(0, len(images) - number) for images, number in limits)

    def epoch_limits(self, split: BoxesSplit) -> boxes_pipeline.Limits:
        """Return the images of each limit of the config."""
        limits = self.config.data.epoch_limits
        return boxes_pipeline.find_limited(split.image_names(np.arange(len(split))), limits) if limits else ()

    def steps_per_dispatch(self, split: BoxesSplit) -> int:
        """Return 1: batches differ in size."""
        return 1

    def training_data(
        self, split: BoxesSplit, total_steps: int, process_index: int, process_count: int
    ) -> TrainingData:
        """Return the batches of a run."""
        data = self.config.data
        source = boxes_pipeline.BucketBatches(
            split.sizes(), data.buckets, self.config.batch_size, total_steps, self.config.seed, self.epoch_limits(split)
        )
        batches = boxes_pipeline.boxes_stream_iterator(
            source,
            split,
            max_boxes=data.max_boxes,
            settings=self.training_settings(),
            num_workers=data.num_workers,
            process_index=process_index,
            process_count=process_count,
        )
        return TrainingData(None, None, batches)

    def training_settings(self) -> dict[str, Any]:
        """Return the settings of data.transforms.transform in training."""
        return self.config.transform.to_dict() | self._exposure()

    def _exposure(self) -> dict[str, float]:
        """Return the setting of data.transforms.transform that prepares dark images."""
        return {"exposure_level": self.config.preprocess.exposure_level}

    def loss_fn(self, apply: Apply, data: DataFacts) -> LossFn:
        """Return the sum of the network's losses: see make_loss_fn."""
        return make_loss_fn(apply, self.config.preprocess.mean, self.config.preprocess.std)

    def predict_fn(self, apply: Apply, data: DataFacts, options: Mapping[str, Any] = MappingProxyType({})) -> PredictFn:
        """Return the config's detection: see make_predict_fn. `options` change the images, not the function."""
        return make_predict_fn(apply, self.config.preprocess.mean, self.config.preprocess.std)

    def evaluation(
        self,
        split_name: str,
        dark: bool = False,
        brighten: str = "none",
        data: str = "",
        data_dir: str | Path = "",
        buckets: Sequence[str] = (),
        enlarge: float = 1.0,
        large_faces: bool = False,
    ) -> Evaluation:
        """Return the evaluation of a split of the run's data set, or of the set `data` in `data_dir`.

        `dark` applies the low-light simulator to the images; `brighten`, one of BRIGHTENINGS, brightens them after it.
        `buckets` are sizes that images are fitted into, such as "640x640" (height, width), in place of the config's;
        the network then gets them `enlarge` times as large.
        `large_faces` evaluates on crops around the largest faces of the split.
        """
        of_run = self.config.data
        name, options = (data, {}) if data else (of_run.name, of_run.options.to_dict())
        split = open_split(name, split_name, data_dir or of_run.data_dir, **options)
        identity = None if data else identify(split)
        changes = ["dark"] if dark else []
        changes += [brighten] if brighten != "none" else []
        changes += [*buckets]
        changes += [f"enlarged_{enlarge:g}"] if enlarge != 1 else []
        if large_faces:
            split = BoxCrops(split, largest_single_boxes(ground_truth(split), LARGE_FACES), LARGE_FACE_MARGIN)
            changes.append("large_faces")
        settings = ({"low_light_probability": 1.0} if dark else {}) | BRIGHTENINGS[brighten]
        return Evaluation(
            name="_".join([*([data] if data else []), split_name, *changes]),
            about={"split": ", ".join([name, split_name, *changes])},
            split=split,
            options={"transform": settings, "buckets": [parse_size(text) for text in buckets], "enlarge": enlarge},
            identity=identity,
            data_dir=data_dir,
        )

    def evaluation_batches(
        self, evaluation: Evaluation, batch_size: int, rows: slice = slice(None)
    ) -> Iterator[HostBatch]:
        """Yield the batches of boxes_pipeline.padded_box_batches, bucket by bucket."""
        return self._evaluation_batches(evaluation, batch_size, self._exposure(), rows)

    def _evaluation_batches(
        self, evaluation: Evaluation, batch_size: int, settings: Mapping[str, float], rows: slice = slice(None)
    ) -> Iterator[HostBatch]:
        """Yield the batches of an evaluation.

        `settings` are arguments of transform. The evaluation's options override them.
        """
        data = self.config.data
        batches = boxes_pipeline.padded_box_batches(
            evaluation.split,
            batch_size,
            evaluation.options["buckets"] or evaluation_buckets(self.config),
            data.max_boxes,
            {**settings, **evaluation.options["transform"]},
            self.config.seed,
            rows,
            data.num_workers,
        )
        return (boxes_pipeline.enlarge(batch, evaluation.options["enlarge"]) for batch in batches)

    def detections_of(
        self, detect: Callable[[np.ndarray], dict[str, np.ndarray]], evaluation: Evaluation
    ) -> list[dict[str, np.ndarray]]:
        """Return the detections of a function in the images of an evaluation, in the order of the split.

        `detect` maps an image, uint8 [H, W, 3], to boxes, scores and label. It gets the image as the evaluation's
        options change it, but without the config's preprocess.exposure_level, which is for the run's network.
        """
        detections = [{}] * len(evaluation.split)
        for batch in self._evaluation_batches(evaluation, self.config.eval_batch_size, settings={}):
            for row in np.flatnonzero(batch["mask"]):
                height, width = batch["image_size"][row]
                found = detect(np.ascontiguousarray(batch["image"][row, :height, :width]))
                detections[batch["index"][row]] = {**found, "boxes": found["boxes"] / batch["scale"][row]}
        return detections

    def predictions(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return "detections", one dict per image, and "losses", the mean losses of the split.

        The detections of an image are boxes float32 [D, 4] in pixels of the original image, scores float32 [D] and
        label int32 [D].
        """
        found, scale = outputs["detections"], outputs["scale"]
        detections = []
        for image, valid in enumerate(found["valid"]):
            one = {name: found[name][image][valid] for name in DETECTION_FIELDS}
            detections.append({**one, "boxes": one["boxes"] / scale[image]})
        losses = {name: float(value) for name, value in mean_losses(outputs["losses"]).items()}
        return {"detections": detections, "losses": {"loss": sum(losses.values()), **losses}}

    def metrics(self, predictions: Mapping[str, Any], evaluation: Evaluation, intervals: bool = True) -> dict:
        """Return detection_metrics and the losses, if the predictions have them."""
        truths, class_names = ground_truth(evaluation.split), evaluation.split.class_names
        metrics = detection_metrics(truths, predictions["detections"], class_names, intervals)
        return metrics | {name: predictions[name] for name in ("losses",) if name in predictions}

    def scalars(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics that a run records."""
        losses = {f"val/{name}": value for name, value in metrics["losses"].items()}
        return losses | {f"val/{name}": metrics[name] for name in VAL_METRICS}

    def write_predictions(self, path: Path, predictions: Mapping[str, Any], evaluation: Evaluation, step: int) -> None:
        """Write the detections of checkpoint `step`, the losses if known, and the ground truth to an .npz file."""
        arrays = {"split": to_text(identify(evaluation.split)), "checkpoint_step": step}
        arrays |= {f"loss/{name}": value for name, value in predictions.get("losses", {}).items()}
        for prefix, fields, images in (
            ("", DETECTION_FIELDS, predictions["detections"]),
            ("true_", TRUTH_FIELDS, ground_truth(evaluation.split)),
        ):
            arrays[f"{prefix}count"] = [len(image["boxes"]) for image in images]
            arrays |= {prefix + name: np.concatenate([image[name] for image in images]) for name in fields}
        with whole_file(path) as file:
            np.savez_compressed(file, **arrays)

    def read_predictions(self, path: Path) -> tuple[int, dict[str, Any]]:
        """Return the step (-1 in older files) and the predictions that write_predictions wrote."""
        _, detections = read_detections(path)
        with np.load(path) as stored:
            losses = {name.removeprefix("loss/"): float(stored[name]) for name in stored if name.startswith("loss/")}
            return int(stored.get("checkpoint_step", -1)), {"detections": detections, "losses": losses}

    def prediction_table(self, predictions: Mapping[str, Any], evaluation: Evaluation) -> Table:
        """Return a row per detection: its image, its class, its score and its box in pixels of the image."""
        split = evaluation.split
        images = split.image_names(np.arange(len(split)))
        rows = (  # up to hundreds of detections for each of thousands of images
            [image, split.class_names[label], f"{score:.4f}", *(f"{x:.2f}" for x in box)]
            for image, found in zip(images, predictions["detections"], strict=True)
            for box, score, label in zip(found["boxes"], found["scores"], found["label"], strict=True)
        )
        return Table(["image", "label", "score", "x1", "y1", "x2", "y2"], rows)

    def paired_test(self, path_a: Path, path_b: Path) -> dict:
        """Return the paired bootstrap of two files of predictions; ValueError if their images differ."""
        check_same_split(path_a, path_b)
        (truths, found_a), (others, found_b) = read_detections(path_a), read_detections(path_b)
        if len(truths) != len(others) or not all(
            np.array_equal(one[name], other[name]) for one, other in zip(truths, others, strict=True) for name in one
        ):
            raise ValueError("the images are not the same: their true boxes differ")
        return paired_bootstrap(truths, found_a, found_b)

    def augmented_samples(self, split: BoxesSplit, count: int, draws: int) -> np.ndarray:
        """Return `count` images from all parts of the split in the first bucket, each followed by `draws` versions.

        Boxes are drawn, those that training ignores in yellow.
        """
        bucket, seed = tuple(self.config.data.buckets[0]), self.config.seed
        rows = []
        for index in map(int, spread_indices(len(split), count)):
            example = split.read_image(index)
            rows.append([])
            for draw in range(1 + draws):
                settings = self.training_settings() if draw else {}
                rng = np.random.default_rng((seed, index, draw))
                seen = transform(**example, bucket=bucket, rng=rng, **settings)
                boxes, ignore = seen["boxes"], seen["ignore"]
                rows[-1].append(draw_boxes(seen["image"], right=boxes[~ignore], wrong=boxes[:0], missed=boxes[ignore]))
        return np.array(rows)

    def sections(
        self, evaluations: Mapping[str, Metrics], evaluation: Evaluation, predictions: Mapping[str, Any]
    ) -> list[Section]:
        """Return the sections of the report page: see detection_report.sections."""
        split, seed = evaluation.split, self.config.seed

        def read_image(index: int) -> tuple[np.ndarray, str]:
            """Return an image as the evaluation's options change it, in its original size, and its name."""
            example, rng = split.read_image(index), np.random.default_rng((seed, index))
            seen = transform(**example, bucket=example["image"].shape[:2], rng=rng, **evaluation.options["transform"])
            return seen["image"], split.image_names([index])[0]

        truths, detections = ground_truth(split), predictions["detections"]
        return detection_report.sections(evaluations, evaluation.name, truths, detections, read_image)


def parse_size(text: str) -> Size:
    """Return the height and width in a text such as "768x1024"; ValueError if they are not multiples of 32."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    size = tuple(map(int, found.groups())) if found else ()
    if not IMAGE_SIZE.holds(size):
        raise ValueError(f"a bucket is {text!r}; it {IMAGE_SIZE.words}, such as 768x1024")
    return size


def ground_truth(split: BoxesSplit) -> list[dict[str, np.ndarray]]:
    """Return boxes, label and ignore of every image of a split."""
    return [split.annotations(image) for image in range(len(split))]


def read_detections(path: Path) -> tuple[list[dict], list[dict]]:
    """Return ground truth and detections of a file of Detection.write_predictions, one dict per image each."""
    with np.load(path) as stored:
        arrays = dict(stored)
    if "true_count" not in arrays:
        raise ValueError(f"{path} is from an older version, without true boxes; evaluate the run again")

    def images(prefix: str, fields: Sequence[str]) -> list[dict]:
        ends = np.cumsum(arrays[f"{prefix}count"])[:-1]
        columns = [np.split(arrays[prefix + name], ends) for name in fields]
        return [dict(zip(fields, image, strict=True)) for image in zip(*columns, strict=True)]

    return images("true_", TRUTH_FIELDS), images("", DETECTION_FIELDS)


def prepare_batch(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> dict[str, jax.Array]:
    """Return the network's inputs: normalized pixels, zero in the padding."""
    height, width = batch["image"].shape[1:3]
    inside = (jnp.arange(height)[:, None] < batch["image_size"][:, 0, None, None]) & (
        jnp.arange(width) < batch["image_size"][:, 1, None, None]
    )
    image = jnp.where(inside[..., None], normalize(batch["image"], mean, std), 0.0)
    return {**{name: batch[name] for name in NETWORK_INPUTS if name in batch}, "image": image}


def mean_losses(losses: Mapping[str, tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
    """Return each of a network's losses, pairs (sum [B], count [B]): its sum over the batch divided by its count."""
    return {name: total.sum() / count.sum().clip(1) for name, (total, count) in losses.items()}


def make_loss_fn(apply: Apply, mean: Sequence[float], std: Sequence[float]) -> LossFn:
    """Return the sum of the network's losses, times B; the sums are these losses, times B, and "count", B."""

    def loss_fn(params, batch_stats, batch: Batch, key: jax.Array):
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, batch_stats = apply(variables, prepare_batch(batch, mean, std), True, key)
        count = jnp.float32(batch["image"].shape[0])
        sums = {name: count * value for name, value in mean_losses(outputs["losses"]).items()}
        return sum(sums.values()), (batch_stats, {**sums, "count": count})

    return loss_fn


def make_predict_fn(apply: Apply, mean: Sequence[float], std: Sequence[float]) -> PredictFn:
    """Return `predict(variables, batch)` with "detections" in pixels of the bucket.

    For a batch with boxes the outputs also have "losses", from the same forward pass; for one with a scale, "scale".
    """

    def predict(variables: dict, batch: Batch) -> dict[str, Any]:
        outputs, _ = apply(variables, prepare_batch(batch, mean, std), False)
        return outputs | {name: batch[name] for name in ("scale",) if name in batch}

    return predict


def anchor_coverage(config: ConfigDict, split: BoxesSplit) -> dict[str, dict[str, float]]:
    """Return coverage_by_height of the split's boxes by the config's anchors, in images resized as for evaluation."""
    buckets, model = evaluation_buckets(config), config.model
    chosen = boxes_pipeline.choose_buckets(split.sizes(), buckets)
    strides, boxes, best = ANCHOR_STRIDES[model.neck], [], []
    for index, bucket in enumerate(buckets):
        if images := np.flatnonzero(chosen == index).tolist():
            scaled = [split.boxes(image) * fitting_scale(split.sizes()[image], bucket) for image in images]
            boxes.append(np.concatenate(scaled))
            best.append(best_anchor_iou(boxes[-1], bucket, strides, model.anchor_sizes, model.aspect_ratios))
    return coverage_by_height(np.concatenate(boxes), np.concatenate(best))
