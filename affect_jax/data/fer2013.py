"""FER2013: 35,887 faces of 48x48 gray pixels in seven classes, of the ICML 2013 challenge (Goodfellow et al., 2013).

Accepted sources: the challenge's `fer2013.csv`, its later form `icml_face_data.csv` (other column order, spaces in
the header), also compressed (.gz, .zip, .tar.gz) or in a folder, or folders `train|validation|test/<class>/*`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from affect_jax import labels
from affect_jax.data.faces import to_channels
from affect_jax.data.images import read_image
from affect_jax.data.prepared_faces import FacesBuilder
from affect_jax.data.source import BadInput, BadRows
from affect_jax.data.source_files import describe_others, find_csv, list_images, read_rows, subfolders

IMAGE_SIZE = (48, 48)
NUM_PIXELS = 48 * 48

USAGES = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
FOLDERS = {"train": "train", "validation": "val", "test": "test"}
CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
ARCHIVE = "fer2013.tar.gz"
"""The archive of the challenge with fer2013.csv."""

CLASS_COUNTS = {
    "train": dict(zip(labels.FER2013, (3995, 436, 4097, 7215, 4830, 3171, 4965), strict=True)),
    "val": dict(zip(labels.FER2013, (467, 56, 496, 895, 653, 415, 607), strict=True)),
    "test": dict(zip(labels.FER2013, (491, 55, 528, 879, 594, 416, 626), strict=True)),
}

# Looking up the text of a pixel is as fast as converting it, and accepts only the 256 values.
_PIXELS = {str(value): value for value in range(256)}
_LABELS = {str(label): label for label in range(len(labels.FER2013))}


class Face(NamedTuple):
    """One example: image uint8 [48, 48], label in the order of labels.FER2013, its split and its origin."""

    image: np.ndarray
    label: int
    split: str
    file: str
    row: int


def find_faces(source: str | Path) -> Path:
    """Return the CSV file of the challenge in the folder `source`, or `source` itself."""
    source = Path(source)
    return (source.is_dir() and find_csv(source, (*CSV_NAMES, ARCHIVE))) or source


def read_csv(path: str | Path, bad_rows: BadRows) -> Iterator[Face | None]:
    """Return one Face for every data row of the challenge's file, None for a skipped bad row."""
    path = find_faces(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the fer2013.csv of the challenge")
    for row, fields in read_rows(path, CSV_NAMES, ("emotion", "pixels", "Usage"), bad_rows):
        face = None
        if fields is not None:
            try:
                face = _parse_face(*fields, path.name, row)
            except ValueError as reason:
                bad_rows.report(path, row, str(reason))
        yield face


def _parse_face(emotion: str, pixels: str, usage: str, file: str, row: int) -> Face:
    """Parse one face; ValueError with only the reason if a field is not valid."""
    if emotion not in _LABELS:
        raise ValueError(f"emotion is {emotion!r}, not 0 to {len(_LABELS) - 1}")
    if usage not in USAGES:
        raise ValueError(f"Usage is {usage!r}, not one of {', '.join(USAGES)}")
    values = pixels.split()
    if len(values) != NUM_PIXELS:
        raise ValueError(f"{len(values):,} pixels instead of {NUM_PIXELS:,}")
    try:
        image = bytes(map(_PIXELS.__getitem__, values))
    except KeyError as error:
        number = values.index(error.args[0]) + 1
        raise ValueError(f"pixel {number:,} is {error.args[0]!r}, not an integer from 0 to 255") from None
    return Face(np.frombuffer(image, np.uint8).reshape(IMAGE_SIZE), _LABELS[emotion], USAGES[usage], file, row)


def read_folder(
    source: Path, bad_rows: BadRows, others: dict[Path, str], note: Callable[[Path, str], None]
) -> Iterator[Face]:
    """Read the faces of a folder in the order of its sorted names; add files that are not images to `others`.

    `note` is called with the path and a remark on an unusual file.
    """
    absent = [name for name in FOLDERS if not (source / name).is_dir()]
    if absent:
        raise BadInput(
            source,
            None,
            f"no {CSV_NAMES[0]} and no folder {', '.join(absent)}",
            "the layout is train|validation|test/<class>/*.png|jpg, validation PublicTest and test PrivateTest "
            "(a copy without validation has merged the two: use fer2013.csv of the challenge)",
        )
    for name, split in FOLDERS.items():
        for folder in subfolders(source / name):
            if folder.name not in labels.FER2013:
                raise BadInput(folder, None, "not a class of FER2013", f"classes are {', '.join(labels.FER2013)}")
            label = labels.FER2013.index(folder.name)
            listing = list_images(folder)
            others.update(listing.others)
            for path in listing.images:
                try:
                    image = to_channels(read_image(path, partial(note, path)), 1)
                    if image.shape != IMAGE_SIZE:
                        raise ValueError(f"{image.shape[0]}x{image.shape[1]} pixels instead of 48x48")
                except ValueError as reason:
                    bad_rows.report(path, None, str(reason))
                    continue
                yield Face(image, label, split, path.relative_to(source).as_posix(), 0)


class Fer2013(FacesBuilder):
    """FER2013 with its original labels; PublicTest is val, PrivateTest is test."""

    CLASS_NAMES = labels.FER2013
    DESCRIPTION = (
        "FER2013, 48x48 gray faces in seven classes (Goodfellow et al., 2013); val PublicTest, test PrivateTest."
    )
    LICENCE = "FER2013: no open licence; data of the ICML 2013 challenge, for research"

    def read_source(self) -> Iterator[dict]:
        """Read every face: a CSV file in its order, or a folder in the order of its sorted names."""
        source, self.others = find_faces(self.source), {}
        if source.is_dir():
            faces = read_folder(source, self.bad_rows, self.others, self.note)
        else:
            faces = filter(None, read_csv(source, self.bad_rows))
        for face in faces:
            yield face._asdict()

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """Compare with the published counts."""
        differences = count_differences(self.source, counts, CLASS_COUNTS, skipped=len(self.bad_rows.skipped))
        return [*self.accept_counts(differences), *describe_others(Path(self.source), self.others)]


def count_differences(
    file: str | Path, counts: Mapping[str, Counter], published: Mapping[str, Mapping[str, int]], skipped: int = 0
) -> list[str]:
    """Return the differences of counts by split and class from the published counts.

    As many examples may be missing as rows were skipped; none may be surplus. BadInput if val and test are swapped,
    because a model would be selected on the split that is reported.
    """
    halves = {half: Counter(published[half]) for half in ("val", "test")}
    if all(
        counts[half] <= halves[other] and not counts[half] <= halves[half]
        for half, other in (("val", "test"), ("test", "val"))
    ):
        raise BadInput(
            file,
            None,
            "the halves are swapped: val has PrivateTest's class counts and test has PublicTest's",
            "name PublicTest validation and PrivateTest test",
        )
    missing = {split: Counter(classes) for split, classes in published.items()}
    for split, classes in counts.items():
        missing[split].subtract(classes)
    shortfalls = [count for classes in missing.values() for count in classes.values()]
    if min(shortfalls) >= 0 and sum(shortfalls) <= skipped:
        return []
    return [
        f"{split} has {sum(counts[split].values()):,} faces, the published set has {sum(published[split].values()):,} ("
        + ", ".join(
            f"{name} {counts[split][name]:,} instead of {published[split][name]:,}" for name in classes if classes[name]
        )
        + ")"
        for split, classes in missing.items()
        if any(classes.values())
    ]
