"""Fill in the figures of model files in a model card, README.md, from the metadata of the files.

The text of the card is written by a person. The lines between `<!-- figures of NAME -->` and `<!-- end of figures -->`
are generated from the file NAME. `python -m affect_jax.export.model_card` updates the card of the bundled weights.
"""

import re
import sys
from pathlib import Path

from affect_jax.config import evaluation_buckets
from affect_jax.files import write_atomically
from affect_jax.models.pretrained import named_weights
from affect_jax.runs.model_file import Trained, load_trained
from affect_jax.runs.text import markdown_table

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
    return "\n\n".join([origin(trained), *TABLES[trained.config.task](trained.about["evaluations"])])


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


def classifier_tables(evaluations: dict[str, dict]) -> list[str]:
    """Return tables of accuracy and calibration, of recall and precision per class, and of confidence thresholds.

    The last two are of evaluations without test-time augmentation. Metrics of older versions have no thresholds.
    """
    plain = {name: metrics for name, metrics in evaluations.items() if metrics["tta"] == "none"}
    covered = {name: metrics["coverage"] for name, metrics in plain.items() if "coverage" in metrics}
    tables = [
        markdown_table(
            ("evaluation", "faces", "accuracy (95 % interval)", "macro-F1", "calibration error (ECE)"),
            (
                (name, m["num_examples"], share_with_interval(m, "accuracy"), share(m["macro_f1"]), f"{m['ece']:.3f}")
                for name, m in evaluations.items()
            ),
        )
    ]
    if plain:
        heads = [f"{name}, {what}" for name in plain for what in ("recall", "precision")]
        classes = next(iter(plain.values()))["per_class"]
        rows = (
            (name, *(share(m["per_class"][name][what]) for m in plain.values() for what in ("recall", "precision")))
            for name in classes
        )
        tables.append(markdown_table(("expression", *heads), rows))
    if covered:
        heads = [f"{name}, {what}" for name in covered for what in ("with expression", "accuracy of these")]
        thresholds = next(iter(covered.values()))["confidence"]
        rows = (
            (threshold, *(share(one[what][row]) for one in covered.values() for what in ("coverage", "accuracy")))
            for row, threshold in enumerate(thresholds)
        )
        tables.append(markdown_table(("`--min_confidence`", *heads), rows))
    return tables


def detector_tables(evaluations: dict[str, dict]) -> list[str]:
    """Return tables of average precision and of recall by the height of boxes."""
    heights = list(dict.fromkeys(height for m in evaluations.values() for height in m["recall_by_height"]))
    return [
        markdown_table(
            ("evaluation", "boxes", "AP50 (95 % interval)", "COCO AP", "recall at score 0.5", "precision at score 0.5"),
            (
                (
                    m["split"],
                    m["num_boxes"],
                    share_with_interval(m, "ap50"),
                    *(share(m[name]) for name in ("coco_ap", "recall", "precision")),
                )
                for m in evaluations.values()
            ),
        ),
        markdown_table(
            ("height, recall at score 0.5", *(m["split"] for m in evaluations.values())),
            ((height, *(recall_of(m["recall_by_height"], height) for m in evaluations.values())) for height in heights),
        ),
    ]


def recall_of(groups: dict[str, dict], height: str) -> str:
    """Return recall and number of the boxes of a height; empty if there are none."""
    group = groups.get(height)
    return f"{share(group['recall_at_score_50'])} of {group['boxes']}" if group else ""


def share_with_interval(metrics: dict, name: str) -> str:
    """Return a fraction in percent, with its 95 % interval if the metrics have one."""
    low, high = metrics.get(f"{name}_ci95") or (None, None)
    return share(metrics[name]) + (f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None else "")


def share(value: float) -> str:
    """Return a fraction in percent."""
    return f"{100 * value:.1f} %"


TABLES = {"classification": classifier_tables, "detection": detector_tables}
"""Functions that return the tables of a model, by task."""

if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit("this updates the card of the bundled weights; it has no arguments")
    from affect_jax.predict.reader import BUNDLED_WEIGHTS  # needs PyAV

    update_card(BUNDLED_WEIGHTS / "README.md")
