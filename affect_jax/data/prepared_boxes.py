"""Data sets of images with boxes, prepared once: encoded image files and an index of their boxes.

N boxes of an image, P images of a split, H W image. Boxes are [x1, y1, x2, y2], float32, absolute pixels of the
upright image, half-open.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from affect_jax.data.images import decode_image, read_encoded, read_image_size
from affect_jax.data.prepared import SourceBuilder
from affect_jax.data.records import Records
from affect_jax.data.source import BadInput, place
from affect_jax.data.split import BoxesSplit
from affect_jax.files import explained, printable


class Entry(NamedTuple):
    """A box of the source."""

    box: tuple[float, float, float, float]
    label: int
    ignore: bool
    """Evaluation counts it neither as found nor as missed."""
    row: int | None
    """Line in its file."""
    name: str = ""
    """Name in messages, for a box without a line."""


class BoxesBuilder(SourceBuilder, skip_registration=True):
    """Base of data sets of images with boxes: a subclass declares its classes and reads its source.

    A subset of a published data set is accepted with a remark. Boxes that reach outside their image are clipped at its
    border and counted; boxes without area or completely outside are bad rows.
    """

    REQUIRED_SPLITS = ()
    UNIT = "images"
    CONFIG = "widerface_rcnn"
    TEST_IS_VAL: ClassVar[bool] = False
    """True if the published images have no test split, so that `test` opens val."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.clipped: dict[tuple[str, str], list[str]] = {}  # places of boxes, by split and image

    def read_source(self) -> Iterator[dict]:
        """Read examples, made by `make_example`, in the order of the source."""
        raise NotImplementedError

    def published(self) -> dict[str, int]:
        """Return the number of images in each split of the complete data set, if it is known."""
        return {}

    def make_example(self, split: str, file: str, annotations: Path, row: int | None, entries: Iterable[Entry]):
        """Return the example of image `file` (below the source), or None if it is not usable.

        Bad images and boxes are reported for file `annotations` and `row`, where the image is named.
        """
        try:
            size = read_image_size(Path(self.source) / file)
        except ValueError as reason:
            self.bad_rows.report(annotations, row, f"{file}: {reason}")
            return None
        good = [(entry, box) for entry in entries if (box := self._fit_box(entry, size, annotations)) is not None]
        self.clipped[split, file] = [
            place(annotations, entry.row) + (f", {entry.name}" if entry.name else "")
            for entry, box in good
            if (box != np.float32(entry.box)).any()
        ]
        return {
            "split": split,
            "file": file,
            "size": np.array(size, np.int32),
            "boxes": np.array([box for _, box in good], np.float32).reshape(-1, 4),
            "label": np.array([entry.label for entry, _ in good], np.int64),
            "ignore": np.array([entry.ignore for entry, _ in good], np.bool_),
        }

    def _fit_box(self, entry: Entry, size: tuple[int, int], annotations: Path) -> np.ndarray | None:
        """Return the box clipped at the border of the image; report it and return None if nothing remains."""
        height, width = size
        with np.errstate(over="ignore"):  # to infinity, which is reported
            box = np.array(entry.box, np.float32)  # as it is stored: rounding can remove the area
        prefix = f"{entry.name}: " if entry.name else ""
        if not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
            self.bad_rows.report(annotations, entry.row, f"{prefix}the box {list(entry.box)} has no area")
            return None
        inside = np.clip(box, 0, (width, height, width, height))
        if (inside[2:] <= inside[:2]).any():
            reason = f"{prefix}the box {list(entry.box)} is outside its {width}x{height} image"
            self.bad_rows.report(annotations, entry.row, reason)
            return None
        return inside

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Return the features: the encoded image, its origin and its boxes."""
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "file": tfds.features.Text(),
            "size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
            "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
            "label": tfds.features.Sequence(tfds.features.ClassLabel(names=self.class_names)),
            "ignore": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
        }

    def labels_of(self, example: dict) -> Iterable[int]:
        """Return the labels of the boxes."""
        return example["label"]

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """Return remarks on each split; BadInput if a split has more images than the published data set."""
        for split, some in examples.items():
            if some and all(example["ignore"].all() for example in some):
                kind = "every box is ignored" if counts[split] else "no boxes"
                remedy = "label its images" + ("" if split in self.REQUIRED_SPLITS else ", or leave the split out")
                raise BadInput(self.source, None, f"{split}: {kind} in {len(some):,} images", remedy)
        remarks = [remark for split, some in examples.items() if some for remark in describe(split, some)]
        for split, published in self.published().items():
            found = len(examples[split])
            problem = f"{split} has {found:,} images, the published set has {published:,}"
            if found > published:
                self.accept_counts([problem])
            if found != published:
                remarks.append(problem)
        if clipped := [at for split in examples for one in examples[split] for at in self.clipped[split, one["file"]]]:
            problem = "boxes reach outside their image and were clipped at its border"
            remarks.append(f"{len(clipped):,} {problem}; the first: {clipped[0]}")
        return remarks

    def load(self, example: dict) -> dict:
        """Return the bytes of the image file, after checking that they can be decoded to the size in the header."""
        path = Path(self.source) / example["file"]
        encoded = read_encoded(path)
        height, width = decode_image(encoded, partial(self.note, path)).shape[:2]
        if (height, width) != tuple(example["size"]):
            found = "x".join(map(str, example["size"][::-1]))
            raise ValueError(f"the header announces {found} pixels, the image has {width}x{height}")
        return {**example, "image": encoded}

    def encode(self, example: dict) -> dict:
        """Return the bytes of the image file unchanged."""
        return {**example, "image": BytesIO(example["image"])}

    def write_extra_files(self, directory: Path) -> None:
        """Write an index of each split with sizes and boxes, so that no image has to be read for them."""
        for split, stored in self.examples.items():
            if not stored:
                continue
            np.savez_compressed(
                index_file(directory, split),
                size=np.stack([example["size"] for example in stored]),
                files=np.array([printable(example["file"]) for example in stored]),
                num_boxes=np.array([len(example["boxes"]) for example in stored], np.int32),
                boxes=np.concatenate([example["boxes"] for example in stored]),
                label=np.concatenate([example["label"] for example in stored]).astype(np.int32),
                ignore=np.concatenate([example["ignore"] for example in stored]),
            )

    @classmethod
    def open_split(cls, split: str, data_dir: str | Path) -> "PreparedBoxesSplit":
        """Open a prepared split; FileNotFoundError, with the command to run, if it is not prepared."""
        directory = cls.prepared_directory(data_dir)
        return PreparedBoxesSplit(directory, "val" if split == "test" and cls.TEST_IS_VAL else split)


def index_file(directory: Path, split: str) -> Path:
    """Return the path of the index of a split."""
    return directory / f"boxes_{split}.npz"


def describe(split: str, examples: Sequence[dict]) -> list[str]:
    """Return remarks on a split: its counts, images without boxes, ignored boxes."""
    numbers = np.array([len(example["boxes"]) for example in examples])
    ignored = sum(int(example["ignore"].sum()) for example in examples)
    remarks = [f"{split}: {len(examples):,} images, {numbers.sum():,} boxes, at most {numbers.max():,} in an image"]
    if (numbers == 0).any():
        remarks.append(f"{split}: {(numbers == 0).sum():,} images without boxes are kept")
    if ignored:
        remarks.append(f"{split}: {ignored:,} boxes are ignored in evaluation")
    return remarks


class PreparedBoxesSplit(BoxesSplit):
    """A prepared split of images with boxes; it can be pickled, and then opens its files again."""

    def __init__(self, directory: str | Path, split: str):
        self._records = Records(directory, split)
        self.fingerprint, self.class_names = self._records.fingerprint, self._records.class_names
        file = index_file(Path(directory), split)
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing; prepare the data set again with --overwrite")
        with explained(file), np.load(file) as index:
            self._index = dict(index)
        self._ends = np.cumsum(self._index["num_boxes"])

    def __len__(self) -> int:
        return len(self._records)

    def sizes(self) -> np.ndarray:
        """Return (height, width) of every image, int32 [P, 2]."""
        return self._index["size"]

    def box_counts(self) -> np.ndarray:
        """Return the number of boxes of every image, int32 [P]."""
        return self._index["num_boxes"]

    def image_names(self, indices: np.ndarray) -> list[str]:
        """Return the path of each image in the source."""
        return self._index["files"][np.asarray(indices, int)].tolist()

    def annotations(self, index: int) -> dict[str, np.ndarray]:
        """Return boxes float32 [N, 4], label int32 [N] (positions in class_names) and ignore bool [N]."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        own = slice(self._ends[index] - self._index["num_boxes"][index], self._ends[index])
        return {name: self._index[name][own].copy() for name in ("boxes", "label", "ignore")}

    def read_image(self, index: int) -> dict[str, np.ndarray]:
        """Return image uint8 [H, W, 3] (RGB, original size) and the arrays of `annotations`."""
        annotations = self.annotations(index)
        (record,) = self._records.read(np.array([index]))
        return {"image": decode_image(record["image"].bytes_list.value[0]), **annotations}
