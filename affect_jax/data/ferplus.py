"""FER+: the faces of FER2013, each labelled again by ten people, in eight classes (Barsoum et al., 2016).

Row i of Microsoft's `fer2013new.csv` has the votes for row i of the challenge's `fer2013.csv`.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from affect_jax import labels
from affect_jax.data.fer2013 import USAGES, Face, count_differences, read_csv
from affect_jax.data.prepared import Option
from affect_jax.data.prepared_faces import FacesBuilder
from affect_jax.data.source import BadInput, BadRows
from affect_jax.data.source_files import find_csv, read_rows

VOTES_NAME = "fer2013new.csv"
VOTE_COLUMNS = (
    *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "NF"),
)
"""The ten vote columns of the file: the classes in the order of labels.FERPLUS, then `unknown` and `NF` (no face)."""

# Counts after the official rule was applied to the published votes.
CLASS_COUNTS = {
    "train": dict(zip(labels.FERPLUS, (8740, 7287, 3149, 3014, 2100, 119, 532, 119), strict=True)),
    "val": dict(zip(labels.FERPLUS, (1182, 865, 415, 351, 287, 24, 62, 13), strict=True)),
    "test": dict(zip(labels.FERPLUS, (1090, 893, 396, 384, 273, 18, 83, 16), strict=True)),
}


class VoteRow(NamedTuple):
    """One row of the votes: counts int32 [10] in the order of VOTE_COLUMNS, its split and its row in the file."""

    counts: np.ndarray
    split: str
    row: int


def majority_label(counts: np.ndarray) -> int | None:
    """Return the class with the majority of ten votes by the official rule, or None if the rule drops the face.

    Single votes are outliers and removed. The leader needs more than half of the remaining votes, and must be
    a class, not `unknown` or `NF` (github.com/microsoft/FERPlus, mode "majority").
    """
    kept = without_outliers(counts)
    leader = int(kept.argmax())
    return leader if leader < len(labels.FERPLUS) and 2 * kept[leader] > kept.sum() else None


def soft_votes(counts: np.ndarray) -> np.ndarray:
    """Return the votes as a distribution over the classes, float32 [8], without single votes, `unknown` and `NF`."""
    kept = without_outliers(counts)[: len(labels.FERPLUS)].astype(np.float32)
    return kept / kept.sum()


def without_outliers(counts: np.ndarray) -> np.ndarray:
    """Return the counts with every single vote set to zero."""
    return np.where(counts > 1, counts, 0)


def read_votes(path: str | Path, bad_rows: BadRows) -> Iterator[VoteRow | None]:
    """Return one VoteRow for every data row of fer2013new.csv, None for a skipped bad row."""
    path = Path(path)
    path = (path.is_dir() and find_csv(path, (VOTES_NAME,))) or path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give {VOTES_NAME} of FER+ (github.com/microsoft/FERPlus)")
    for row, fields in read_rows(path, (VOTES_NAME,), ("Usage", "Image name", *VOTE_COLUMNS), bad_rows):
        votes = None
        if fields is not None:
            try:
                votes = _parse_votes(fields, row)
            except ValueError as reason:
                bad_rows.report(path, row, str(reason))
        yield votes


def _parse_votes(fields: list[str], row: int) -> VoteRow:
    usage, _, *counts = fields
    if usage not in USAGES:
        raise ValueError(f"Usage is {usage!r}, not one of {', '.join(USAGES)}")
    for name, count in zip(VOTE_COLUMNS, counts, strict=True):
        if not (count.isascii() and count.isdigit() and int(count) <= 10):
            raise ValueError(f"{name} has {count!r} votes, not 0 to 10")
    return VoteRow(np.array(counts, np.int32), USAGES[usage], row)


class Ferplus(FacesBuilder):
    """FER+ labels by the official majority rule, and the votes; PublicTest is val, PrivateTest is test.

    `votes` is the path of fer2013new.csv, `source` the CSV file of the challenge. Rows are matched by their order.
    """

    OPTIONS = (Option("votes", str, "path of fer2013new.csv"),)
    CLASS_NAMES = labels.FERPLUS
    DESCRIPTION = (
        "FER+, eight classes by majority of ten votes (Barsoum et al., 2016); val PublicTest, test PrivateTest."
    )
    CONFIG = "ferplus_vgg"
    LICENCE = "FER+: labels under MIT; the faces are FER2013's: no open licence, for research"

    def __init__(self, *, votes: str | Path | None = None, **kwargs):
        self.votes = votes
        super().__init__(**kwargs)

    def extra_features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Return the features of the ten published counts and of the distribution over the classes."""
        return {
            "vote_counts": tfds.features.Tensor(shape=(len(VOTE_COLUMNS),), dtype=np.int32),
            "votes": tfds.features.Tensor(shape=(len(labels.FERPLUS),), dtype=np.float32),
        }

    def read_source(self) -> Iterator[dict]:
        """Read the faces that have a majority label."""
        if self.votes is None:
            raise ValueError("FER+ also needs the votes; give --votes=PATH of fer2013new.csv")
        self.num_dropped = 0
        for face, votes in self._pairs():
            label = majority_label(votes.counts)
            if label is None:
                self.num_dropped += 1
                continue
            extra = {"vote_counts": votes.counts, "votes": soft_votes(votes.counts)}
            yield {**face._replace(label=label)._asdict(), **extra}

    def _pairs(self) -> Iterator[tuple[Face, VoteRow]]:
        remedy = "use both published files, complete and in their original order"
        faces, rows_of_votes = read_csv(self.source, self.bad_rows), read_votes(self.votes, self.bad_rows)
        for number, (face, votes) in enumerate(zip_longest(faces, rows_of_votes, fillvalue=False)):
            if face is False or votes is False:
                short, long = (self.source, self.votes) if face is False else (self.votes, self.source)
                raise BadInput(short, number + 2, f"the file ends after {number:,} rows, {long} has more", remedy)
            if face is None or votes is None:
                continue
            if face.split != votes.split:
                usages = {split: usage for usage, split in USAGES.items()}
                reason = f"Usage is {usages[votes.split]}, but {usages[face.split]} in {self.source}, row {face.row}"
                raise BadInput(self.votes, votes.row, reason, remedy)
            yield face, votes

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """Compare with the counts after the rule; always report how many faces the rule dropped."""
        differences = count_differences(self.source, counts, CLASS_COUNTS, skipped=len(self.bad_rows.skipped))
        dropped = f"{self.num_dropped:,} faces without a majority class are dropped by the FER+ rule"
        return [dropped, *self.accept_counts(differences)]

    @classmethod
    def prepare_command(cls, data_dir: str | Path) -> str:
        """Return the command that prepares this data set."""
        return f"{super().prepare_command(data_dir)} --votes=PATH"
