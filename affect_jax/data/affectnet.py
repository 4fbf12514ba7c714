"""AffectNet: web faces in eight classes, with valence and arousal (Mollahosseini et al. 2017, arXiv:1708.03985).

Two layouts of the publishers are accepted: `train_set|val_set/images/ID.jpg` with
`annotations/ID_{exp,val,aro,lnd}.npy`, which has cropped faces; and the older layout of `training.csv`,
`validation.csv` and folders of whole images.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from affect_jax import labels
from affect_jax.data.faces import crop_box, fit
from affect_jax.data.images import read_image
from affect_jax.data.prepared import Option
from affect_jax.data.prepared_faces import FacesBuilder
from affect_jax.data.source import BadInput
from affect_jax.data.source_files import describe_others, find_csv, list_images, read_rows

NO_EXPRESSION = ("none", "uncertain", "non-face")
"""`expression` 8 to 10."""

NPY_FOLDERS = {"train_set": "train", "val_set": "test"}
CSV_FILES = {"training.csv": "train", "validation.csv": "test"}
IMAGE_FOLDERS = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images", ".")
COLUMNS = (
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
    *("expression", "valence", "arousal"),
)

TRAINING_COUNTS = dict(zip(labels.AFFECTNET, (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750), strict=True))
VALIDATION_COUNT = 500
"""Images of each class; the layout with .npy files has 499 of contempt."""


class Affectnet(FacesBuilder):
    """AffectNet's manually annotated faces, in 8 classes or 7 (without contempt), RGB squares of `image_size` pixels.

    The validation set of the publishers is `test`, as in published results. `val`, for selection, has `val_per_class`
    faces of each class of the training set; a checksum of their names chooses them, so they are the same on every
    machine. `margin` is the growth of the older layout's face boxes, as a fraction of their side. Images labelled none,
    uncertain or non-face are left out and counted.
    """

    OPTIONS = (
        Option("image_size", int, "side of the prepared images in pixels"),
        Option("num_classes", int, "8, or 7 without contempt"),
        Option("margin", float, "growth of the face boxes, as a fraction of their side"),
        Option("val_per_class", int, "images of each class moved from training to val"),
    )
    DESCRIPTION = "AffectNet, faces in eight or seven classes with valence and arousal (Mollahosseini et al., 2017)."
    CONFIG = "affectnet_mobilenet"
    LICENCE = "AffectNet: for research only, under an agreement with its publishers"

    def __init__(
        self,
        *,
        image_size: int = 112,
        num_classes: int = 8,
        margin: float = 0.1,
        val_per_class: int = 250,
        **kwargs,
    ):
        if num_classes not in (7, 8):
            raise ValueError(f"num_classes is {num_classes}; AffectNet has 8, or 7 without contempt")
        if image_size < 8:
            raise ValueError(f"image_size is {image_size}; a face needs at least 8 pixels")
        if not 0 <= margin <= 1:
            raise ValueError(f"margin is {margin}; must be between 0 and 1")
        if val_per_class < 1:
            raise ValueError(f"val_per_class is {val_per_class}; must be at least 1")
        self.size, self.margin, self.val_per_class = image_size, margin, val_per_class
        self.names = labels.AFFECTNET[:num_classes]
        super().__init__(**kwargs)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the publishers."""
        return self.names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the prepared images: square, in color."""
        return (self.size, self.size, 3)

    def extra_features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Return the feature of valence and arousal, each in [-1, 1]."""
        return {"valence_arousal": tfds.features.Tensor(shape=(2,), dtype=np.float32)}

    def read_source(self) -> Iterator[dict]:
        """Read every face with an expression."""
        source = Path(self.source)
        self.left_out, self.source_counts, self.others = Counter(), {"train": Counter(), "test": Counter()}, {}
        if all((source / name).is_dir() for name in NPY_FOLDERS):
            rows = self._read_npy(source)
        elif source.is_dir() and all(find_csv(source, (name,)) for name in CSV_FILES):
            rows = self._read_csv(source)
        else:
            raise BadInput(
                source,
                None,
                "not one of the two layouts of AffectNet",
                "give a folder with train_set/ and val_set/, or with training.csv, validation.csv and the images",
            )
        examples = []
        for label, example in rows:
            if label >= len(self.names):
                self.left_out[(labels.AFFECTNET + NO_EXPRESSION)[label]] += 1
                continue
            self.source_counts[example["split"]][self.names[label]] += 1
            examples.append({**example, "label": label})
        yield from self._with_val(examples)

    def _with_val(self, examples: list[dict]) -> Iterator[dict]:
        """Move `val_per_class` examples of each class from train to val: those with the lowest checksums."""
        names = {  # rows are those of training.csv, whatever folder it is in
            index: f"{'training.csv' if example['row'] else example['file']} {example['row']}"
            for index, example in enumerate(examples)
            if example["split"] == "train"
        }
        taken = Counter()
        for index in sorted(names, key=lambda index: zlib.crc32(names[index].encode())):
            label = examples[index]["label"]
            if taken[label] < self.val_per_class:
                taken[label] += 1
                examples[index]["split"] = "val"
        yield from examples

    def _read_npy(self, source: Path) -> Iterator[tuple[int, dict]]:
        for folder, split in NPY_FOLDERS.items():
            if not (source / folder / "images").is_dir():
                raise BadInput(source / folder, None, "no folder images", "unpack the complete archive")
            listing = list_images(source / folder / "images")
            self.others.update(listing.others)
            if not listing.images:
                raise BadInput(source / folder / "images", None, "no images", "unpack the complete archive")
            for path in sorted(listing.images, key=lambda path: (len(path.stem), path.stem)):
                annotations = source / folder / "annotations"
                try:
                    numbers = (_read_number(annotations / f"{path.stem}_{name}.npy") for name in ("exp", "val", "aro"))
                    label, valence_arousal = parse_target(*numbers)
                except ValueError as reason:
                    self.bad_rows.report(path, None, str(reason))
                    continue
                image = partial(read_face, path, None, 0.0, self.size, self.note)
                origin = {"split": split, "file": path.relative_to(source).as_posix(), "row": 0}
                yield label, {**origin, "image": image, "valence_arousal": valence_arousal}

    def _read_csv(self, source: Path) -> Iterator[tuple[int, dict]]:
        root = next(source / name for name in IMAGE_FOLDERS if (source / name).is_dir())
        for name, split in CSV_FILES.items():
            file = find_csv(source, (name,))
            for row, fields in read_rows(file, (name,), COLUMNS, self.bad_rows):
                if fields is None:
                    continue
                path, *box, expression, valence, arousal = fields
                try:
                    label, valence_arousal = parse_target(expression, valence, arousal)
                    box = parse_box(*box)
                except ValueError as reason:
                    self.bad_rows.report(file, row, str(reason))
                    continue
                if label < len(labels.AFFECTNET) and box is None:
                    self.bad_rows.report(file, row, "no face box")
                    continue
                image = partial(read_face, root / path, box, self.margin, self.size, self.note)
                origin = {"split": split, "file": file.relative_to(source).as_posix(), "row": row}
                yield label, {**origin, "image": image, "valence_arousal": valence_arousal}

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """Compare with the published counts, before val was taken from train; always report what was left out."""
        remarks = [f"{count:,} faces left out: {name}" for name, count in sorted(self.left_out.items())]
        remarks += describe_others(Path(self.source), self.others)
        train = {name: TRAINING_COUNTS[name] for name in self.names}
        missing = Counter(train)
        missing.subtract(self.source_counts["train"])
        test_is_whole = all(
            VALIDATION_COUNT - 1 <= self.source_counts["test"][name] <= VALIDATION_COUNT for name in self.names
        )
        if test_is_whole and min(missing.values()) >= 0 and sum(missing.values()) <= len(self.bad_rows.skipped):
            return remarks
        found = ", ".join(
            f"{name} {self.source_counts['train'][name]:,} instead of {train[name]:,} and"
            f" {self.source_counts['test'][name]} instead of {VALIDATION_COUNT}"
            for name in self.names
        )
        problem = f"training and validation counts differ from the published counts: {found}"
        return [*remarks, *self.accept_counts([problem])]


