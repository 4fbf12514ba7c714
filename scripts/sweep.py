"""Train configs one after another with several seeds, and write a table of mean and spread:

    python scripts/sweep.py --workdir=runs/smoothing --seeds=0,1,2 --split=val \\
        --run="none = configs/fer_vgg.py" --run="smoothed = configs/fer_vgg.py --config.label_smoothing=0.1"

Finished runs are skipped and stopped runs resumed: rerun the command to add seeds or runs. scripts/report.py compares
two runs on the same images.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import shlex
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

RUN = flags.DEFINE_multi_string(
    "run", None, "NAME = configs/FILE.py and any further --config.FIELD=VALUE.", required=True
)
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds, separated by commas.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the runs, WORKDIR/NAME/seedN, and of sweep.md.", required=True
)
MARKS = flags.DEFINE_list("marks", [], "Also show the seconds of training to these accuracies on val, in percent.")
SPLIT = flags.DEFINE_enum("split", "val", ("val", "test"), "Split of the table; choose by val, report test once.")


def parse_run(text: str) -> tuple[str, list[str]]:
    """Return the name of a run and its arguments for scripts/train.py."""
    name, separator, command = text.partition("=")
    config, *fields = shlex.split(command) or [""]
    if not separator or not name.strip() or not config:
        raise app.UsageError(f"--run={text!r} is not NAME = configs/FILE.py")
    if wrong := [field for field in fields if not field.startswith("--config.") and field != "--deterministic"]:
        raise app.UsageError(f"--run={text!r}: {wrong[0]!r} is not --config.FIELD=VALUE")
    if any(field.startswith("--config.seed") for field in fields):
        raise app.UsageError(f"--run={text!r}: give the seeds of all runs by --seeds")
    return name.strip(), [f"--config={config}", *fields]


def check_run(name: str, arguments: list[str]) -> str:
    """Return the task of a run; ValueError if its config cannot be read or is not valid: before hours of other runs."""
    from affect_jax.config_checks import validate

    values, argv = flags.FlagValues(), sys.argv
    sys.argv = ["train.py", *(a for a in arguments if a.startswith("--config"))]  # ml_collections reads fields there
    try:
        config = config_flags.DEFINE_config_file("config", flag_values=values)
        command_line.parse_flags(sys.argv, values)
    except SystemExit as error:
        raise ValueError(f"--run {name}: {error}") from None
    finally:
        sys.argv = argv
    try:
        validate(config.value)
    except ValueError as error:
        raise ValueError(f"--run {name}: {error}") from None
    return config.value.task


def main(argv):
    command_line.reject_arguments(argv, "set fields within --run")
    from affect_jax.runs.sweep import run_sweep

    runs = [parse_run(text) for text in RUN.value]
    if len({name for name, _ in runs}) < len(runs):
        raise app.UsageError("two runs have the same name")
    if not SEEDS.value or not all(seed.strip().isdecimal() for seed in SEEDS.value):
        raise ValueError(f"--seeds={','.join(SEEDS.value)}; give whole numbers, such as 0,1,2")
    seeds = [int(seed) for seed in SEEDS.value]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds={','.join(SEEDS.value)} has a seed twice")
    try:
        marks = [float(mark) / 100 for mark in MARKS.value]
    except ValueError:
        raise ValueError(f"--marks={','.join(MARKS.value)}; give percentages, such as 68,70") from None
    if len({check_run(*run) for run in runs}) > 1:
        raise ValueError("a sweep compares classifiers or detectors, not both; use two sweeps")
    print(run_sweep(dict(runs), seeds, WORKDIR.value, SPLIT.value, Path(__file__).parent, marks))


if __name__ == "__main__":
    command_line.run(main)
