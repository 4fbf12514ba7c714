"""Time a config's network: python scripts/benchmark.py --config=configs/fer_vgg.py [--compare=torch] [--out=FILE]

Prints a table of the bare step (no augmentation), the whole loop (augmentation and data included) with the set on the
device and streamed, evaluation, and prediction of one image and of 64. --compare=torch adds the same step and
prediction in PyTorch, eager and compiled (torch.compile's default mode), each in a process of its own, all in turn.
FILE gets the rows as JSON. FLOP are those of plain convolutions and matrix products, also where fewer are done; a step
counts three times forward. The share of the peak is that of the rate of a large product in the config's dtype; on
NVIDIA's GPUs float32 means TF32, here and in PyTorch.

Of a detector: step, detection and the streamed loop; beside them one picture's NMS of 2,000 boxes, by us and by OpenCV,
and one picture's RoIAlign of 512 regions. --compare=torch adds torchvision's, as far as its operators can be loaded.
"""

import json
import shutil
import sys
import time
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

STARTED = time.perf_counter()
CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/NAME.py", lock_config=True)
COMPARE = flags.DEFINE_enum("compare", "none", ("none", "torch"), "Also time the same network in this framework.")
OUT = flags.DEFINE_string("out", None, "Write the rows to this file as JSON.")
LOOP_WINDOW = 5
"""Updates that are timed together, where one takes long against the clock."""
PREDICTED = {1: 100, 64: 10}
"""Images of a call -> calls that are timed together, long enough for the threads of whoever came before to rest."""
ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed calls of each work; the table shows their median.")


def torch_twins(config) -> dict:
    """The config's network in PyTorch, by implementation; none without --compare=torch."""
    from affect_jax.benchmark import torch_twin
    from affect_jax.tasks import build_task

    if COMPARE.value != "torch":
        return {}
    name = config.model.name
    if name not in torch_twin.NETWORKS:
        raise ValueError(f"--compare=torch knows {' or '.join(torch_twin.NETWORKS)}; set one in the config")
    split = build_task(config).open_split("train")
    options = {key: value for key, value in config.model.items() if key != "name"}
    network = name, split.image_shape, len(split.class_names), options, config.dtype
    twins = {"torch_eager": torch_twin.Twin(*network, compiled=False)}
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        print("no torch_compile: it needs a C++ compiler, and neither g++ nor clang++ is on the PATH", flush=True)
    else:
        twins["torch_compile"] = torch_twin.Twin(*network, compiled=True)
    return twins


def torch_optimizer(config):
    from affect_jax.benchmark.torch_twin import Optimizer

    optim = config.optim
    return Optimizer(optim.name, optim.learning_rate, optim.momentum, optim.weight_decay, optim.nesterov)


def measure(config) -> list[dict]:
    import jax
    import jax.numpy as jnp

    from affect_jax.benchmark import steps as benchmark

    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"{devices}: imports and set-up {time.perf_counter() - STARTED:.1f} s", flush=True)
    rows = (measure_detector if config.task == "detection" else measure_classifier)(config)
    peak = benchmark.matmul_peak(jnp.dtype(config.dtype))
    print(f"{devices}: {peak / 1e9:.0f} GFLOP/s in {config.dtype} products", flush=True)
    for row in rows:
        row["share_of_peak"] = row["flop_per_second"] / peak
    return rows


