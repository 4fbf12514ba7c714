"""Classification of images of one size: data, loss, prediction, metrics and records.

B batch, H W C height, width, channels of an image, K classes, N examples of a split, V views of test-time augmentation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from affect_jax.data import pipeline
from affect_jax.data.identity import identify, to_text
from affect_jax.data.split import FacesSplit
from affect_jax.evaluate.classification import classification_metrics, paired_test, valence_arousal_metrics
from affect_jax.evaluate.tta import views
from affect_jax.files import whole_file
from affect_jax.losses import (
    CLASSIFICATION_LOSSES,
    ClassificationLoss,
    concordance_loss,
    smooth_labels,
    softmax_cross_entropy,
)
from affect_jax.models import build_model
from affect_jax.ops.augment import augment, mixup
from affect_jax.ops.photometric import normalize
from affect_jax.tasks import classification_report
from affect_jax.tasks.interface import (
    Apply,
    Batch,
    DataFacts,
    Evaluation,
    LossFn,
    PredictFn,
    Task,
    Teacher,
    TrainingData,
    check_same_split,
)
from affect_jax.tasks.sections import Metrics, Section, Table

VAL_METRICS = ("accuracy", "macro_f1", "ece", "ccc_valence", "ccc_arousal", "rmse_valence", "rmse_arousal")
SAMPLES_SHOWN, DRAWS_SHOWN = 4, 7
"""Images, and augmented versions of each, on the report page."""
STEPS_PER_DISPATCH = 32
"""Default for resident data on accelerators, where a dispatch costs as much as a small step."""
READING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read")
"""Reads the training split while the training step is compiled."""


class Classification(Task):
    """Images of one size and their classes; a data set that fits is kept on the device."""

    presentation = classification_report.PRESENTATION
    progress_metrics: Mapping[str, str] = MappingProxyType({"accuracy": "accuracy", "macro_f1": "macro-F1"})

    def data_facts(self, split: FacesSplit) -> DataFacts:
        """Return the class names and the image shape."""
        return DataFacts(split.class_names, tuple(split.image_shape))

    def describe(self, train_split: FacesSplit, validation: Evaluation) -> list[str]:
        """Return lines about the data for the start of a run."""
        place = "resident on the device" if is_resident(self.config, train_split) else "streamed"
        if is_resident(self.config, train_split) and self.config.data.num_workers:
            place += " (read once, so data.num_workers is not used)"
        shape = ", ".join(map(str, (self.config.batch_size, *train_split.image_shape)))
        return [
            f"train: {len(train_split)} images, {place}; val: {len(validation.split)} images;"
            f" classes: {', '.join(train_split.class_names)}",
            f"batch: [{shape}]",
        ]

    def build_network(self, data: DataFacts):
        """Build the config's network, with two more outputs if valence and arousal have a weight in the loss."""
        outputs = len(data.class_names) + (2 if self.config.valence_arousal_weight > 0 else 0)
        return build_model(**self.config.model, num_classes=outputs, dtype=jnp.dtype(self.config.dtype))

    def network_inputs(self, data: DataFacts) -> jax.ShapeDtypeStruct:
        """Return the shape of a batch of one image."""
        return jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)

    def normalized_images(self, split: FacesSplit, count: int) -> jax.Array:
        """Return `count` images from all parts of the split as the network's inputs [B, H, W, C]."""
        images = split.read(pipeline.spread_indices(len(split), count))["image"]
        return normalize(jnp.asarray(images), self.config.preprocess.mean, self.config.preprocess.std)

    def steps_per_dispatch(self, split: FacesSplit) -> int:
        """Return the config's number.

        The default is one on CPU, where the body of a loop runs on one core, and for streamed images, which are large.
        """
        several = jax.default_backend() != "cpu" and is_resident(self.config, split)
        return self.config.steps_per_dispatch or (STEPS_PER_DISPATCH if several else 1)

    def training_data(
        self, split: FacesSplit, total_steps: int, process_index: int, process_count: int
    ) -> TrainingData:
        """Return the batches of a run; ValueError if the split lacks the targets of the loss."""
        config = self.config
        check_targets(config, split)
        resident = is_resident(config, split)
        labels = split.labels() if config.data.sampling == "balanced" else None
        source = pipeline.BatchIndices(len(split), config.batch_size, total_steps, config.seed, labels)
        if resident:
            one = split.read(np.arange(1))
            shapes = {name: jax.ShapeDtypeStruct((len(split), *x.shape[1:]), x.dtype) for name, x in one.items()}
            examples = READING.submit(lambda: pipeline.InMemorySplit(split, "train").arrays)
            return TrainingData(examples, shapes, pipeline.index_iterator(source, process_index, process_count))
        workers = config.data.num_workers
        return TrainingData(None, None, pipeline.stream_iterator(source, split, workers, process_index, process_count))

    def loss_fn(self, apply: Apply, data: DataFacts) -> LossFn:
        """Return the config's loss: see make_loss_fn."""
        config = self.config
        check_teachers(self.teachers, data)
        return make_loss_fn(
            apply,
            len(data.class_names),
            config.preprocess.mean,
            config.preprocess.std,
            target_field=config.data.targets,
            augmentation=config.augment.to_dict(),
            mixup_alpha=config.mixup_alpha,
            label_smoothing=config.label_smoothing,
            valence_arousal_weight=config.valence_arousal_weight,
            classification_loss=CLASSIFICATION_LOSSES[config.loss],
            teachers=[teacher.probabilities for teacher in self.teachers],
            distillation_weight=config.distillation.weight,
        )

    def predict_fn(self, apply: Apply, data: DataFacts, options: Mapping[str, Any] = MappingProxyType({})) -> PredictFn:
        """Return the config's prediction: see make_predict_fn. The option is "tta"."""
        preprocess = self.config.preprocess
        return make_predict_fn(apply, len(data.class_names), preprocess.mean, preprocess.std, **options)

    def evaluation(self, split_name: str, tta: str = "none", data_dir: str | Path = "") -> Evaluation:
        """Return the evaluation of a split with one of evaluate.tta.TTA; the split is read into memory.

        `data_dir` is the folder of the data set, if it is not the config's.
        """
        name = split_name if tta == "none" else f"{split_name}_tta_{tta}"
        split = pipeline.InMemorySplit(self.open_split(split_name, data_dir), split_name)
        return Evaluation(
            name=name,
            about={"split": split_name, "tta": tta},
            split=split,
            options={"tta": tta},
            identity=identify(split),
            data_dir=data_dir,
        )

    def evaluation_batches(
        self, evaluation: Evaluation, batch_size: int, rows: slice = slice(None)
    ) -> Iterator[pipeline.HostBatch]:
        """Yield image uint8 [B, H, W, C], index int32 [B] and mask float32 [B] in the order of the split."""
        for batch in pipeline.padded_batches(evaluation.split, batch_size):
            yield {name: batch[name][rows] for name in ("image", "index", "mask")}

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs: probs float32 [N, K] and valence_arousal float32 [N, 2 or 0]."""
        return dict(outputs)

    def metrics(self, predictions: Mapping[str, np.ndarray], evaluation: Evaluation, intervals: bool = True) -> dict:
        """Return classification_metrics and, if the network predicts them, valence_arousal_metrics."""
        arrays, class_names = evaluation.split.arrays, evaluation.split.class_names
        metrics = classification_metrics(predictions["probs"], arrays["label"], class_names)
        if predictions["valence_arousal"].size:
            metrics.update(valence_arousal_metrics(predictions["valence_arousal"], arrays["valence_arousal"]))
        return metrics

    def scalars(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics that a run records; the loss is the mean negative log likelihood."""
        return {"val/loss": metrics["nll"]} | {f"val/{name}": metrics[name] for name in VAL_METRICS if name in metrics}

    def write_predictions(
        self, path: Path, predictions: Mapping[str, np.ndarray], evaluation: Evaluation, step: int
    ) -> None:
        """Write the predictions of checkpoint `step` and the labels to an .npz file."""
        with whole_file(path) as file:
            split, labels = to_text(identify(evaluation.split)), evaluation.split.arrays["label"]
            np.savez_compressed(file, split=split, labels=labels, checkpoint_step=step, **predictions)

    def read_predictions(self, path: Path) -> tuple[int, dict[str, np.ndarray]]:
        """Return the step (-1 in older files) and the predictions that write_predictions wrote."""
        with np.load(path) as stored:
            predictions = {name: stored[name] for name in ("probs", "valence_arousal")}
            return int(stored.get("checkpoint_step", -1)), predictions

    def prediction_table(self, predictions: Mapping[str, np.ndarray], evaluation: Evaluation) -> Table:
        """Return a row per image: its name, its class, the predicted class and the probability of each class."""
        split, names = evaluation.split, evaluation.split.class_names
        images, labels = split.image_names(np.arange(len(split))), split.arrays["label"]
        rows = [
            [image, names[label], names[probs.argmax()], *(f"{p:.4f}" for p in probs)]
            for image, label, probs in zip(images, labels, predictions["probs"], strict=True)
        ]
        return Table(["image", "label", "predicted", *names], rows)

    def paired_test(self, path_a: Path, path_b: Path) -> dict:
        """Return McNemar's test of two files of predictions; ValueError if their images differ."""
        check_same_split(path_a, path_b)
        correct, labels = [], []
        for path in (path_a, path_b):
            with np.load(path) as stored:
                correct.append(stored["probs"].argmax(axis=1) == stored["labels"])
                labels.append(stored["labels"])
        if not np.array_equal(*labels):
            raise ValueError("the images are not the same: their labels differ")
        return paired_test(*correct)

    def augmented_samples(self, split: FacesSplit, count: int, draws: int) -> np.ndarray:
        """Return `count` images from all parts of the split, each followed by `draws` augmented versions."""
        images = split.read(pipeline.spread_indices(len(split), count))["image"]
        return augmented_images(images, draws, self.config.augment.to_dict(), self.config.seed)

    def sections(
        self, evaluations: Mapping[str, Metrics], evaluation: Evaluation, predictions: Mapping[str, np.ndarray]
    ) -> list[Section]:
        """Return the sections of the report page: see classification_report.sections."""
        split = evaluation.split
        samples = self.augmented_samples(self.open_split("train", evaluation.data_dir), SAMPLES_SHOWN, DRAWS_SHOWN)
        return classification_report.sections(evaluations, evaluation.name, split, predictions["probs"], samples)


