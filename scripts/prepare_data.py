"""Prepare a data set, once: python scripts/prepare_data.py fer2013 --source=PATH/fer2013.csv

FER+ takes its votes too: python scripts/prepare_data.py ferplus --source=PATH/fer2013.csv --votes=PATH/fer2013new.csv
"""

import sys

from absl import app, flags, logging

SOURCE = flags.DEFINE_string("source", None, "The publishers' file, or a folder train|validation|test/<class>/*.png.")
VOTES = flags.DEFINE_string("votes", None, "FER+ only: fer2013new.csv.")
DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where prepared sets lie.")
ON_BAD_ROW = flags.DEFINE_enum(
    "on_bad_row", "fail", ("fail", "skip"), "Stop at the first bad row, or leave such rows out."
)
ALLOW_OTHER_COUNTS = flags.DEFINE_bool(
    "allow_other_counts", False, "Take a source whose counts are not the published ones."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a set that is prepared already.")


def main(argv):
    from affect_jax.data import DATASETS, find_dataset

    if len(argv) != 2:
        raise app.UsageError(f"which data set? One of {', '.join(DATASETS)}, then --source=PATH")
    if SOURCE.value is None:
        raise app.UsageError("what is it prepared from? Give --source=PATH")
    if VOTES.value and argv[1] != "ferplus":
        raise app.UsageError(f"--votes belongs to ferplus, not to {argv[1]}")
    logging.set_verbosity(logging.ERROR)  # tfds tells of every step
    options = {"votes": VOTES.value} if VOTES.value else {}
    try:
        dataset = find_dataset(argv[1])
        if not hasattr(dataset, "prepare"):
            sys.exit(f"{argv[1]} needs no preparation")
        done = dataset.prepare(
            DATA_DIR.value,
            overwrite=OVERWRITE.value,
            source=SOURCE.value,
            on_bad_row=ON_BAD_ROW.value,
            allow_other_counts=ALLOW_OTHER_COUNTS.value,
            **options,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print_summary(argv[1], done)


def print_summary(name: str, done):
    splits = list(done.counts)
    print(f"{'':10}" + "".join(f"{split:>8}" for split in splits))
    for class_name in done.counts["train"]:
        print(f"{class_name:10}" + "".join(f"{done.counts[split][class_name]:8,}" for split in splits))
    print(f"{'all':10}" + "".join(f"{sum(done.counts[split].values()):8,}" for split in splits))
    for remark in done.remarks:
        print(remark)
    if done.skipped:
        print(f"{len(done.skipped):,} bad rows left out:")
        for error in done.skipped[:10]:
            print(f"  {error.file}, row {error.row}: {error.reason}")
    print(f"{name} is in {done.directory}")
    print(f"next: python scripts/train.py --config=configs/fer_vgg.py {train_flags(name)}--workdir=runs/{name}_vgg")


def train_flags(name: str) -> str:
    """What the training command needs where the set or its folder is not the config's own."""
    set_flag = "" if name == "fer2013" else f"--config.data.name={name} "
    return set_flag + ("" if DATA_DIR.value == DATA_DIR.default else f"--config.data.data_dir={DATA_DIR.value} ")


if __name__ == "__main__":
    app.run(main)
