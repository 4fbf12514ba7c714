"""Fill in the figures of model files in a model card, README.md, from the metadata of the files.

The text of the card is written by a person. The lines between `<!-- figures of NAME -->` and `<!-- end of figures -->`
are generated from the file NAME. `python -m affect_jax.export.model_card` updates the card of the bundled weights.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from affect_jax.config import evaluation_buckets
from affect_jax.files import write_atomically
from affect_jax.models.pretrained import named_weights
from affect_jax.runs.model_file import Trained, load_trained
from affect_jax.runs.text import markdown_table
from affect_jax.tasks import TASKS
from affect_jax.tasks.sections import Metrics, Note, Presentation, Table, columns_note, filled_columns, metrics_table

BLOCK = re.compile(r"(<!-- figures of (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def update_card(card: str | Path) -> None:
    """Update the generated lines of a card from the model files in its folder."""
    card = Path(card)
    write_atomically(card, with_figures(card.read_text(encoding="utf-8"), card.parent))


def with_figures(text: str, folder: Path) -> str:
    """Return the text with the figures of the files in `folder`; FileNotFoundError if a file is missing."""
    return BLOCK.sub(lambda block: f"{block[1]}{figures(load_trained(folder / block[2]))}\n{block[3]}", text)


def figures(trained: Trained) -> str:
    """Return a description and the evaluations of a model in Markdown."""
    presentation = TASKS[trained.config.task].presentation
    return "\n\n".join([origin(trained), *tables(trained.about["evaluations"], presentation)])


def origin(trained: Trained) -> str:
    """Return a list with the network and the run that trained it."""
    about, environment = trained.about, trained.about["environment"]
    values = sum(value.size for value in named_weights(trained.variables).values())
    sizes = [trained.data.image_shape] if trained.data.image_shape else evaluation_buckets(trained.config)
    input_size = " or ".join("x".join(map(str, size)) for size in sizes)
    facts = {
        "Network": f"{trained.config.model.name}, {values:,} values in float16, input size {input_size}",
        "Classes": ", ".join(trained.data.class_names),
        "Run": f"checkpoint {about['step']} of {about['source']} on {trained.config.data.name},"
        f" seed {trained.config.seed}",
        "Command": f"`{environment['command']}`",
        "Commit": environment["commit"],
        "Hardware": environment["devices"],
        "Licence": about["licence"],
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def tables(evaluations: Mapping[str, Metrics], presentation: Presentation) -> list[str]:
    """Return tables of evaluations in Markdown, with their notes: all metrics, then each metric of their parts.

    A table of a metric of parts, such as the recall of classes, has a row per evaluation and a column per part.
    """
    columns = presentation.columns
    blocks = [metrics_table("Evaluation", evaluations, columns), columns_note(columns, list(evaluations.values()))]
    for one in presentation.breakdowns:
        found = {name: one.parts(metrics) for name, metrics in evaluations.items()}
        parts = list(dict.fromkeys(part for parts in found.values() for part in parts))
        blocks += [Note(one.note)] if parts and one.note else []
        for column in filled_columns(one.columns, [metrics for parts in found.values() for metrics in parts.values()]):
            rows = [[name, *(column.text(of.get(part, {})) or "–" for part in parts)] for name, of in found.items()]
            blocks.append(Table([column.title, *parts], rows))
    return [block.text if isinstance(block, Note) else markdown_table(block.heads, block.rows) for block in blocks]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit("this updates the card of the bundled weights; it has no arguments")
    from affect_jax.predict.reader import BUNDLED_WEIGHTS  # needs PyAV

    update_card(BUNDLED_WEIGHTS / "README.md")
