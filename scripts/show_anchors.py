"""Show how many boxes the anchors of a config cover: python scripts/show_anchors.py --config=configs/darkface_rcnn.py

Prints, by height of the boxes in images of the evaluation size, the share of boxes that have an anchor with an IoU of
at least 0.5 and 0.7. A box below the RPN's threshold is only matched to its best anchor.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

from absl import flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/NAME.py", lock_config=True)
flags.mark_flag_as_required("config")
SPLIT = flags.DEFINE_enum("split", "train", ("train", "val"), "The split of the boxes.")


def main(argv):
    command_line.reject_arguments(argv, "set config fields with --config.NAME=VALUE")
    from affect_jax.config_checks import validate
    from affect_jax.tasks import build_task
    from affect_jax.tasks.detection import anchor_coverage

    logging.set_verbosity(logging.ERROR)  # tfds logs every file
    validate(CONFIG.value)
    if CONFIG.value.model.name != "faster_rcnn":
        raise ValueError(f"{CONFIG.value.model.name} has no anchors; give a config of faster_rcnn")
    groups = anchor_coverage(CONFIG.value, build_task(CONFIG.value).open_split(SPLIT.value))
    print(f"anchors {CONFIG.value.model.anchor_sizes} x {CONFIG.value.model.aspect_ratios}")
    print(f"{'height':>18} {'boxes':>8} {'IoU 0.5':>9} {'IoU 0.7':>9} {'mean best':>10}")
    for name, row in groups.items():
        print(f"{name:>18} {row['boxes']:8} {row['at_50']:9.1%} {row['at_70']:9.1%} {row['mean_best']:10.2f}")


if __name__ == "__main__":
    command_line.run(main)
