"""Prepare a data set once: python scripts/prepare_data.py fer2013 --source=PATH/fer2013.csv

The first argument is a data set: affectnet, coco_json, darkface, fer2013, ferplus, folder or widerface. The options
below name the data sets that they are for.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import math
import runpy
import shlex
import sys
from collections import defaultdict
from inspect import signature
from pathlib import Path

from absl import app, flags, logging

from affect_jax.data import DATASETS, find_dataset

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEFINE = {
    bool: flags.DEFINE_bool,
    float: flags.DEFINE_float,
    int: flags.DEFINE_integer,
    str: flags.DEFINE_string,
}

SOURCE = flags.DEFINE_string("source", None, "The file of the publishers, or a folder.")
DATA_DIR = flags.DEFINE_string("data_dir", "data", "The folder of prepared data sets.")
ON_BAD_ROW = flags.DEFINE_enum("on_bad_row", "fail", ("fail", "skip"), "Stop at the first bad row, or skip bad rows.")
ALLOW_OTHER_COUNTS = flags.DEFINE_bool(
    "allow_other_counts", False, "Accept a source whose counts differ from the published counts."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a data set that is already prepared.")


def define_options() -> list[flags.FlagHolder]:
    """Define one flag for each name among the options of all data sets; the defaults are those of the builders."""
    found = defaultdict(list)
    for dataset in map(find_dataset, DATASETS):
        for option in getattr(dataset, "OPTIONS", ()):
            default = signature(dataset).parameters[option.name].default
            note = "" if default is None else f" (default: {default})"
            found[option.name, option.type].append(f"{dataset.name}: {option.help}{note}")
    return [DEFINE[kind](name, None, "; ".join(texts)) for (name, kind), texts in found.items()]


OPTIONS = define_options()


def main(argv):
    if len(argv) != 2:
        raise app.UsageError(f"give one data set of {', '.join(DATASETS)}, then --source=PATH")
    if SOURCE.value is None:
        raise app.UsageError("give the source: --source=PATH")

    logging.set_verbosity(logging.ERROR)  # tfds logs every step
    options = {flag.name: flag.value for flag in OPTIONS if flag.value is not None}
    dataset = find_dataset(argv[1])
    if not hasattr(dataset, "prepare"):
        sys.exit(f"{argv[1]} needs no preparation")
    known = [option.name for option in dataset.OPTIONS]
    if others := set(options) - set(known):
        names = ", ".join(f"--{name}" for name in known) or "none"
        raise ValueError(f"{argv[1]} has no option --{', --'.join(sorted(others))}; its options are: {names}")
    with command_line.interruptible():
        done = dataset.prepare(
            DATA_DIR.value,
            overwrite=OVERWRITE.value,
            source=SOURCE.value,
            on_bad_row=ON_BAD_ROW.value,
            allow_other_counts=ALLOW_OTHER_COUNTS.value,
            **options,
        )
    print_summary(done)
    print(f"{argv[1]} is in {done.directory}")
    print(f"next: {train_command(argv[1], done.config, sum(done.counts['train'].values()))}")


def print_summary(done):
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
        print(f"{len(done.skipped):,} bad rows skipped:")
        for error in done.skipped[:10]:
            print(f"  {place(error.file, error.row)}: {error.reason}")


def train_command(dataset: str, first_config: str, num_images: int) -> str:
    """Return the command that trains `first_config`, NAME or NAME:VARIANT, on the `num_images` images of the data set.

    Fields are set where the config has other values, and the batch size if the config's is larger than the set.
    """
    name, colon, variant = first_config.partition(":")
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant)
    wanted = {"name": dataset, "data_dir": DATA_DIR.value}
    fields = "".join(
        f"--config.data.{field}={shlex.quote(value)} " for field, value in wanted.items() if config.data[field] != value
    )
    if config.batch_size > num_images:
        fields += f"--config.batch_size={2 ** int(math.log2(max(1, num_images // 4)))} "
    model = name.split("_")[1] if "_" in name else name
    return (
        f"python scripts/train.py --config=configs/{name}.py{colon}{variant} {fields}--workdir=runs/{dataset}_{model}"
    )


if __name__ == "__main__":
    command_line.run(main)
