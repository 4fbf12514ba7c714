"""List copies, conflicting labels and constant images of a data set: python scripts/audit_data.py fer2013

Images of val or test that are also in train make results too high.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import json

from absl import app, flags, logging

DATA_DIR = flags.DEFINE_string("data_dir", "data", "The folder of prepared data sets.")
OUT = flags.DEFINE_string("out", None, "JSON file for the complete result.")
EXAMPLES = flags.DEFINE_integer("examples", 3, "Number of examples of each kind to print.", lower_bound=0)
NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", None, "Images of a split, for a generated data set such as drawn_faces."
)


def main(argv):
    from affect_jax.data import DATASETS, open_splits
    from affect_jax.data.audit import audit
    from affect_jax.files import check_output, write_atomically

    if len(argv) != 2:
        raise app.UsageError(f"give one data set of {', '.join(DATASETS)}")
    if OUT.value:
        check_output("out", OUT.value)  # before the audit, which takes long
    logging.set_verbosity(logging.ERROR)
    options = {"num_examples": NUM_EXAMPLES.value} if NUM_EXAMPLES.value else {}
    found = audit(open_splits(argv[1], DATA_DIR.value, **options))
    print_table(found)
    print_examples(found)
    if OUT.value:
        write_atomically(OUT.value, json.dumps({"dataset": argv[1], **found}, indent=1))
        print(f"the complete result is in {OUT.value}")


def print_table(found: dict):
    summary = found["summary"]

    def row(title: str, cells: list):
        print(f"{title:38}" + "".join(f"{cell:>9,}" if isinstance(cell, int) else f"{cell:>9}" for cell in cells))

    row("split", list(found["num_images"]))
    row("images in total", list(found["num_images"].values()))
    for other in summary:
        row(f"identical to an image of {other}", [summary[split]["identical_to"][other] for split in summary])
    for other in summary:
        row(
            f"nearly identical to an image of {other}",
            [summary[split]["nearly_identical_to"].get(other, "") for split in summary],
        )
    row("identical with different labels", [summary[split]["conflicting_labels"] for split in summary])
    row("constant", [summary[split]["constant"] for split in summary])
    for split in [name for name in summary if name != "train" and "train" in summary]:
        copies = summary[split]["identical_to"]["train"] + summary[split]["nearly_identical_to"]["train"]
        print(f"{copies / found['num_images'][split]:.1%} of {split} is also in train")


def print_examples(found: dict):
    kinds = {
        "different labels": found["conflicting_labels"],
        "identical across splits": [
            group for group in found["identical"] if len({image["split"] for image in group}) > 1
        ],
        "nearly identical": [pair["images"] for pair in found["nearly_identical"]],
        "constant": [[image] for image in found["constant"]],
    }
    for title, groups in kinds.items():
        for group in groups[: EXAMPLES.value]:
            print(
                f"{title}: " + " = ".join(f"{image['source']} ({image['split']}, {image['label']})" for image in group)
            )


if __name__ == "__main__":
    command_line.run(main)
