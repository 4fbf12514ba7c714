"""Sets prepared once with tfds, as array_record files, and read back without TensorFlow; sets of faces in classes.

B batch, H W C image, K classes.
"""

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from affect_jax.data.source import BadInput, BadRows, place

# array_record compresses too, and tighter: deflated pictures take more room there and longer to read.
STORED = (cv2.IMWRITE_PNG_COMPRESSION, 0)


TARGETS = ("votes", "valence_arousal")
"""What an example may be held against beside its label."""


class Preparation(NamedTuple):
    """What came of a preparation: counts[split][class], and what a user should know about the source."""

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
    """Base of all prepared sets: the source is read and checked, then written whole or not at all.

    `source` is the publishers' file or folder, `on_bad_row` "fail" or "skip"; `allow_other_counts` takes a source whose
    counts are not the published ones. Only preparing needs them. All is read and checked before anything is written;
    pictures with a file of their own are read while they are written, so that a large set need not fit in memory.
    """

    VERSION = tfds.core.Version("1.0.0")
    OPTIONS: ClassVar[tuple[Option, ...]] = ()
    """Options of this set, in addition to the options of all sets."""
    REQUIRED_SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    CLASS_NAMES: ClassVar[tuple[str, ...]]
    DESCRIPTION: ClassVar[str]
    LICENCE: ClassVar[str] = ""
    """What its publishers allow, as an exported model tells it; "" where only the user knows."""
    UNIT: ClassVar[str] = "faces"
    """What an example is called."""
    CONFIG: ClassVar[str] = "fer_vgg"
    """The config that a first run on the set may start from."""
    url_infos = None  # nothing is downloaded, and to look for addresses tfds needs a package that it does not declare

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
        super().__init__(**kwargs)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of their integer labels."""
        return self.CLASS_NAMES

    def read_source(self, bad_rows: BadRows) -> Iterator[dict]:
        """Examples in the source's order: split, file (below the source) and what else the features need."""
        raise NotImplementedError

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """What of an example is stored."""
        raise NotImplementedError

    def labels_of(self, example: dict) -> Iterable[int]:
        """The labels that the example adds to the counts."""
        raise NotImplementedError

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """BadInput where the examples by split, or their counts by class, cannot be; else remarks for the user."""
        raise NotImplementedError

    def encode(self, example: dict) -> dict:
        """The example as its features store it; ValueError, with the reason alone, on an unreadable picture."""
        raise NotImplementedError

    def write_beside(self, directory: Path) -> None:
        """Write what the set has beside its records; often nothing."""

    @cached_property
    def examples(self) -> dict[str, list[dict]]:
        """The whole source by split, checked."""
        examples = {"train": [], "val": [], "test": []}
        for example in tqdm(
            self.read_source(self.bad_rows), desc=f"reading {self.source}", unit=f" {self.UNIT}", delay=2
        ):
            examples[example.pop("split")].append(example)
        if empty := [split for split in self.REQUIRED_SPLITS if not examples[split]]:
            raise BadInput(self.source, None, f"no {self.UNIT} for {', '.join(empty)}", "this split needs some")
        if not any(examples.values()):
            raise BadInput(self.source, None, f"no {self.UNIT} at all", "one split at least needs some")
        counts = {
            split: Counter(self.class_names[label] for example in some for label in self.labels_of(example))
            for split, some in examples.items()
        }
        self.remarks = self.review(examples, counts)
        self.counts = {split: {name: counts[split][name] for name in self.class_names} for split in counts}
        return {split: some for split, some in examples.items() if some}

    def _info(self) -> tfds.core.DatasetInfo:
        info = tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(self.features()),
            # Example i of a split is its i-th row in the source.
            disable_shuffling=True,
        )
        info.initialize_from_bucket = lambda: None  # it asks the network for a set of this name, and leaves a folder
        return info

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(examples, split) for split, examples in self.examples.items()}

    def _generate_examples(self, examples: list[dict], split: str) -> Iterator[tuple[int, dict]]:
        written = 0
        for index, example in enumerate(tqdm(examples, desc=f"writing {split}", unit=f" {self.UNIT}", delay=2)):
            try:
                stored = self.encode(example)
            except ValueError as reason:
                self.bad_rows.report(Path(self.source) / example["file"], example.get("row"), str(reason))
                for label in self.labels_of(example):
                    self.counts[split][self.class_names[label]] -= 1
                continue
            written += 1
            yield index, stored
        if not written:
            raise BadInput(self.source, None, f"no readable picture for {split}", "every split needs some")

    @classmethod
    def directory(cls, data_dir: str | Path) -> Path:
        """Where this version of the set lies in `data_dir`."""
        return Path(data_dir) / cls.name / str(cls.VERSION)

    @classmethod
    def prepared_directory(cls, data_dir: str | Path) -> Path:
        """Where the set lies; FileNotFoundError, with the command to run, where it is not prepared."""
        directory = cls.directory(data_dir)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory}: {cls.name} is not prepared; run\n  {cls.prepare_command(data_dir)}")
        return directory

    @classmethod
    def prepare(cls, data_dir: str | Path, overwrite: bool = False, **options) -> Preparation:
        """Read the source and write the set into `data_dir`, whole or not at all; options are the builder's own.

        BadInput on a source that cannot be used, FileExistsError where the set is prepared and not to be replaced.
        """
        target = Path(data_dir) / cls.name
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target}: already prepared; prepare it anew with --overwrite")
        temporary = target.with_name(f".{cls.name}.{os.getpid()}")
        builder = cls(data_dir=temporary, **options)
        _ = builder.examples  # before the first folder is made
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(None):  # tfds tells of the temporary folder, in color
                builder.download_and_prepare(
                    download_dir=temporary / "downloads",
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                    file_format="array_record",
                )
            builder.write_beside(cls.directory(temporary))
            if target.exists():
                target.rename(temporary / "replaced")
            (temporary / cls.name).rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return Preparation(cls.directory(data_dir), builder.counts, builder.bad_rows.skipped, builder.remarks)

    @classmethod
    def prepare_command(cls, data_dir: str | Path) -> str:
        """The command line that prepares this set."""
        return f"python scripts/prepare_data.py {cls.name} --source=PATH --data_dir={data_dir}"


