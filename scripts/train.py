"""Train a network, or resume a run: python scripts/train.py --config=configs/fer_vgg.py --workdir=runs/fer_vgg

Any field of the config can be set on the command line: --config.seed=1 --config.total_epochs=10.

Several processes run the same command with one shared workdir. On SLURM, Open MPI, Kubernetes and TPU pods they find
each other; elsewhere each one gets --coordinator_address=HOST:PORT --num_processes=2 --process_id=0 (--helpfull
describes these). scripts/launch/ has templates.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import errno
import sys
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import config_flags

from affect_jax.files import contains
from affect_jax.process import define_process_flags, join_processes, prepare_process

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="configs/NAME.py, or configs/NAME.py:demo", lock_config=True
)
flags.mark_flag_as_required("config")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder. A run in it is resumed. Default: runs/ and the config's name."
)
DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "On a GPU, use deterministic operations: every run gives the same bits, but is slower."
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
PROCESSES = define_process_flags()
AFTER_DEMO = """Next, on FER2013:
  python scripts/prepare_data.py fer2013 --source=PATH/fer2013.csv
  python scripts/train.py --config=configs/fer_vgg.py
or, for a detector, on WIDER FACE:
  python scripts/prepare_data.py widerface --source=PATH
  python scripts/train.py --config=configs/widerface_rcnn.py:two_cores"""


def config_argument() -> str:
    """Return the part after the colon of --config."""
    return config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[2]


def default_workdir() -> Path:
    """Return runs/NAME for configs/NAME.py, runs/NAME_demo for configs/NAME.py:demo."""
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    return Path("runs") / "_".join(filter(None, [Path(file).stem, config_argument()]))


def main(argv):
    command_line.reject_arguments(argv, "set fields as --config.NAME=VALUE")
    from affect_jax.runs.training import train_and_evaluate
    from affect_jax.train.signals import Interrupted

    logging.set_verbosity(logging.FATAL)  # orbax logs every file, and the errors that it raises
    prepare_process(DETERMINISTIC.value)
    workdir = WORKDIR.value or default_workdir()
    command_line.exit_on_interrupt("stopped at once; rerun the command to resume from the newest checkpoint")
    try:
        join_processes(*(flag.value for flag in PROCESSES))
        train_and_evaluate(CONFIG.value, workdir)
        if config_argument() == "demo" and jax.process_index() == 0:
            print(AFTER_DEMO)
    except Interrupted as stopped:
        if jax.process_index() == 0:
            print(stopped, flush=True)
        sys.exit(128 + stopped.signal)
    except FloatingPointError as error:  # the same in every process
        sys.exit(f"FloatingPointError: {error}" if jax.process_index() == 0 else 1)
    except OSError as error:
        if error.errno in DISK_FULL:
            cause = "free disk space"
        elif error.errno in UNWRITABLE and contains(workdir, error.filename or workdir):
            cause = "make the folder writable"
        else:
            raise
        remedy = f"Saved checkpoints are intact: {cause}, then rerun the command to resume."
        sys.exit(f"{type(error).__name__}: {error}. {remedy}")


if __name__ == "__main__":
    command_line.run(main)
