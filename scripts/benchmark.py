"""Time a config's network: python scripts/benchmark.py --config=configs/fer_vgg.py [--compare=torch] [--out=FILE]

Prints a table of the bare step (no augmentation), the whole loop (augmentation and data included) with the set on the
device and streamed, and evaluation. --compare=torch adds the same step in PyTorch, eager and compiled, in a process of
its own, all steps in turn. FILE gets the rows as JSON. FLOP are those of plain convolutions and matrix products, also
where fewer are done; a step counts three times forward.
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
ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed calls of each work; the table shows their median.")


def torch_steps(config, updates: int) -> dict:
    """The same step in PyTorch, by implementation."""
    from affect_jax.train import builders, torch_twin
    from affect_jax.train.benchmark import noise_batch

    name, optim = config.model.name, config.optim
    if name not in torch_twin.NETWORKS or optim.name not in torch_twin.OPTIMIZERS or config.dtype != "float32":
        networks, optimizers = " or ".join(torch_twin.NETWORKS), " or ".join(torch_twin.OPTIMIZERS)
        raise ValueError(
            f"--compare=torch knows {networks} in float32 with optim {optimizers}; set these in the config"
        )
    split = builders.build_split(config, "train")
    num_classes = len(split.class_names)
    options = {key: value for key, value in config.model.items() if key != "name"}
    batch = noise_batch(config.batch_size, split.image_shape, num_classes)

    def step(compiled: bool):
        optimizer = (optim.name, optim.learning_rate, optim.weight_decay)
        twin = torch_twin.Step(name, split.image_shape, num_classes, options, *optimizer, compiled)
        return torch_twin.start(twin, batch, updates)

    steps = {"torch_eager": step(compiled=False)}
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        print("no torch_compile: it needs a C++ compiler, and neither g++ nor clang++ is on the PATH", flush=True)
    else:
        steps["torch_compile"] = step(compiled=True)
    return steps


def measure(config) -> list[dict]:
    import jax
    import jax.numpy as jnp

    from affect_jax.train import benchmark

    peak = benchmark.matmul_peak(jnp.dtype(config.dtype))
    flop = benchmark.forward_flop(config)
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}: {peak / 1e9:.0f} GFLOP/s in {config.dtype} products;"
        f" {flop / 1e6:.0f} MFLOP an image forward; imports and set-up {time.perf_counter() - STARTED:.1f} s",
        flush=True,
    )
    on_cpu = jax.default_backend() == "cpu"
    updates, window = (1, 5) if on_cpu else (50, 500)  # that a measurement takes long against the clock and dispatch
    start = time.perf_counter()
    steps = {"affect_jax": benchmark.step_work(config, updates)}
    print(f"the step compiled, or was found compiled, in {time.perf_counter() - start:.1f} s", flush=True)
    if COMPARE.value == "torch":
        steps.update(torch_steps(config, updates))

    batch = config.batch_size
    rows = [
        benchmark.row("step", name, updates * batch, seconds, 3 * flop, peak)
        for name, seconds in benchmark.seconds_in_turn(steps, ROUNDS.value).items()
    ]
    evaluate, images = benchmark.evaluate_work(config, batches=4)
    seconds = benchmark.seconds_in_turn({"evaluate": evaluate}, max(3, ROUNDS.value // 3))["evaluate"]
    rows.append(benchmark.row("evaluate", "affect_jax", images, seconds, flop, peak))
    for data_input in ("resident", "stream"):
        seconds = benchmark.loop_seconds(config, data_input, ROUNDS.value, window)
        rows.append(benchmark.row(f"loop_{data_input}", "affect_jax", window * batch, seconds, 3 * flop, peak))
    return rows


def table(rows: list[dict]) -> str:
    lines = [f"{'work':14} {'implementation':14} {'img/s':>10} {'best':>10} {'ms':>9} {'GFLOP/s':>9} {'of peak':>8}"]
    for row in rows:
        lines.append(
            f"{row['work']:14} {row['implementation']:14} {row['images_per_second']:10.1f}"
            f" {row['images_per_second_best']:10.1f} {row['ms']:9.1f} {row['flop_per_second'] / 1e9:9.0f}"
            f" {row['share_of_peak']:8.1%}"
        )
    return "\n".join(lines)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Fields are set as --config.NAME=VALUE")
    if CONFIG.value is None:
        raise app.UsageError("which config? For example --config=configs/fer_vgg.py")
    from affect_jax.train.process import prepare_process

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
