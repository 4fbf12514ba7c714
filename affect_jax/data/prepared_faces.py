"""Data sets of single faces with labels, prepared once: the images as PNG, their labels and their origins.

B batch, H W C image, K classes.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from affect_jax.data.prepared import SourceBuilder
from affect_jax.data.records import Records
from affect_jax.data.source import place
from affect_jax.data.split import FacesSplit

# array_record compresses as well, and better: compressed PNG would take more space in it and longer to read.
STORED = (cv2.IMWRITE_PNG_COMPRESSION, 0)

TARGETS = ("votes", "valence_arousal")
"""Optional targets of an example, in addition to its label."""


class FacesBuilder(SourceBuilder, skip_registration=True):
    """Base of classification data sets: a subclass declares its classes and reads its source."""

    IMAGE_SHAPE: ClassVar[tuple[int, int, int]] = (48, 48, 1)

    def __init__(self, **kwargs):
        self.labels = defaultdict(list)  # of the examples of each split that were written
        super().__init__(**kwargs)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the prepared images."""
        return self.IMAGE_SHAPE

    def read_source(self) -> Iterator[dict]:
        """Read examples in the order of the source: split, image, label, file, row and the extra features.

        An image is uint8 [H, W] or RGB [H, W, 3], or a function that reads it and raises ValueError on failure.
        """
        raise NotImplementedError

    def extra_features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Return features in addition to image, label, file and row."""
        return {}

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Return the features: the image as PNG, its label and its origin."""
        return {
            "image": tfds.features.Image(shape=self.image_shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=self.class_names),
            "file": tfds.features.Text(),
            "row": tfds.features.Scalar(np.int32),
            **self.extra_features(),
        }

    def labels_of(self, example: dict) -> Iterable[int]:
        """Return the label of the example, in a list."""
        return [example["label"]]

    def check_classes(self) -> None:
        """Raise BadInput if a class has no images in any split, unless other counts are allowed."""
        empty = [name for name in self.class_names if not any(counts[name] for counts in self.counts.values())]
        if empty:
            self.accept_counts([f"no readable image of class {', '.join(empty)}"], "add images, remove the class")

    def load(self, example: dict) -> dict:
        """Read the image, if it is not read yet."""
        return {**example, "image": example["image"]()} if callable(example["image"]) else example

    def encode(self, example: dict) -> dict:
        """Encode the image as PNG."""
        image = example["image"]
        if image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        return {**example, "image": BytesIO(cv2.imencode(".png", image, STORED)[1].tobytes())}

    def _generate_examples(self, examples: list[dict], split: str) -> Iterator[tuple[int, dict]]:
        for index, example in super()._generate_examples(examples, split):
            self.labels[split].append(example["label"])
            yield index, example

    def write_extra_files(self, directory: Path) -> None:
        """Write the labels again, without the images."""
        for split, some in self.labels.items():
            np.save(labels_file(directory, split), np.array(some, np.int32))

    @classmethod
    def open_split(cls, split: str, data_dir: str | Path) -> "PreparedFacesSplit":
        """Open a prepared split; FileNotFoundError, with the command to run, if it is not prepared."""
        return PreparedFacesSplit(cls.prepared_directory(data_dir), split)


def labels_file(directory: Path, split: str) -> Path:
    """Return the path of the labels of a split; sets that an older version prepared have none."""
    return directory / f"labels_{split}.npy"


class PreparedFacesSplit(FacesSplit):
    """A prepared split for classification, read in batches; it can be pickled, and then opens its files again."""

    def __init__(self, directory: str | Path, split: str):
        self._records = Records(directory, split)
        self._labels_file = labels_file(Path(directory), split)
        features, self.fingerprint = self._records.features, self._records.fingerprint
        self.class_names = self._records.class_names
        self.image_shape: tuple[int, int, int] = features["image"].shape
        self._targets = {name: features[name].shape[0] for name in TARGETS if name in features}

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return image uint8 [B, H, W, C] (RGB), label int32 [B], and those of TARGETS that the data set has, float32.

        votes [B, K] (sum 1), valence_arousal [B, 2] in [-1, 1].
        """
        examples = self._records.read(indices)
        batch = {
            "image": np.empty((len(examples), *self.image_shape), np.uint8),
            "label": np.fromiter((example["label"].int64_list.value[0] for example in examples), np.int32),
        }
        for image, example in zip(batch["image"], examples, strict=True):
            encoded = np.frombuffer(example["image"].bytes_list.value[0], np.uint8)
            decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED).reshape(self.image_shape)
            image[:] = decoded[..., ::-1]
        for name, size in self._targets.items():
            values = [example[name].float_list.value for example in examples]
            batch[name] = np.array(values, np.float32).reshape(len(examples), size)
        return batch

    def labels(self) -> np.ndarray:
        """Return the label of every example, int32 [N], from the records if the file of labels is not intact."""
        with contextlib.suppress(Exception):  # damage can cause any error
            labels = np.load(self._labels_file)
            if labels.shape == (len(self),) and labels.dtype == np.int32:
                return labels
        pieces = np.array_split(np.arange(len(self)), max(1, len(self) // 2048))
        return np.concatenate(
            [
                [example["label"].int64_list.value[0] for example in self._records.read(piece)]
                for piece in tqdm(pieces, "reading labels", delay=2, leave=False, disable=None)
            ]
        ).astype(np.int32)

    def image_names(self, indices: np.ndarray) -> list[str]:
        """Return the origin of each example in the source, for example `fer2013.csv, row 17`."""
        return [
            place(example["file"].bytes_list.value[0].decode(), example["row"].int64_list.value[0])
            for example in self._records.read(indices)
        ]
