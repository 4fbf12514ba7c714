"""Sets of pictures with boxes, prepared once: pictures as their own encoded bytes, boxes beside them.

N boxes of a picture, P pictures of a split, H W picture. Boxes are [x1, y1, x2, y2], float32, absolute pixels of the
picture turned as EXIF says, half-open.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from affect_jax.data.images import decode_image, read_encoded, read_image_size
from affect_jax.data.prepared import Records, SourceBuilder
from affect_jax.data.source import BadInput, BadRows, place


class Entry(NamedTuple):
    """A box as its source has it."""

    box: tuple[float, float, float, float]
    label: int
    ignore: bool
    """Evaluation neither counts nor punishes it."""
    row: int | None
    """Its line in the file that has it."""
    name: str = ""
    """What it is called where it has no line."""


class BoxesBuilder(SourceBuilder, skip_registration=True):
    """Base of the sets of pictures with boxes: a subclass names its classes and reads its source; the rest is here.

    Parts of a published set are taken, and remarked on. Boxes that reach beyond their picture are cut at its border,
    and counted; boxes without area, or wholly outside, are bad rows.
    """

    REQUIRED_SPLITS = ()
    UNIT = "pictures"
    CONFIG = "widerface_rcnn"
    TEST_IS_VAL: ClassVar[bool] = False
    """The publishers' evaluation pictures are one half, that selection and the report must share."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.cut: list[str] = []
        self.stored_files: set[str] = set()

    def read_source(self, bad_rows: BadRows) -> Iterator[dict]:
        """Examples, from `make_example`, in the source's order."""
        raise NotImplementedError

    def published(self) -> dict[str, int]:
        """The number of pictures in each split of the whole set, where that is known."""
        return {}

    def make_example(self, split: str, file: str, annotations: Path, row: int | None, entries: Iterable[Entry]):
        """The example of picture `file` (below the source), or None where it cannot be used.

        `annotations`, at `row`, is where the picture is named. Bad pictures and boxes are reported there.
        """
        try:
            size = read_image_size(Path(self.source) / file)
        except ValueError as reason:
            self.bad_rows.report(annotations, row, f"{file}: {reason}")
            return None
        good = [(entry, box) for entry in entries if (box := self._fit_box(entry, size, annotations)) is not None]
        return {
            "split": split,
            "file": file,
            "size": np.array(size, np.int32),
            "boxes": np.array([box for _, box in good], np.float32).reshape(-1, 4),
            "label": np.array([entry.label for entry, _ in good], np.int64),
            "ignore": np.array([entry.ignore for entry, _ in good], np.bool_),
        }

    def _fit_box(self, entry: Entry, size: tuple[int, int], annotations: Path) -> np.ndarray | None:
        """The box within its picture; None, and reported, where nothing of it is."""
        box, (height, width) = np.array(entry.box, np.float64), size
        called = f"{entry.name}: " if entry.name else ""
        if not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
            self.bad_rows.report(annotations, entry.row, f"{called}the box {list(entry.box)} has no area")
            return None
        inside = np.clip(box, 0, (width, height, width, height))
        if (inside[2:] <= inside[:2]).any():
            reason = f"{called}the box {list(entry.box)} is outside its {width}x{height} picture"
            self.bad_rows.report(annotations, entry.row, reason)
            return None
        if (inside != box).any():
            self.cut.append(place(annotations, entry.row) + (f", {entry.name}" if entry.name else ""))
        return inside

    def features(self) -> dict[str, tfds.features.FeatureConnector]:
        """The picture's own bytes, where it came from, and its boxes."""
        return {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "file": tfds.features.Text(),
            "size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
            "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
            "label": tfds.features.Sequence(tfds.features.ClassLabel(names=self.class_names)),
            "ignore": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
        }

    def labels_of(self, example: dict) -> Iterable[int]:
        """One a box."""
        return example["label"]

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """BadInput where a split has more pictures than are published; remarks on what each split holds."""
        remarks = [remark for split, some in examples.items() if some for remark in describe(split, some)]
        for split, published in self.published().items():
            found = len(examples[split])
            problem = f"{split} has {found:,} pictures, published are {published:,}"
            if found > published and not self.allow_other_counts:
                remedy = "take the publishers' set, or accept another with --allow_other_counts"
                raise BadInput(self.source, None, problem, remedy)
            if found != published:
                remarks.append(problem)
        if self.cut:
            problem = "boxes reach beyond their picture and were cut at its border"
            remarks.append(f"{len(self.cut):,} {problem}; the first: {self.cut[0]}")
        return remarks

    def encode(self, example: dict) -> dict:
        """The picture's bytes as they are, once they have been decoded to what its header told."""
        encoded = read_encoded(Path(self.source) / example["file"])
        height, width = decode_image(encoded).shape[:2]
        if (height, width) != tuple(example["size"]):
            found = "x".join(map(str, example["size"][::-1]))
            raise ValueError(f"its header tells of {found} pixels, it has {width}x{height}")
        self.stored_files.add(example["file"])
        return {**example, "image": BytesIO(encoded)}

    def write_beside(self, directory: Path) -> None:
        """An index of each split: to know sizes and boxes, no picture need be read through."""
        for split, examples in self.examples.items():
            stored = [example for example in examples if example["file"] in self.stored_files]
            np.savez_compressed(
                index_file(directory, split),
                size=np.stack([example["size"] for example in stored]),
                files=np.array([example["file"] for example in stored]),
                num_boxes=np.array([len(example["boxes"]) for example in stored], np.int32),
                boxes=np.concatenate([example["boxes"] for example in stored]),
                label=np.concatenate([example["label"] for example in stored]).astype(np.int32),
                ignore=np.concatenate([example["ignore"] for example in stored]),
            )

    @classmethod
    def open_split(cls, split: str, data_dir: str | Path) -> "PreparedBoxesSplit":
        """The split as `prepare` wrote it; FileNotFoundError, with the command to run, where it has not."""
        directory = cls.prepared_directory(data_dir)
        return PreparedBoxesSplit(directory, "val" if split == "test" and cls.TEST_IS_VAL else split)


