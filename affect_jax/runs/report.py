"""The page of one run, report.html: metrics, protocol, learning curves, and the sections of the run's task."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from affect_jax.files import whole_file
from affect_jax.runs import figures
from affect_jax.runs.page import write_page
from affect_jax.tasks.sections import (
    Definitions,
    Details,
    Figure,
    Metrics,
    Note,
    Presentation,
    Section,
    columns_note,
    metrics_table,
)


def write_report(
    path: str | Path,
    *,
    title: str,
    protocol: Mapping[str, str],
    history: Sequence[Mapping[str, float]],
    evaluations: Mapping[str, Metrics],
    presentation: Presentation,
    sections: Sequence[Section],
    config: Mapping,
    environment: Mapping[str, str],
) -> None:
    """Write the page of a run.

    history: the records of metrics.jsonl. evaluations: the metrics of metrics.json by name, with "checkpoint_step".
    presentation and sections: the task's.
    """
    content = [
        opening_section(protocol, evaluations, presentation),
        *curves_sections(history, evaluations, presentation),
        *sections,
        *(
            Section(name, [Details(json.dumps(values, indent=2))])
            for name, values in (("Config", config), ("Environment", environment))
        ),
    ]
    write_page(path, title, content)


def opening_section(
    protocol: Mapping[str, str], evaluations: Mapping[str, Metrics], presentation: Presentation
) -> Section:
    """Return the table of evaluations and the protocol."""
    blocks = [Definitions(protocol)]
    if evaluations:
        table = metrics_table("Evaluation", evaluations, presentation.columns)
        blocks = [table, columns_note(presentation.columns, list(evaluations.values())), *blocks]
    return Section("", blocks)


def curves_sections(
    history: Sequence[Mapping[str, float]], evaluations: Mapping[str, Metrics], presentation: Presentation
) -> list[Section]:
    """Return a section of learning curves, or no section if nothing is recorded yet."""
    if not history:
        return []
    # an evaluation may be of an earlier checkpoint, which was the best one then
    selected_step = max((metrics["checkpoint_step"] for metrics in evaluations.values()), default=None)
    score = presentation.score
    curves = figures.learning_curves(history, selected_step, score, presentation.score_titles[score])
    return [Section("Learning curves", [Figure(curves, "learning_curves"), Note(presentation.curves_note)])]


def save_figures(folder: Path, sections: Sequence[Section], evaluation: str) -> None:
    """Save the figures of an evaluation, and those of all evaluations together, as PNG files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        if section.evaluation in ("", evaluation):
            for block in section.blocks:
                if isinstance(block, Figure):
                    name = "_".join(filter(None, (section.evaluation, block.name)))
                    with whole_file(folder / f"{name}.png") as file:
                        block.figure.savefig(file, format="png", dpi=120)
