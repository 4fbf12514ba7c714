"""Metrics as plain text, for the terminal, and tables in Markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence

from affect_jax.tasks.sections import Metrics, Presentation, Table, breakdown_blocks, metrics_table


def describe_evaluation(metrics: Metrics, presentation: Presentation) -> str:
    """Return the images, all metrics and the tables of one evaluation."""
    images, _ = presentation.images(metrics)
    values = ((column.title, column.text(metrics)) for column in presentation.columns)
    lines = [images, *(f"  {title:16} {text}" for title, text in values if text)]
    tables = [block for block in breakdown_blocks(metrics, presentation.breakdowns) if isinstance(block, Table)]
    return "\n".join([*lines, *map(format_table, tables)])


def compare_evaluations(evaluations: Mapping[str, Metrics], presentation: Presentation) -> str:
    """Return a table of evaluations of the same images, one row each."""
    return format_table(metrics_table("", evaluations, presentation.columns))


def format_table(table: Table) -> str:
    """Return a table with aligned columns: names on the left, values on the right."""
    rows = [list(table.heads), *map(list, table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.heads))]

    lines = []
    for name, *values in rows:
        cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join(["", name.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def format_epochs(done: float, total: float | None = None) -> str:
    """Return the epochs that are done, rounded down: "2.1 of 20"."""
    text = f"{math.floor(10 * done + 1e-6) / 10:g}"
    return text if total is None else f"{text} of {total:g}"


def markdown_table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown, without a newline at its end."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (heads, ["---"] * len(heads), *rows))
