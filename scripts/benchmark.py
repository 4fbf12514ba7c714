"""Time a config's network: python scripts/benchmark.py --config=configs/fer_vgg.py [OPTIONS]

For a classifier the table has the training step without augmentation, the loop with augmentation and data (resident on
the device, and streamed), evaluation, and prediction of 1 and of 64 images. For a detector it has the step, detection,
the streamed loop and, for one image, NMS of 2,000 boxes, ours and OpenCV's, and RoIAlign of 512 regions. The loop is
compared with the step alone, and evaluation with prediction of 64 images alone. --works measures only the named rows of
the table. A row is printed when it is measured. --compare=torch adds PyTorch (eager, and torch.compile for classifiers)
or torchvision, each in its own process; calls are interleaved.

--scaling=FILE measures, instead, how cost grows: a classifier's step with the batch, the image and the processes,
reading an epoch with the set, and prediction of the bundled networks with the frames. FILE gets the plots.

--profile shows the layers of the step instead, each compiled alone, and the least time that each needs: its operations
at the rate of a large matrix product, or its arrays at the bandwidth of the memory.

"ms/call" is the time of one timed call, which has several steps or predictions for fast works. FLOP are those of plain
convolutions and matrix products, in a step without those of gradients that are not needed. "of peak" is the fraction of
the rate of a large matrix product in the config's dtype; on NVIDIA GPUs float32 means TF32, here and in PyTorch.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import json
import time

from absl import app, flags, logging
from ml_collections import config_flags

from affect_jax.files import check_output, write_atomically

STARTED = time.perf_counter()
CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/NAME.py", lock_config=True)
flags.mark_flag_as_required("config")
COMPARE = flags.DEFINE_enum("compare", "none", ("none", "torch"), "Also time the same network in this framework.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed calls of each work; the table shows the median.", 1)
WORKS = flags.DEFINE_list("works", None, "Measure these works only, for example step,predict_64.")
PROFILE = flags.DEFINE_bool("profile", False, "Time the parts of the training step instead.")
SCALING = flags.DEFINE_string("scaling", None, "Measure how cost grows, and plot it to this image file.")
OUT = flags.DEFINE_string("out", None, "Write the rows to this file as JSON.")


def main(argv):
    command_line.reject_arguments(argv, "set fields as --config.NAME=VALUE")
    alone = bool(PROFILE.value) + bool(SCALING.value)
    if alone + bool(COMPARE.value != "none" or WORKS.value) > 1:
        raise app.UsageError("--profile, --scaling, and --compare with --works, are three measurements; choose one")
    for flag in (SCALING, OUT):
        if flag.value:
            check_output(flag.name, flag.value)
    from affect_jax.benchmark.profile import format_profile, profile_rows
    from affect_jax.benchmark.timing import format_header, format_row
    from affect_jax.benchmark.training import benchmark
    from affect_jax.process import prepare_process

    logging.set_verbosity(logging.ERROR)
    prepare_process()
    print(f"imports: {time.perf_counter() - STARTED:.1f} s", flush=True)
    if PROFILE.value:
        rows, peak = profile_rows(CONFIG.value, ROUNDS.value)
        print(format_profile(rows, peak))
        write(rows)
    elif SCALING.value:
        from affect_jax.benchmark.scaling import check_plot, format_curve, plot_curves, scaling_curves  # PyAV

        check_plot(SCALING.value)
        curves = []
        for curve in scaling_curves(CONFIG.value, ROUNDS.value):
            curves.append(curve)
            print(format_curve(curve), flush=True)
            write([curve._asdict() for curve in curves])
        plot_curves(curves).savefig(SCALING.value, dpi=100)
    else:
        rows = []
        for row in benchmark(CONFIG.value, COMPARE.value == "torch", ROUNDS.value, WORKS.value or ()):
            print(format_row(row) if rows else f"{format_header()}\n{format_row(row)}", flush=True)
            rows.append(row)
            write(rows)


def write(rows):
    if OUT.value:
        write_atomically(OUT.value, json.dumps(rows, indent=2))


if __name__ == "__main__":
    command_line.run(main)