def measure_classifier(config) -> list[dict]:
    import jax

    from affect_jax.benchmark import steps as benchmark
    from affect_jax.benchmark import torch_twin
    from affect_jax.tasks import build_task

    flop = benchmark.forward_flop(config)
    on_cpu = jax.default_backend() == "cpu"
    updates, window = (1, LOOP_WINDOW) if on_cpu else (50, 500)  # that dispatch and the clock weigh little
    split = build_task(config).open_split("train")
    twins = torch_twins(config)

    def noise(size: int) -> dict:
        return benchmark.noise_batch(size, split.image_shape, len(split.class_names))

    def in_turn(work: str, ours, make_theirs, theirs: tuple, images: int, flop: float) -> list[dict]:
        works = {name: torch_twin.start(name, make_theirs, twin, *theirs) for name, twin in twins.items()}
        return rows_in_turn(work, {"affect_jax": ours, **works}, images, flop)

    batch = config.batch_size
    theirs = torch_optimizer(config), noise(batch), updates
    step = timed_step(config, noise(batch), updates)
    rows = in_turn("step", step, torch_twin.step_work, theirs, updates * batch, 3 * flop)
    print_peak_memory()
    for size, calls in PREDICTED.items():
        theirs = noise(size)["image"], calls
        ours = benchmark.predict_work(config, *theirs)
        rows += in_turn(f"predict_{size}", ours, torch_twin.predict_work, theirs, calls * size, flop)
    evaluate, images = benchmark.evaluate_work(config, batches=4)
    seconds = benchmark.seconds_in_turn({"evaluate": evaluate}, max(3, ROUNDS.value // 3))["evaluate"]
    rows.append(benchmark.row("evaluate", "affect_jax", images, seconds, flop))
    for data_input in ("resident", "stream"):
        seconds = benchmark.loop_seconds(config, data_input, ROUNDS.value, window)
        rows.append(benchmark.row(f"loop_{data_input}", "affect_jax", window * batch, seconds, 3 * flop))
    return rows


def measure_detector(config) -> list[dict]:
    from affect_jax.benchmark import detector as detector_benchmark
    from affect_jax.benchmark import steps as benchmark

    batch, flop, pictures = detector_benchmark.first_batch(config), benchmark.forward_flop(config), config.batch_size
    steps = {"affect_jax": timed_step(config, batch, 1)}
    forwards = {"affect_jax": detector_benchmark.forward_work(config, batch)}
    regions = detector_benchmark.roi_align_inputs(config)
    aligns = {name: {"affect_jax": work} for name, work in detector_benchmark.roi_align_works(config, *regions).items()}
    if COMPARE.value == "torch":
        theirs = torchvision_works(config, batch, regions)
        for name, works in (("step", steps), ("forward", forwards)):
            works["torch_eager"] = theirs[name]
        for name, works in aligns.items():
            works["torchvision"] = theirs[f"roi_align_{name}"]
    rows = rows_in_turn("step", steps, pictures, 3 * flop)
    print_peak_memory()
    rows += rows_in_turn("forward", forwards, pictures, flop)
    seconds = benchmark.loop_seconds(config, "stream", ROUNDS.value, LOOP_WINDOW)
    rows.append(benchmark.row("loop_stream", "affect_jax", LOOP_WINDOW * pictures, seconds, 3 * flop))
    for name, work in detector_benchmark.parts_of_step(config).items():
        rows += rows_in_turn(f"{name}_of_step", {"affect_jax": work}, pictures, 0.0)
    rows += rows_in_turn(f"nms_{detector_benchmark.NMS_BOXES}", detector_benchmark.nms_works(), 1, 0.0)
    for name, works in aligns.items():
        rows += rows_in_turn(f"roi_align_{name}", works, 1, 0.0)
    return rows


def torchvision_works(config, batch: dict, regions: tuple) -> dict:
    """torchvision's step, forward and RoIAlign, each in a process of its own."""
    from affect_jax.benchmark import torch_twin
    from affect_jax.tasks import build_task

    model = config.model
    if model.neck != "fpn":
        raise ValueError("--compare=torch knows detectors with a pyramid; set config.model.neck to fpn")
    num_classes = len(build_task(config).open_split("train").class_names)
    optimizer = torch_optimizer(config)
    detector = torch_twin.detector_work, num_classes, model.to_dict(), config.dtype, optimizer, batch
    align = torch_twin.roi_align_work, *regions, 4, model.box.canonical_size, model.box.canonical_level
    return {
        "step": torch_twin.start("the detector's step", *detector, True),
        "forward": torch_twin.start("the detector", *detector, False),
        "roi_align_forward": torch_twin.start("RoIAlign", *align, False),
        "roi_align_forward_backward": torch_twin.start("RoIAlign", *align, True),
    }


def timed_step(config, batch, updates: int):
    from affect_jax.benchmark import steps as benchmark

    start = time.perf_counter()
    work, memory = benchmark.step_work(config, batch, updates)
    arguments, temporaries = (memory[name] / 2**20 for name in ("arguments", "temporaries"))
    print(f"the step compiled, or was found compiled, in {time.perf_counter() - start:.1f} s")
    print(
        f"a step of {config.batch_size} takes {arguments:.0f} MiB of state and batch, and {temporaries:.0f} MiB beside",
        flush=True,
    )
    return work


def print_peak_memory() -> None:
    from affect_jax.benchmark import steps as benchmark

    if peak := benchmark.peak_memory():
        print(f"up to here at most {peak / 2**20:.0f} MiB of the device's memory were in use at once", flush=True)


def rows_in_turn(name: str, works: dict, images: int, flop: float) -> list[dict]:
    from affect_jax.benchmark import steps as benchmark

    timed = benchmark.seconds_in_turn(works, ROUNDS.value)
    return [benchmark.row(name, implementation, images, seconds, flop) for implementation, seconds in timed.items()]


def table(rows: list[dict]) -> str:
    wide = max(len(row["work"]) for row in rows)
    lines = [
        f"{'work':{wide}} {'implementation':14} {'img/s':>10} {'best':>10} {'ms':>9} {'GFLOP/s':>9} {'of peak':>8}"
    ]
    for row in rows:
        lines.append(
            f"{row['work']:{wide}} {row['implementation']:14} {row['images_per_second']:10.1f}"
            f" {row['images_per_second_best']:10.1f} {row['ms']:9.1f} {row['flop_per_second'] / 1e9:9.0f}"
            f" {row['share_of_peak']:8.1%}"
        )
    return "\n".join(lines)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Fields are set as --config.NAME=VALUE")
    if CONFIG.value is None:
        raise app.UsageError("which config? For example --config=configs/fer_vgg.py")
    from affect_jax.process import prepare_process

    logging.set_verbosity(logging.ERROR)
    prepare_process()
    try:
        rows = measure(CONFIG.value)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(table(rows))
    if OUT.value:
        Path(OUT.value).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    app.run(main)