class PreparedBuilder(SourceBuilder, skip_registration=True):
    """Base of the sets of faces: a subclass names its classes and reads its source; the rest is here."""

    IMAGE_SHAPE: ClassVar[tuple[int, int, int]] = (48, 48, 1)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the prepared pictures."""
        return self.IMAGE_SHAPE

    def read_source(self, bad_rows: BadRows) -> Iterator[dict]:
        """Examples in the source's order: split, image, label, file, row and what extra_features names.

        An image is uint8 [H, W] or RGB [H, W, 3], or a function that reads it, with ValueError where it cannot.
        """
        raise NotImplementedError

    def check(self, counts: dict[str, Counter], skipped: int) -> list[str]:
        """BadInput where counts by split and class are not those of the set; else remarks for the user, often none."""
        raise NotImplementedError

    def extra_features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Features that this set has beside image, label, file and row."""
        return {}

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """The picture as PNG, its label, and where it came from."""
        return {
            "image": tfds.features.Image(shape=self.image_shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=self.class_names),
            "file": tfds.features.Text(),
            "row": tfds.features.Scalar(np.int32),
            **self.extra_features(),
        }

    def labels_of(self, example: dict) -> Iterable[int]:
        """Its one label."""
        return [example["label"]]

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """The set's own check of its counts."""
        return self.check(counts, len(self.bad_rows.skipped))

    def encode(self, example: dict) -> dict:
        """The picture becomes PNG."""
        image = example["image"]() if callable(example["image"]) else example["image"]
        if image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        return {**example, "image": BytesIO(cv2.imencode(".png", image, STORED)[1].tobytes())}

    @classmethod
    def open_split(cls, split: str, data_dir: str | Path) -> "PreparedSplit":
        """The split as `prepare` wrote it; FileNotFoundError, with the command to run, where it has not."""
        return PreparedSplit(cls.prepared_directory(data_dir), split)


class Records:
    """The records of a split of a prepared set, and its `features`; ValueError on a split that it does not have."""

    def __init__(self, directory: str | Path, split: str):
        builder = tfds.builder_from_directory(directory)
        if split not in builder.info.splits:
            raise ValueError(f"{directory} has no split {split}; it has {', '.join(builder.info.splits)}")
        self.features = builder.info.features
        self._files = [str(file) for file in builder.info.splits[split].filepaths]
        self._ends = np.cumsum(builder.info.splits[split].shard_lengths)
        # tfds decodes example by example, at a quarter of the speed; the source below pickles without its builder.
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._source = builder.as_data_source(split, deserialize_method=raw).data_source

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> list[Mapping]:
        """The stored features of the examples at `indices`, one mapping from names each.

        OSError that names the file where one is gone, cut or damaged.
        """
        if not len(indices):
            return []
        indices = np.asarray(indices).tolist()
        try:
            found = self._source.__getitems__(indices)
        except RuntimeError as error:  # array_record's only one
            raise self._unreadable(indices) from error
        if not all(found):  # what a cut file lacks, array_record leaves out without a word
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
                return OSError(f"{file} cannot be read: {reason}; bring it back, or prepare the set anew (--overwrite)")
        return OSError(f"{', '.join(self._files)} could not be read a moment ago; the same command goes on")


class PreparedSplit:
    """One split of a prepared set, read from its files batch by batch; it pickles, and reopens them where it lands.

    `class_names`, `image_shape` (H, W, C), and the number of examples as `len`.
    """

    def __init__(self, directory: str | Path, split: str):
        self._records = Records(directory, split)
        features = self._records.features
        self.class_names: tuple[str, ...] = tuple(features["label"].names)
        self.image_shape: tuple[int, int, int] = features["image"].shape
        self._targets = {name: features[name].shape[0] for name in TARGETS if name in features}

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """image uint8 [B, H, W, C] (RGB), label int32 [B], and what of TARGETS the set has, float32 each.

        votes [B, K] (sum 1), valence_arousal [B, 2] within -1 and 1.
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
        """The label of every example, int32 [N]."""
        pieces = np.array_split(np.arange(len(self)), max(1, len(self) // 2048))
        return np.concatenate(
            [
                [example["label"].int64_list.value[0] for example in self._records.read(piece)]
                for piece in tqdm(pieces, "reading labels", delay=2, leave=False, disable=None)
            ]
        ).astype(np.int32)

    def places(self, indices: np.ndarray) -> list[str]:
        """Where in the source each example came from: `fer2013.csv, row 17`."""
        return [
            place(example["file"].bytes_list.value[0].decode(), example["row"].int64_list.value[0])
            for example in self._records.read(indices)
        ]
