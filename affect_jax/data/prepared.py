"""Data sets prepared once with tfds as array_record files, read without TensorFlow; classification data sets.

B batch, H W C image, K classes.
"""

import contextlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from affect_jax.data import SPLITS
from affect_jax.data.identity import Fingerprint
from affect_jax.data.source import BadInput, BadRows, MissingSplit, place
from affect_jax.files import explained, printable, read_json, write_atomically

# array_record compresses as well, and better: compressed PNG would take more space in it and longer to read.
STORED = (cv2.IMWRITE_PNG_COMPRESSION, 0)

TARGETS = ("votes", "valence_arousal")
"""Optional targets of an example, in addition to its label."""


class Preparation(NamedTuple):
    """Result of a preparation: counts[split][class], and remarks about the source."""

    directory: Path
    counts: dict[str, dict[str, int]]
    skipped: list[BadInput]
    remarks: list[str]


class Option(NamedTuple):
    """An option of one data set: a keyword argument of its builder and a flag of scripts/prepare_data.py."""

    name: str
    type: type
    help: str


class SourceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of all prepared data sets: the source is read and checked, then written completely or not at all.

    `source` is the file or folder of the publishers, `on_bad_row` is "fail" or "skip", `allow_other_counts` accepts
    other counts than the published ones. Only `prepare` needs them. The source is checked before anything is written.
    Image files are read while they are written, so a large data set does not have to fit in memory.
    """

    VERSION = tfds.core.Version("1.0.0")
    OPTIONS: ClassVar[tuple[Option, ...]] = ()
    """Options of this data set, in addition to the options of all data sets."""
    REQUIRED_SPLITS: ClassVar[tuple[str, ...]] = SPLITS
    CLASS_NAMES: ClassVar[tuple[str, ...]]
    DESCRIPTION: ClassVar[str]
    LICENCE: ClassVar[str] = ""
    """Terms of the publishers, repeated in exported models; "" if only the user can know them."""
    UNIT: ClassVar[str] = "faces"
    """Word for an example in messages."""
    CONFIG: ClassVar[str] = "fer_vgg"
    """Name of the config for a first run on this data set."""
    url_infos = None  # nothing is downloaded, and tfds would need an undeclared package to look for URLs

    def __init__(
        self,
        *,
        source: str | Path | None = None,
        on_bad_row: str = "fail",
        allow_other_counts: bool = False,
        **kwargs,
    ):
        self.source, self.allow_other_counts = source, allow_other_counts
        self.bad_rows = BadRows(on_bad_row)
        self.fingerprints = defaultdict(Fingerprint)
        super().__init__(**kwargs)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of their integer labels."""
        return self.CLASS_NAMES

    def read_source(self) -> Iterator[dict]:
        """Read examples in the order of the source: split, file (below the source) and the features."""
        raise NotImplementedError

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Return the stored features of an example."""
        raise NotImplementedError

    def labels_of(self, example: dict) -> Iterable[int]:
        """Return the labels that the example adds to the counts."""
        raise NotImplementedError

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """Check the examples by split and their counts by class; return remarks. BadInput if they are not valid."""
        raise NotImplementedError

    def check_classes(self) -> None:
        """Raise BadInput if the counts lack a class that the data set needs; by default it needs none."""

    def missing_classes(self) -> list[str]:
        """Return a remark for each split that lacks a class."""
        return [
            f"{split} has no {', '.join(missing)}"
            for split, counts in self.counts.items()
            if any(counts.values()) and (missing := [name for name in counts if not counts[name]])
        ]

    def load(self, example: dict) -> dict:
        """Return the example with its image, decoded or not; ValueError with only the reason if it is unreadable."""
        raise NotImplementedError

    def encode(self, example: dict) -> dict:
        """Encode a loaded example for its features."""
        raise NotImplementedError

    def write_extra_files(self, directory: Path) -> None:
        """Write files in addition to the records, if the data set has any."""

    def read(self) -> None:
        """Read and check the source: set `examples` and `counts`, both by split, and `remarks`.

        BadInput if the source is not usable.
        """
        examples = {split: [] for split in SPLITS}
        rows = self.read_source()
        for example in tqdm(rows, f"reading {self.source}", unit=f" {self.UNIT}", delay=2, disable=None):
            examples[example.pop("split")].append(example)
        if empty := [split for split in self.REQUIRED_SPLITS if not examples[split]]:
            raise BadInput(self.source, None, f"no {self.UNIT} for {', '.join(empty)}", "this split must not be empty")
        if not any(examples.values()):
            raise BadInput(self.source, None, f"no {self.UNIT}", "at least one split must not be empty")
        counts = {
            split: Counter(self.class_names[label] for example in some for label in self.labels_of(example))
            for split, some in examples.items()
        }
        self.remarks = self.review(examples, counts)
        self.counts = {split: {name: counts[split][name] for name in self.class_names} for split in counts}
        self.check_classes()
        self.examples = {split: some for split, some in examples.items() if some}

    def _info(self) -> tfds.core.DatasetInfo:
        info = tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(self.features()),
            # example i of a split is its i-th row in the source
            disable_shuffling=True,
        )
        info.initialize_from_bucket = lambda: None  # it would search the network for this name and leave a folder
        return info

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(examples, split) for split, examples in self.examples.items()}

    def _generate_examples(self, examples: list[dict], split: str) -> Iterator[tuple[int, dict]]:
        written = 0
        progress = tqdm(examples, f"writing {split}", unit=f" {self.UNIT}", delay=2, disable=None)
        for index, example in enumerate(progress):
            try:
                loaded = self.load(example)
            except ValueError as reason:
                self.bad_rows.report(Path(self.source) / example["file"], example.get("row"), str(reason))
                for label in self.labels_of(example):
                    self.counts[split][self.class_names[label]] -= 1
                continue
            written += 1
            self.fingerprints[split].add(loaded)
            yield index, {**self.encode(loaded), "file": printable(example["file"])}
        if not written:
            raise BadInput(self.source, None, f"no readable image for {split}", "a split must not be empty")

    @classmethod
    def directory(cls, data_dir: str | Path) -> Path:
        """Return the folder of this version of the data set in `data_dir`."""
        return Path(data_dir) / cls.name / str(cls.VERSION)

    @classmethod
    def prepared_directory(cls, data_dir: str | Path) -> Path:
        """Return the folder of the data set; FileNotFoundError, with the command to run, if it is not prepared."""
        directory = cls.directory(data_dir)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory}: {cls.name} is not prepared; run\n  {cls.prepare_command(data_dir)}")
        return directory

    @classmethod
    def prepare(cls, data_dir: str | Path, overwrite: bool = False, **options) -> Preparation:
        """Read the source and write the data set into `data_dir`, completely or not at all.

        `options` are arguments of the builder. BadInput on an unusable source, FileExistsError if the data set is
        already prepared and `overwrite` is False.
        """
        target = Path(data_dir) / cls.name
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target}: already prepared; replace it with --overwrite")
        temporary = target.with_name(f".{cls.name}.{os.getpid()}")
        builder = cls(data_dir=temporary, **options)
        with builder.bad_rows.named_in_errors():
            builder.read()  # before the first folder is made
        tfds.disable_progress_bar()
        try:
            with builder.bad_rows.named_in_errors():
                with contextlib.redirect_stdout(None):  # tfds prints the temporary folder
                    builder.download_and_prepare(
                        download_dir=temporary / "downloads",
                        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                        file_format="array_record",
                    )
                builder.check_classes()  # again: unreadable images are no longer counted
                remarks = [*builder.remarks, *builder.missing_classes()]
            builder.write_extra_files(cls.directory(temporary))
            fingerprints = {split: fingerprint.text() for split, fingerprint in builder.fingerprints.items()}
            write_atomically(fingerprints_file(cls.directory(temporary)), json.dumps(fingerprints))
            if target.exists():
                target.rename(temporary / "replaced")
            (temporary / cls.name).rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return Preparation(cls.directory(data_dir), builder.counts, builder.bad_rows.skipped, remarks)

    @classmethod
    def prepare_command(cls, data_dir: str | Path) -> str:
        """Return the command that prepares this data set."""
        return f"python scripts/prepare_data.py {cls.name} --source=PATH --data_dir={data_dir}"


class PreparedBuilder(SourceBuilder, skip_registration=True):
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
        if empty and not self.allow_other_counts:
            remedy = "add images, remove the class, or accept other counts with --allow_other_counts"
            raise BadInput(self.source, None, f"no readable image of class {', '.join(empty)}", remedy)

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
    def open_split(cls, split: str, data_dir: str | Path) -> "PreparedSplit":
        """Open a prepared split; FileNotFoundError, with the command to run, if it is not prepared."""
        return PreparedSplit(cls.prepared_directory(data_dir), split)


def fingerprints_file(directory: Path) -> Path:
    """Return the path of the fingerprints of the splits; sets that an older version prepared have none."""
    return directory / "fingerprints.json"


def labels_file(directory: Path, split: str) -> Path:
    """Return the path of the labels of a split; sets that an older version prepared have none."""
    return directory / f"labels_{split}.npy"


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


class Records:
    """The records of a prepared split, its `features` and its `fingerprint`; MissingSplit if it does not exist."""

    def __init__(self, directory: str | Path, split: str):
        check_features(read_json(Path(directory) / "features.json"), Path(directory))
        with explained(directory):
            builder = tfds.builder_from_directory(directory)
        if split not in builder.info.splits:
            raise MissingSplit(f"{directory} has no split {split}; it has {', '.join(builder.info.splits)}")
        self.features = builder.info.features
        file = fingerprints_file(Path(directory))
        with explained(file):
            self.fingerprint: str = read_json(file)[split] if file.exists() else ""
        self._files = [str(file) for file in builder.info.splits[split].filepaths]
        self._ends = np.cumsum(builder.info.splits[split].shard_lengths)
        # decoding by tfds, one example at a time, was four times slower; this source is pickled without its builder
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._source = builder.as_data_source(split, deserialize_method=raw).data_source

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


class PreparedSplit:
    """A prepared split for classification, read in batches; it can be pickled, and then opens its files again.

    It has `class_names`, `image_shape` (H, W, C), `fingerprint`, and `len`.
    """

    def __init__(self, directory: str | Path, split: str):
        self._records = Records(directory, split)
        self._labels_file = labels_file(Path(directory), split)
        features, self.fingerprint = self._records.features, self._records.fingerprint
        self.class_names: tuple[str, ...] = tuple(features["label"].names)
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
        with contextlib.suppress(OSError, EOFError, ValueError):
            labels = np.load(self._labels_file)
            if labels.shape == (len(self),):
                return labels
        pieces = np.array_split(np.arange(len(self)), max(1, len(self) // 2048))
        return np.concatenate(
            [
                [example["label"].int64_list.value[0] for example in self._records.read(piece)]
                for piece in tqdm(pieces, "reading labels", delay=2, leave=False, disable=None)
            ]
        ).astype(np.int32)

    def places(self, indices: np.ndarray) -> list[str]:
        """Return the origin of each example in the source, for example `fer2013.csv, row 17`."""
        return [
            place(example["file"].bytes_list.value[0].decode(), example["row"].int64_list.value[0])
            for example in self._records.read(indices)
        ]
