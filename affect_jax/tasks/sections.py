"""Sections of a report page: a task fills them with metrics, figures and images, and affect_jax.runs.page renders them.

All texts are plain text, without markup.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Metrics = Mapping[str, Any]
"""The metrics of one evaluation, as in metrics.json."""


class Note(NamedTuple):
    """A remark, in small type."""

    text: str


class Table(NamedTuple):
    """A table whose first column names the rows."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: Literal["numbers", "words"] = "numbers"
    """Alignment of the cells: right for numbers, left for words."""
    marks: Mapping[str, Any] | None = None
    """Marks before the names of rows: name -> an object with a `color` and a `glyph`, such as a run's style."""


class Definitions(NamedTuple):
    """Names and their values."""

    values: Mapping[str, str]


class Figure(NamedTuple):
    """A matplotlib figure."""

    figure: Any
    name: str
    """File name without extension, for figures that are also saved."""


class Image(NamedTuple):
    """An image with a caption."""

    pixels: np.ndarray
    """uint8 [H, W, 1 or 3], RGB."""
    caption: str = ""
    source: str = ""
    """Origin of the image, shown after the caption in small type."""


class Images(NamedTuple):
    """A grid of images."""

    images: Sequence[Image]
    kind: Literal["faces", "photos", "sheet"]
    """Small faces, enlarged without smoothing; photos, compressed as JPEG; or one sheet as wide as the page."""


class Details(NamedTuple):
    """A long text that is shown on request."""

    text: str


Block = Note | Table | Definitions | Figure | Images | Details


class Section(NamedTuple):
    """A heading with blocks."""

    title: str
    blocks: Sequence[Block]
    evaluation: str = ""
    """Name of the evaluation that the section is about, if it is about a single one."""
    level: int = 2
    """1 for a part of the page, 2 for a section, 3 for a subsection."""


class Column(NamedTuple):
    """A column of a table of metrics."""

    title: str
    text: Callable[[Metrics], str]
    """Return the text of a cell: "" if the metrics lack the value."""
    note: str = ""
    """Meaning of the column, if the title is not enough."""


class Breakdown(NamedTuple):
    """A table of the parts of an evaluation, such as its classes."""

    heading: str
    """Title of the column of the parts' names."""
    parts: Callable[[Metrics], Mapping[str, Metrics]]
    """Return the metrics of each part by its name: none if an evaluation has no such parts."""
    columns: Sequence[Column]
    note: str = ""


class Presentation(NamedTuple):
    """The way a task's metrics are shown: on the pages of its runs, in a terminal and on model cards."""

    columns: Sequence[Column]
    """Columns of a table of evaluations. The first two are the score and its 95 % interval."""
    breakdowns: Sequence[Breakdown]
    """Tables of the parts of one evaluation."""
    curves_note: str
    """Explanation of the learning curves of one run."""
    score_titles: Mapping[str, str]
    """Metrics of val that learning curves can show, with their titles. Runs are compared by the first."""
    paired_columns: Sequence[Column]
    """Columns for the task's paired test of two runs, in addition to the difference and its interval."""
    paired_note: str
    """Explanation of the paired test."""
    images: Callable[[Metrics], tuple[str, Hashable]]
    """Describe the images of an evaluation: a text, and a key. Runs with equal text and key are compared."""

    @property
    def score(self) -> str:
        """Name of the metric that runs are compared by."""
        return next(iter(self.score_titles))


def number_column(title: str, name: str, spec: str, note: str = "") -> Column:
    """Return a column of the metric `name`, formatted by `spec`."""
    return Column(title, lambda metrics: format(metrics[name], spec) if name in metrics else "", note)


def interval_column(name: str) -> Column:
    """Return a column of the 95 % interval `name`, [low, high] as shares."""
    return Column("95 % interval", lambda metrics: " to ".join(f"{end:.2%}" for end in metrics.get(name, ())))


def filled_columns(columns: Sequence[Column], evaluations: Sequence[Metrics]) -> list[Column]:
    """Return the columns that have a value in at least one of the evaluations."""
    return [column for column in columns if any(column.text(metrics) for metrics in evaluations)]


def metrics_table(
    heading: str, evaluations: Mapping[str, Metrics], columns: Sequence[Column], marks: Mapping[str, Any] | None = None
) -> Table:
    """Return a table of evaluations, one row each; `heading` is the title of the column of their names."""
    columns = filled_columns(columns, list(evaluations.values()))
    rows = [[name, *(column.text(metrics) or "–" for column in columns)] for name, metrics in evaluations.items()]
    return Table([heading, *(column.title for column in columns)], rows, marks=marks)


def breakdown_blocks(metrics: Metrics, breakdowns: Sequence[Breakdown]) -> list[Note | Table]:
    """Return the tables of the parts of an evaluation, each after its note."""
    blocks = []
    for one in breakdowns:
        if parts := one.parts(metrics):
            blocks += [Note(one.note)] if one.note else []
            blocks.append(metrics_table(one.heading, parts, one.columns))
    return blocks


def columns_note(columns: Sequence[Column], evaluations: Sequence[Metrics]) -> Note:
    """Return the meaning of the columns that metrics_table shows for these evaluations."""
    notes = [f"{one.title}: {one.note}." for one in filled_columns(columns, evaluations) if one.note]
    return Note(" ".join(notes))


def score_text(metrics: Metrics, columns: Sequence[Column]) -> str:
    """Return the score of an evaluation with its 95 % interval, such as "66.01% (64.44% to 67.54%)"."""
    score, interval = (column.text(metrics) for column in columns[:2])
    return f"{score} ({interval})" if interval else score