def parse_target(expression: str, valence: str, arousal: str) -> tuple[int, np.ndarray]:
    """Parse expression 0 to 10 and [valence, arousal] float32; ValueError with only the reason if not valid.

    Both values are -2 where there is no expression.
    """
    if not (expression.isascii() and expression.isdigit() and int(expression) < len(labels.AFFECTNET + NO_EXPRESSION)):
        raise ValueError(f"expression is {expression!r}, not 0 to 10")
    try:
        values = np.array([valence, arousal], np.float32)
    except ValueError:
        raise ValueError(f"valence {valence!r} and arousal {arousal!r} are not numbers") from None
    if int(expression) < len(labels.AFFECTNET) and not (np.abs(values) <= 1).all():
        raise ValueError(f"valence {valence} and arousal {arousal} are not between -1 and 1")
    return int(expression), values


def parse_box(x: str, y: str, width: str, height: str) -> tuple[float, float, float, float] | None:
    """Parse a box to [x1, y1, x2, y2], None where the file has NULL; ValueError with only the reason if not valid."""
    if "NULL" in (x, y, width, height):
        return None
    try:
        left, top, across, down = (float(value) for value in (x, y, width, height))
    except ValueError:
        raise ValueError(f"the face box is {[x, y, width, height]}, not four numbers") from None
    if not (across > 0 and down > 0 and np.isfinite([left, top, across, down]).all()):
        raise ValueError(f"the face box at {x}, {y} is {width} wide and {height} high")
    return (left, top, left + across, top + down)


def _read_number(path: Path) -> str:
    """Return the single value of a .npy file as text; the publishers store text, some copies store numbers."""
    try:
        with path.open("rb") as file:
            values = [str(value) for value in np.lib.format.read_array(file, allow_pickle=False).reshape(-1)[:2]]
    except FileNotFoundError:
        raise ValueError(f"no {path.name}") from None
    except Exception as reason:  # NumPy parses the header as Python, and has no error class for it
        raise ValueError(f"{path.name} cannot be read ({reason})") from None
    if len(values) != 1:
        raise ValueError(f"{path.name} holds {'no value' if not values else 'several values'} instead of one")
    return values[0]


def read_face(
    path: Path,
    box: tuple[float, float, float, float] | None,
    margin: float,
    size: int,
    note: Callable[[Path, str], None],
) -> np.ndarray:
    """Read the face in `box`, or the whole image, as RGB [size, size, 3]; ValueError if it cannot be read.

    `note` is called with the path and a remark on an unusual file.
    """
    try:
        image = read_image(path, partial(note, path))
    except ValueError as reason:
        raise ValueError(f"{path}: {reason}") from None
    return fit(image if box is None else crop_box(image, box, margin), (size, size))
