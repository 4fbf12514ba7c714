"""The interface between a run and its task.

A task is built from a config, `Task(config)`, and knows no devices: it reads host batches and gives pure functions of
(variables, batch). The training loop, evaluation, export and prediction compile these functions and place the arrays.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from affect_jax.data import open_split, open_splits
from affect_jax.data.identity import SplitIdentity, difference, from_text, identify
from affect_jax.data.pipeline import BatchIterator, HostBatch
from affect_jax.data.split import BoxesSplit, Split
from affect_jax.tasks.sections import Metrics, Presentation, Section, Table

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]
Apply = Callable[..., tuple[Any, Any]]
"""(variables, inputs, train, key) -> (outputs, new batch_stats): a network."""
LossFn = Callable[[Any, Any, Batch, jax.Array], tuple[jax.Array, tuple[Any, Sums]]]
"""(params, batch_stats, batch, key) -> (sum of the loss, (new batch_stats, sums with "count"))."""
PredictFn = Callable[[dict, Batch], dict[str, Any]]
"""(variables, batch) -> outputs by name, with the batch axis first."""


class DataFacts(NamedTuple):
    """Properties of a data set that determine the shape of a network."""

    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    """(H, W, C) of a classifier's images; () of a detector, which takes images of any size."""


def same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
    """Return True if the class names are the same, in the same order; a single class may have another name."""
    return tuple(names) == tuple(others) or len(names) == len(others) == 1


class Teacher(NamedTuple):
    """A trained classifier whose predictions another network learns."""

    source: str
    fingerprint: str
    """Hash of the weights."""
    data: DataFacts
    probabilities: Callable[[jax.Array], jax.Array]
    """Images [B, H, W, C] with values from 0 to 255 -> probabilities [B, K]."""


class TrainingData(NamedTuple):
    """The training split as the loop consumes it."""

    examples: Future[HostBatch] | None
    """All examples of the split, read by a thread, if they are kept on the device; batches then hold only "index"."""
    shapes: dict[str, jax.ShapeDtypeStruct] | None
    """Shapes of `examples`."""
    batches: BatchIterator
    """This process's rows of each batch; the iterator's state is saved with every checkpoint."""


class Evaluation(NamedTuple):
    """A split and the options to evaluate it with."""

    name: str
    """Name for files and for metrics.json, such as "test_tta_flip"."""
    about: dict[str, str]
    """Description that is stored with the metrics: "split" and, for classifiers, "tta"."""
    split: Split
    options: Mapping[str, Any]
    identity: SplitIdentity | None = None
    """Identity of the whole split if it is of the run's own data set."""
    data_dir: str | Path = ""
    """Folder of the data set if it is not the config's."""


def check_same_split(path_a: Path, path_b: Path) -> None:
    """Raise ValueError, naming both, if two files of predictions are of different splits; older files name none."""
    identities = []
    for path in (path_a, path_b):
        with np.load(path) as stored:
            identities += [from_text(str(stored["split"]))] if "split" in stored else []
    if len(identities) == 2 and (both := difference(*identities)):
        raise ValueError(f"the images are not the same: they have {both}")