def index_file(directory: Path, split: str) -> Path:
    """Where the index of a split lies."""
    return directory / f"boxes_{split}.npz"


def describe(split: str, examples: Sequence[dict]) -> list[str]:
    """What a user should know about a split before training on it."""
    numbers = np.array([len(example["boxes"]) for example in examples])
    ignored = sum(int(example["ignore"].sum()) for example in examples)
    remarks = [f"{split}: {len(examples):,} pictures, {numbers.sum():,} boxes, at most {numbers.max():,} in a picture"]
    if (numbers == 0).any():
        remarks.append(f"{split}: {(numbers == 0).sum():,} pictures without boxes are kept")
    if ignored:
        remarks.append(f"{split}: {ignored:,} boxes are ignored in evaluation")
    return remarks


class PreparedBoxesSplit:
    """One split of a prepared set of pictures with boxes; it pickles, and reopens its files where it lands.

    `class_names`, and the number of pictures as `len`.
    """

    def __init__(self, directory: str | Path, split: str):
        self._records = Records(directory, split)
        self.class_names: tuple[str, ...] = tuple(self._records.features["label"].feature.names)
        with np.load(index_file(Path(directory), split)) as index:
            self._index = dict(index)
        self._ends = np.cumsum(self._index["num_boxes"])

    def __len__(self) -> int:
        return len(self._records)

    def sizes(self) -> np.ndarray:
        """(height, width) of every picture: int32 [P, 2]."""
        return self._index["size"]

    def box_counts(self) -> np.ndarray:
        """The number of boxes of every picture: int32 [P]."""
        return self._index["num_boxes"]

    def places(self, indices: np.ndarray) -> list[str]:
        """Where in the source each picture is."""
        return self._index["files"][np.asarray(indices, int)].tolist()

    def boxes(self, index: int) -> np.ndarray:
        """The boxes of a picture, float32 [N, 4], without reading it."""
        return self.annotations(index)["boxes"]

    def annotations(self, index: int) -> dict[str, np.ndarray]:
        """boxes float32 [N, 4], label int32 [N] (places in class_names), ignore bool [N]; the picture is not read."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pictures")
        own = slice(self._ends[index] - self._index["num_boxes"][index], self._ends[index])
        return {name: self._index[name][own].copy() for name in ("boxes", "label", "ignore")}

    def read_image(self, index: int) -> dict[str, np.ndarray]:
        """image uint8 [H, W, 3] (RGB, its own size) and what `annotations` gives."""
        annotations = self.annotations(index)
        (record,) = self._records.read(np.array([index]))
        return {"image": decode_image(record["image"].bytes_list.value[0]), **annotations}
