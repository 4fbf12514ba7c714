"""Records of a prepared data set, read without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from affect_jax.data.source import MissingSplit
from affect_jax.files import explained, read_json

CLASS_NAMES = "class_names"
"""Key of the class names in the file of fingerprints; sets that an older version prepared have none."""


def fingerprints_file(directory: Path) -> Path:
    """Return the path of the fingerprints of the splits; sets that an older version prepared have none."""
    return directory / "fingerprints.json"


class Records:
    """The records of a prepared split, its `features`, its `class_names` and its `fingerprint`.

    MissingSplit if it does not exist, ValueError that names the file or its folder if a description is damaged.
    """

    def __init__(self, directory: str | Path, split: str):
        directory = Path(directory)
        check_features(read_json(directory / "features.json"), directory)
        with explained(directory):
            builder = tfds.builder_from_directory(directory)
            if split not in builder.info.splits:
                raise MissingSplit(f"{directory} has no split {split}; it has {', '.join(builder.info.splits)}")
            self.features = builder.info.features
            self._files = [str(file) for file in builder.info.splits[split].filepaths]
            self._ends = np.cumsum(builder.info.splits[split].shard_lengths)
            # decoding by tfds, one example at a time, was four times slower; this source is pickled without its builder
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._source = builder.as_data_source(split, deserialize_method=raw).data_source
            label = getattr(self.features["label"], "feature", self.features["label"])  # one, or one for each box
            self.class_names: tuple[str, ...] = tuple(label.names)
        self.fingerprint, names = "", self.class_names
        file = fingerprints_file(directory)
        if file.exists():
            with explained(file):
                written = read_json(file)
                self.fingerprint, names = written[split], tuple(written.get(CLASS_NAMES, names))
        file = directory / "label.labels.txt"
        if not file.exists() or len(self.class_names) != label.num_classes or self.class_names != names:
            raise ValueError(
                f"{file} is missing or damaged (it gives the {len(self.class_names)} classes"
                f" {', '.join(self.class_names)}); restore it, or prepare the data set again with --overwrite"
            )

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> list[Mapping]:
        """Return the stored features of the examples at `indices`, a mapping from names for each.

        OSError with the file name if a file is missing, truncated or damaged.
        """
        if not len(indices):
            return []
        indices = np.asarray(indices).tolist()
        try:
            found = self._source.__getitems__(indices)
        except RuntimeError as error:  # the only error of array_record
            raise self._unreadable(indices) from error
        if not all(found):  # array_record returns nothing for the missing part of a truncated file
            raise self._unreadable(indices)
        return [tf_example_pb2.Example.FromString(record).features.feature for record in found]

    def _unreadable(self, indices: list[int]) -> OSError:
        for index in indices:
            try:
                (record,) = self._source.__getitems__([index])
                reason = "" if record else f"it ends before example {index}"
            except RuntimeError as error:
                reason = str(error)
            if reason:
                file = self._files[np.searchsorted(self._ends, index, side="right")]
                return OSError(
                    f"{file} cannot be read: {reason}; restore it, or prepare the data set again with --overwrite"
                )
        return OSError(f"{', '.join(self._files)} could not be read, but can be read now; rerun the command to resume")


def check_features(features: object, directory: Path) -> None:
    """Raise ValueError if the description of a prepared set names a class that is not tfds' own.

    tfds imports the modules that it names, and a prepared set may come from others.
    """
    parts = features.values() if isinstance(features, dict) else features if isinstance(features, list) else ()
    name = features.get("pythonClassName", "") if isinstance(features, dict) else ""
    if name and not str(name).startswith("tensorflow_datasets.core.features."):
        raise ValueError(f"{directory}/features.json names the class {name!r:.100}, which is not a feature of tfds")
    for part in parts:
        check_features(part, directory)