def check_targets(config: ConfigDict, split: FacesSplit) -> None:
    """Raise ValueError if the split lacks the targets of the loss."""
    targets = [config.data.targets] + (["valence_arousal"] if config.valence_arousal_weight > 0 else [])
    if missing := [name for name in targets if name not in split.read(np.arange(1))]:
        raise ValueError(f"{config.data.name} has no {' and no '.join(missing)} to train on")


def check_teachers(teachers: Sequence[Teacher], data: DataFacts) -> None:
    """Raise ValueError if a teacher has other classes, or images of another shape, than the data."""
    for teacher in teachers:
        if teacher.data != data:
            raise ValueError(
                f"the teacher {teacher.source} was trained for {', '.join(teacher.data.class_names)} on images of shape"
                f" {teacher.data.image_shape}; this data has {', '.join(data.class_names)} and {data.image_shape}"
            )


def is_resident(config: ConfigDict, split: FacesSplit) -> bool:
    """Return True if the split is kept on the device: if the config says so or, with "auto", if it is small enough."""
    fits = pipeline.size_in_bytes(split) <= config.data.resident_limit_gib * 2**30
    return config.data.input == "resident" or (config.data.input == "auto" and fits)


def make_loss_fn(
    apply: Apply,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    target_field: str = "label",
    augmentation: dict | None = None,
    mixup_alpha: float = 0.0,
    label_smoothing: float = 0.0,
    valence_arousal_weight: float = 0.0,
    classification_loss: ClassificationLoss = softmax_cross_entropy,
    teachers: Sequence[Callable[[jax.Array], jax.Array]] = (),
    distillation_weight: float = 0.0,
) -> LossFn:
    """Return the summed classification loss of augmented images.

    The sums are "count" and "accuracy", with respect to the label or the larger of two mixed labels. `target_field` is
    the batch's field to learn: "label", int32 [B], or "votes", float32 [B, K]. With a weight for valence and arousal
    the network has two outputs after the classes, and the loss adds their concordance with the batch's valence_arousal,
    float32 [B, 2].

    With `teachers`, functions from images to probabilities [B, K], their mean has `distillation_weight` in the targets.
    They see the same augmented and mixed images as the network (Beyer et al. 2022, arXiv:2106.05237).
    """

    def loss_fn(params, batch_stats, batch: Batch, key: jax.Array):
        augment_key, mixup_key, dropout_key = jax.random.split(key, 3)
        images = augment(augment_key, batch["image"].astype(jnp.float32), **(augmentation or {}))
        targets = jax.nn.one_hot(batch["label"], num_classes) if target_field == "label" else batch[target_field]
        valence_arousal = batch["valence_arousal"] if valence_arousal_weight > 0 else jnp.zeros((len(images), 0))
        if mixup_alpha > 0:
            images, mixed = mixup(mixup_key, images, jnp.concatenate([targets, valence_arousal], -1), mixup_alpha)
            targets, valence_arousal = mixed[:, :num_classes], mixed[:, num_classes:]
        labels = jnp.argmax(targets, -1)
        if label_smoothing > 0:
            targets = smooth_labels(targets, label_smoothing)
        if teachers:
            teacher_probs = sum(teacher(images) for teacher in teachers) / len(teachers)
            targets = (1.0 - distillation_weight) * targets + distillation_weight * teacher_probs
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, batch_stats = apply(variables, normalize(images, mean, std), True, dropout_key)
        logits, predicted_valence_arousal = split_outputs(outputs, num_classes)
        loss = jnp.sum(classification_loss(logits, targets))
        if valence_arousal_weight > 0:
            loss += valence_arousal_weight * concordance_loss(predicted_valence_arousal, valence_arousal)
        correct = jnp.argmax(logits, -1) == labels
        sums = {"count": jnp.float32(len(logits)), "accuracy": jnp.sum(correct.astype(jnp.float32))}
        return loss, (batch_stats, sums)

    return loss_fn


