"""Train configs one after another with several seeds, and write one table of mean and spread:

    python scripts/sweep.py --workdir=runs/heads --seeds=0,1,2 --split=val \
        --run="C3 = configs/fer_mobilenet.py" --run="C4 = configs/fer_mobilenet.py --config.model.attach=C4"

What is done is not done again, and what was stopped goes on: the same command adds seeds or runs. Two runs on the same
pictures are compared by scripts/report.py.
"""

import shlex
import sys
from pathlib import Path

from absl import app, flags

RUN = flags.DEFINE_multi_string(
    "run", None, "NAME = configs/FILE.py and any further --config.FIELD=VALUE.", required=True
)
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds, by commas.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the runs, WORKDIR/NAME/seedN, and of sweep.md.", required=True
)
MARKS = flags.DEFINE_list("marks", [], "Also show the seconds of training to these accuracies on val, %, by commas.")
SPLIT = flags.DEFINE_enum("split", "val", ("val", "test"), "What the table shows; choose by val, report test once.")


def parse_run(text: str) -> tuple[str, list[str]]:
    """Name and arguments for scripts/train.py."""
    name, separator, command = text.partition("=")
    config, *fields = shlex.split(command) or [""]
    if not separator or not name.strip() or not config:
        raise app.UsageError(f"--run={text!r} is not NAME = configs/FILE.py")
    return name.strip(), [f"--config={config}", *fields]


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Fields are set within --run")
    from affect_jax.runs.sweep import run_sweep

    runs = [parse_run(text) for text in RUN.value]
    if len({name for name, _ in runs}) < len(runs):
        raise app.UsageError("two runs have one name")
    try:
        seeds = [int(seed) for seed in SEEDS.value]
        marks = [float(mark) / 100 for mark in MARKS.value]
        print(run_sweep(dict(runs), seeds, WORKDIR.value, SPLIT.value, Path(__file__).parent, marks))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    app.run(main)
