"""Which boxes the anchors of a config cover: python scripts/show_anchors.py --config=configs/darkface_rcnn.py

Prints, by the boxes' height in whole pictures as evaluation sees them, what share of a split's boxes some anchor covers
at IoU 0.5 and at 0.7. An uncovered box teaches the region proposal network only by its best anchor.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/NAME.py", lock_config=True)
SPLIT = flags.DEFINE_enum("split", "train", ("train", "val"), "The split whose boxes to look at.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Fields are set as --config.NAME=VALUE")
    if CONFIG.value is None:
        raise app.UsageError("which config? For example --config=configs/widerface_rcnn.py")
    from affect_jax.config import validate
    from affect_jax.tasks import build_task
    from affect_jax.tasks.detection import anchor_coverage

    logging.set_verbosity(logging.ERROR)  # tfds tells of every file
    try:
        validate(CONFIG.value)
        groups = anchor_coverage(CONFIG.value, build_task(CONFIG.value).open_split(SPLIT.value))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"anchors {CONFIG.value.model.anchor_sizes} x {CONFIG.value.model.aspect_ratios}")
    print(f"{'height':>18} {'boxes':>8} {'IoU 0.5':>9} {'IoU 0.7':>9} {'mean best':>10}")
    for name, row in groups.items():
        print(f"{name:>18} {row['boxes']:8} {row['at_50']:9.1%} {row['at_70']:9.1%} {row['mean_best']:10.2f}")


if __name__ == "__main__":
    app.run(main)