def split_outputs(outputs: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Return logits [B, K] and valence and arousal in [-1, 1], [B, 2], or [B, 0] from a network without that head."""
    outputs = outputs.astype(jnp.float32)
    return outputs[:, :num_classes], jnp.tanh(outputs[:, num_classes:])


def make_predict_fn(
    apply: Apply, num_classes: int, mean: Sequence[float], std: Sequence[float], tta: str = "none"
) -> PredictFn:
    """Return `predict(variables, {"image": uint8 [B, H, W, C]}) -> {"probs": [B, K], "valence_arousal": [B, 2 or 0]}`.

    Predictions are means over the views of the test-time augmentation `tta`.
    """

    def predict(variables: dict, batch: Batch) -> dict[str, jax.Array]:
        images = batch["image"]
        stacked = views(images.astype(jnp.float32), tta)  # [V, B, H, W, C]
        outputs, _ = apply(variables, normalize(stacked.reshape(-1, *images.shape[1:]), mean, std), False)
        logits, valence_arousal = split_outputs(outputs, num_classes)
        of_views = {"probs": jax.nn.softmax(logits), "valence_arousal": valence_arousal}
        return {name: value.reshape(*stacked.shape[:2], -1).mean(axis=0) for name, value in of_views.items()}

    return predict


def augmented_images(images: np.ndarray, draws: int, augmentation: dict, seed: int) -> np.ndarray:
    """Return each image of uint8 [B, H, W, C] followed by `draws` augmented versions: [B, 1 + draws, H, W, C]."""
    repeated = jnp.repeat(jnp.asarray(images, jnp.float32), draws, axis=0)
    changed = jax.jit(lambda key, x: augment(key, x, **augmentation))(jax.random.key(seed), repeated)
    changed = np.asarray(jnp.clip(jnp.round(changed), 0, 255), np.uint8).reshape(len(images), draws, *images.shape[1:])
    return np.concatenate([images[:, None], changed], axis=1)
