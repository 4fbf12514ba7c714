"""Prepare a data set, once: python scripts/prepare_data.py fer2013 --source=PATH/fer2013.csv

    python scripts/prepare_data.py ferplus --source=PATH/fer2013.csv --votes=PATH/fer2013new.csv
    python scripts/prepare_data.py affectnet --source=PATH [--num_classes=7]
    python scripts/prepare_data.py folder --source=DIR --identity='(person[0-9]+)' [--image_size=48] [--channels=1]
    python scripts/prepare_data.py darkface --source=PATH [--as_split=val]
    python scripts/prepare_data.py widerface --source=PATH
    python scripts/prepare_data.py coco_json --source=JSONS

DIR holds <class>/* or <split>/<class>/*, pictures of any size and kind; JSONS train.json and val.json, in COCO's form,
and the pictures that they name.
"""

import sys

from absl import app, flags, logging

SOURCE = flags.DEFINE_string("source", None, "The publishers' file, or a folder.")
DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where prepared sets lie.")
ON_BAD_ROW = flags.DEFINE_enum(
    "on_bad_row", "fail", ("fail", "skip"), "Stop at the first bad row, or leave such rows out."
)
ALLOW_OTHER_COUNTS = flags.DEFINE_bool(
    "allow_other_counts", False, "Take a source whose counts are not the published ones."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a set that is prepared already.")
# Of some sets only; a set's own default holds where none is given.
SET_OPTIONS = {
    holder.name: holder
    for holder in (
        flags.DEFINE_string("votes", None, "ferplus: fer2013new.csv."),
        flags.DEFINE_integer("image_size", None, "affectnet, folder: side of the prepared pictures, in pixels."),
        flags.DEFINE_integer("channels", None, "folder: 1 for gray, 3 for color."),
        flags.DEFINE_integer("num_classes", None, "affectnet: 8, or 7 without contempt."),
        flags.DEFINE_float("margin", None, "affectnet: what face boxes are grown by, a fraction of their side."),
        flags.DEFINE_integer("val_per_class", None, "affectnet: faces of each class taken from training as val."),
        flags.DEFINE_string("identity", None, "folder: regex whose first group names the person in a picture's path."),
        flags.DEFINE_float("val_share", None, "folder: fraction of the pictures that is drawn as val."),
        flags.DEFINE_float("test_share", None, "folder: fraction of the pictures that is drawn as test."),
        flags.DEFINE_integer("split_seed", None, "folder: of that drawing."),
        flags.DEFINE_string("as_split", None, "darkface: the one split, train or val, that all pictures go to."),
    )
}


def main(argv):
    from affect_jax.data import DATASETS, find_dataset

    if len(argv) != 2:
        raise app.UsageError(f"which data set? One of {', '.join(DATASETS)}, then --source=PATH")
    if SOURCE.value is None:
        raise app.UsageError("what is it prepared from? Give --source=PATH")
    logging.set_verbosity(logging.ERROR)  # tfds tells of every step
    options = {name: holder.value for name, holder in SET_OPTIONS.items() if holder.value is not None}
    try:
        dataset = find_dataset(argv[1])
        if not hasattr(dataset, "prepare"):
            sys.exit(f"{argv[1]} needs no preparation")
        if others := set(options) - set(dataset.OPTIONS):
            known = ", ".join(f"--{name}" for name in dataset.OPTIONS) or "none"
            raise ValueError(f"{argv[1]} has no option --{', --'.join(sorted(others))}; of its own it has {known}")
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
    print_summary(argv[1], dataset.CONFIG, done)


def print_summary(name: str, config: str, done):
    from affect_jax.data.source import place

    splits = list(done.counts)
    width = 2 + max(map(len, done.counts["train"]))
    print(f"{'':{width}}" + "".join(f"{split:>8}" for split in splits))
    for class_name in done.counts["train"]:
        print(f"{class_name:{width}}" + "".join(f"{done.counts[split][class_name]:8,}" for split in splits))
    print(f"{'all':{width}}" + "".join(f"{sum(done.counts[split].values()):8,}" for split in splits))
    for remark in done.remarks:
        print(remark)
    if done.skipped:
        print(f"{len(done.skipped):,} bad rows left out:")
        for error in done.skipped[:10]:
            print(f"  {place(error.file, error.row)}: {error.reason}")
    print(f"{name} is in {done.directory}")
    model = config.split("_")[1]
    print(
        f"next: python scripts/train.py --config=configs/{config}.py {train_flags(name)}--workdir=runs/{name}_{model}"
    )


def train_flags(name: str) -> str:
    """What the training command needs where the set or its folder is not the config's own."""
    set_flag = "" if name in ("fer2013", "darkface", "widerface") else f"--config.data.name={name} "
    return set_flag + ("" if DATA_DIR.value == DATA_DIR.default else f"--config.data.data_dir={DATA_DIR.value} ")


if __name__ == "__main__":
    app.run(main)
