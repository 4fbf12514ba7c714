"""What differs between runs that classify faces and runs that detect them, built from a config: data and evaluation.

Every task has `data_facts`, `num_examples` (of train), `updates_at_once` per call to the device, SHOWN figures by
their metric's name, and the methods of Classification.
"""

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from affect_jax.data import boxes_pipeline, pipeline
from affect_jax.train import builders, classification, detection, evaluation
from affect_jax.train.mesh import process_rows, replicated, to_devices
from affect_jax.train.state import Apply
from affect_jax.train.workdir import DataFacts

Evaluate = Callable[[dict], dict[str, float]]
"""Variables of the network to what a run writes of them, "val/...", "val/loss" among it."""


class Classification:
    """Pictures of one size into classes; a set that fits lies on the device."""

    SHOWN: Mapping[str, str] = {"accuracy": "accuracy", "macro_f1": "macro-F1"}

    def __init__(self, config: ConfigDict):
        self.config = config
        self.train_split, val_split = (builders.build_split(config, name) for name in ("train", "val"))
        self.data_facts = DataFacts(self.train_split.class_names, self.train_split.image_shape)
        self.num_examples = len(self.train_split)
        self.resident = is_resident(config, self.train_split)
        self.updates_at_once = config.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 32)
        check_targets(config, self.train_split)
        self.val_split = pipeline.InMemorySplit(val_split, "val")

    def batches(self, total_steps: int, mesh: Mesh) -> tuple[dict[str, jax.Array] | None, Iterator]:
        """The run's examples where they lie on the device, and a grain iterator over its batches."""
        config = self.config
        split = pipeline.InMemorySplit(self.train_split, "train") if self.resident else self.train_split
        labels = split.labels() if config.data.sampling == "balanced" else None
        source = pipeline.BatchIndices(len(split), config.batch_size, total_steps, config.seed, labels)
        if self.resident:
            return to_devices(split.arrays, replicated(mesh)), pipeline.index_iterator(source)
        processes = jax.process_index(), jax.process_count()
        return None, pipeline.stream_iterator(source, split, config.data.num_workers, *processes)

    def local_batch(self, batch) -> dict[str, np.ndarray]:
        """What of an iterator's batch goes to this process' devices."""
        if not self.resident:
            return batch
        return {"index": batch if jax.process_count() == 1 else batch[process_rows(len(batch))]}

    def evaluator(self, apply: Apply, mesh: Mesh) -> Evaluate:
        """Evaluation on val."""
        predict = builders.build_predict(self.config, apply, len(self.data_facts.class_names), mesh)

        def evaluate(variables: dict) -> dict[str, float]:
            size = self.config.eval_batch_size
            predictions = classification.predict_split(predict, variables, self.val_split, size, mesh)
            return self.scalars(evaluation.prediction_metrics(predictions, self.val_split))

        return evaluate

    @staticmethod
    def scalars(metrics: dict) -> dict[str, float]:
        """What a run writes of an evaluation on val, the mean negative log likelihood as its loss."""
        names = ("accuracy", "macro_f1", "ece", "ccc_valence", "ccc_arousal", "rmse_valence", "rmse_arousal")
        return {"val/loss": metrics["nll"], **{f"val/{name}": metrics[name] for name in names if name in metrics}}

    def describe(self) -> list[str]:
        """Lines about the data."""
        height, width, channels = self.train_split.image_shape
        where = "resident on the device" if self.resident else "streamed"
        return [
            f"train: {self.num_examples} images, {where}; val: {len(self.val_split)} images;"
            f" classes: {', '.join(self.data_facts.class_names)}",
            f"batch: [{self.config.batch_size}, {height}, {width}, {channels}]",
        ]


class Detection:
    """Boxes in pictures of any size, brought to one of few."""

    SHOWN: Mapping[str, str] = {"ap50": "AP50", "recall": "recall", "precision": "precision"}

    def __init__(self, config: ConfigDict):
        self.config = config
        self.train_split, self.val_split = (builders.build_split(config, name) for name in ("train", "val"))
        self.data_facts = DataFacts(self.train_split.class_names, ())
        self.num_examples = len(self.train_split)
        self.updates_at_once = 1  # batches differ in size

    def batches(self, total_steps: int, mesh: Mesh) -> tuple[None, Iterator]:
        """A grain iterator over the run's batches."""
        config, split = self.config, self.train_split
        source = boxes_pipeline.BucketBatches(
            split.sizes(), config.data.buckets, config.batch_size, total_steps, config.seed
        )
        return None, boxes_pipeline.boxes_stream_iterator(
            source,
            split,
            max_boxes=config.data.max_boxes,
            settings=config.transform.to_dict(),
            num_workers=config.data.num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def local_batch(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What of an iterator's batch goes to this process' devices."""
        return batch

    def evaluator(self, apply: Apply, mesh: Mesh) -> Evaluate:
        """Evaluation on val, pictures as they are."""
        detect = builders.build_detect(self.config, apply, mesh)

        def evaluate(variables: dict) -> dict[str, float]:
            rows = process_rows(self.config.eval_batch_size)
            batches = builders.evaluation_box_batches(self.config, self.val_split, rows=rows)
            found, losses = detection.detect_split(detect, variables, batches, len(self.val_split), mesh)
            return self.scalars(evaluation.found_metrics(found, losses, self.val_split, with_interval=False))

        return evaluate

    @staticmethod
    def scalars(metrics: dict) -> dict[str, float]:
        """What a run writes of an evaluation on val."""
        names = ("ap50", "ap50_tool", "coco_ap", "recall", "precision")
        losses = {f"val/{name}": value for name, value in metrics["losses"].items()}
        return {**losses, **{f"val/{name}": metrics[name] for name in names}}

    def describe(self) -> list[str]:
        """Lines about the data."""
        sizes = " or ".join(f"[{self.config.batch_size}, {h}, {w}, 3]" for h, w in self.config.data.buckets)
        boxes = [int(split.box_counts().sum()) for split in (self.train_split, self.val_split)]
        return [
            f"train: {self.num_examples} pictures with {boxes[0]} boxes; val: {len(self.val_split)} with {boxes[1]};"
            f" classes: {', '.join(self.data_facts.class_names)}",
            f"batch: {sizes}",
        ]


TASKS = {"classification": Classification, "detection": Detection}


def build_task(config: ConfigDict) -> Classification | Detection:
    """The config's task, its data opened."""
    return TASKS[config.task](config)


def check_targets(config: ConfigDict, split) -> None:
    """ValueError where the split has not what the loss holds predictions against."""
    wanted = [config.data.targets] + (["valence_arousal"] if config.valence_arousal_weight > 0 else [])
    if missing := [name for name in wanted if name not in split.read(np.arange(1))]:
        raise ValueError(f"{config.data.name} has no {' and no '.join(missing)} to train on")


def is_resident(config: ConfigDict, split) -> bool:
    """Whether the split lives on the device: as the config says, or where it is small enough."""
    fits = pipeline.size_in_bytes(split) <= config.data.resident_limit_gib * 2**30
    return config.data.input == "resident" or (config.data.input == "auto" and fits)
