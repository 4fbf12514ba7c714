"""The figures of model files in a card, README.md, as the files' own metadata has them: they cannot drift apart.

A person writes the card; in it `<!-- figures of NAME -->` and `<!-- end of figures -->` hold the lines of NAME's file.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from affect_jax.files import write_atomically
from affect_jax.models.pretrained import named_weights
from affect_jax.runs.model_file import Trained, read

BLOCK = re.compile(r"(<!-- figures of (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def update_card(card: str | Path) -> None:
    """Fill the card's blocks from the model files beside it."""
    card = Path(card)
    write_atomically(card, with_figures(card.read_text(encoding="utf-8"), card.parent))


def with_figures(text: str, folder: Path) -> str:
    """The card with the figures of each block's file, in `folder`; FileNotFoundError where one is not there."""
    return BLOCK.sub(lambda block: f"{block[1]}{figures(read(folder / block[2]))}\n{block[3]}", text)


def figures(trained: Trained) -> str:
    """What a network is and how it was evaluated, in Markdown."""
    tables = {"classification": classifier_tables, "detection": detector_tables}[trained.config.task]
    return "\n\n".join([origin(trained), *tables(trained.about["evaluations"])])


def origin(trained: Trained) -> str:
    """The network, and the run that it comes from."""
    about, environment = trained.about, trained.about["environment"]
    values = sum(value.size for value in named_weights(trained.variables).values())
    data = trained.config.data
    sizes = [trained.data.image_shape] if trained.data.image_shape else data.eval_buckets or data.buckets
    seen = " or ".join("x".join(map(str, size)) for size in sizes)
    return (
        f"{trained.config.model.name}, {values:,} values in float16; sees pictures brought to {seen}, and names"
        f" {', '.join(trained.data.class_names)}."
        f" Checkpoint {about['step']} of the run {about['source']} on {trained.config.data.name}, seed"
        f" {trained.config.seed}: `{environment['command']}` at {environment['commit']}, {environment['devices']}."
        f" Licence: {about['licence']}."
    )


def classifier_tables(evaluations: dict[str, dict]) -> list[str]:
    """Accuracy and calibration; recall and precision of each class; what a threshold buys."""
    plain = {name: metrics for name, metrics in evaluations.items() if metrics["tta"] == "none"}
    heads = [f"{name}, {what}" for name in plain for what in ("recall", "precision")]
    parts = [f"{name}, {what}" for name in plain for what in ("named", "right of these")]
    first = next(iter(plain.values()))
    return [
        table(
            ("evaluation", "faces", "accuracy (95 % interval)", "macro-F1", "calibration error (ECE)"),
            (
                (name, m["num_examples"], share_with_interval(m, "accuracy"), share(m["macro_f1"]), f"{m['ece']:.3f}")
                for name, m in evaluations.items()
            ),
        ),
        table(
            ("expression", *heads),
            (
                (name, *(share(m["per_class"][name][what]) for m in plain.values() for what in ("recall", "precision")))
                for name in first["per_class"]
            ),
        ),
        table(
            ("`--min_confidence`", *parts),
            (
                (least, *(share(m["coverage"][w][place]) for m in plain.values() for w in ("coverage", "accuracy")))
                for place, least in enumerate(first["coverage"]["confidence"])
            ),
        ),
    ]


def detector_tables(evaluations: dict[str, dict]) -> list[str]:
    """Average precision, and recall by the height of faces."""
    heights = list(dict.fromkeys(height for m in evaluations.values() for height in m["recall_by_height"]))
    return [
        table(
            ("evaluation", "faces", "AP50 (95 % interval)", "COCO AP", "found at score 0.5", "right of these"),
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
        table(
            ("height, found at score 0.5", *(m["split"] for m in evaluations.values())),
            ((height, *(found_of(m["recall_by_height"], height) for m in evaluations.values())) for height in heights),
        ),
    ]


def found_of(groups: dict[str, dict], height: str) -> str:
    """The share of the faces of a height, and how many there are; nothing where there are none."""
    group = groups.get(height)
    return f"{share(group['recall_at_score_50'])} of {group['boxes']}" if group else ""


def share_with_interval(metrics: dict, name: str) -> str:
    """A share and its 95 % interval, where it has one."""
    low, high = metrics.get(f"{name}_ci95") or (None, None)
    return share(metrics[name]) + (f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None else "")


def share(value: float) -> str:
    """In percent."""
    return f"{100 * value:.1f} %"


def table(heads: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (heads, ["---"] * len(heads), *rows))