class Task(ABC):
    """All that differs between the kinds of run.

    `data` is a DataFacts, `evaluation` an Evaluation.
    """

    presentation: Presentation
    """The way metrics are shown."""
    progress_metrics: Mapping[str, str]
    """Metrics of the progress lines, with their labels."""

    def __init__(self, config: ConfigDict, teachers: Sequence[Teacher] = ()):
        self.config, self.teachers = config, tuple(teachers)

    def open_split(self, name: str, data_dir: str | Path = "") -> Split:
        """Open the split "train", "val" or "test" of the config's data set, which `data_dir` may have instead.

        ValueError if the data set is of the other task.
        """
        data, task = self.config.data, self.config.task
        split = open_split(data.name, name, data_dir or data.data_dir, **data.options.to_dict())
        has_boxes = isinstance(split, BoxesSplit)
        if has_boxes != (task == "detection"):
            raise ValueError(
                f"data.name is {data.name}, which has {'boxes' if has_boxes else 'no boxes'}, but the config is for"
                f" {task}; use a config for {'detection' if has_boxes else 'classification'}"
            )
        return split

    def identify_data(self) -> dict[str, SplitIdentity]:
        """Return the identity of each split of the config's data set."""
        data = self.config.data
        splits = open_splits(data.name, data.data_dir, **data.options.to_dict())
        return {name: identify(split) for name, split in splits.items()}

    @abstractmethod
    def data_facts(self, split: Split) -> DataFacts:
        """Return the properties of the data that the network depends on."""

    @abstractmethod
    def describe(self, train_split: Split, validation: Evaluation) -> list[str]:
        """Return lines about the data for the start of a run."""

    @abstractmethod
    def build_network(self, data: DataFacts) -> Any:
        """Build the config's network, a flax module."""

    @abstractmethod
    def network_inputs(self, data: DataFacts) -> Any:
        """Return the shapes of the network's inputs for a batch of one."""

    @abstractmethod
    def normalized_images(self, split: Split, count: int) -> jax.Array:
        """Return `count` images from all parts of the split as the network's inputs, for BatchNorm's statistics."""

    def examples_per_epoch(self, split: Split) -> int:
        """Return the number of examples of an epoch of training on `split`."""
        return len(split)

    @abstractmethod
    def steps_per_dispatch(self, split: Split) -> int:
        """Return the number of training steps on `split` per call to the device."""

    @abstractmethod
    def training_data(self, split: Split, total_steps: int, process_index: int, process_count: int) -> TrainingData:
        """Return the batches of a run, the rows of one process; ValueError if the split lacks the loss's targets."""

    @abstractmethod
    def loss_fn(self, apply: Apply, data: DataFacts) -> LossFn:
        """Return the loss of a training batch, augmentation included."""

    @abstractmethod
    def predict_fn(self, apply: Apply, data: DataFacts, options: Mapping[str, Any] = ...) -> PredictFn:
        """Return the function from images to predictions; `options` are those of an Evaluation."""

    @abstractmethod
    def evaluation(self, split_name: str, **options: Any) -> Evaluation:
        """Return an evaluation of a split; `options` are the task's own."""

    @abstractmethod
    def evaluation_batches(
        self, evaluation: Evaluation, batch_size: int, rows: slice = slice(None)
    ) -> Iterator[HostBatch]:
        """Yield every example of the split once, `rows` of each batch of `batch_size`.

        All batches have the same number of rows; `mask` is 0 for padding and `index` is the position in the split.
        """

    @abstractmethod
    def predictions(self, outputs: Mapping[str, np.ndarray]) -> Any:
        """Return the predictions of a split from the outputs [N, ...] of predict_fn for all its examples."""

    @abstractmethod
    def metrics(self, predictions: Any, evaluation: Evaluation, intervals: bool = True) -> dict:
        """Return all metrics of the predictions; `intervals` adds bootstrap intervals, which take seconds."""

    @abstractmethod
    def scalars(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics that a run records, under "val/...", "val/loss" among them."""

    @abstractmethod
    def write_predictions(self, path: Path, predictions: Any, evaluation: Evaluation, step: int) -> None:
        """Write the predictions of checkpoint `step` and the ground truth to an .npz file."""

    @abstractmethod
    def read_predictions(self, path: Path) -> tuple[int, Any]:
        """Return the step and the predictions that write_predictions wrote; ValueError for an older format."""

    @abstractmethod
    def prediction_table(self, predictions: Any, evaluation: Evaluation) -> Table:
        """Return the predictions with the names of the images, a row per image or detection."""

    @abstractmethod
    def paired_test(self, path_a: Path, path_b: Path) -> dict:
        """Compare two files of write_predictions on the same images; ValueError if the images differ."""

    @abstractmethod
    def augmented_samples(self, split: Split, count: int, draws: int) -> np.ndarray:
        """Return `count` images from all parts of the split, each followed by `draws` augmented versions.

        uint8 [count, 1 + draws, H, W, C]; a detector's images have their boxes drawn.
        """

    @abstractmethod
    def sections(self, evaluations: Mapping[str, Metrics], evaluation: Evaluation, predictions: Any) -> list[Section]:
        """Return the sections of the report page; `predictions` are those of `evaluation`."""
