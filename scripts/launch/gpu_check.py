"""Compile and run training steps of every network, in bfloat16 and float32, to see that they run on this device:

    python scripts/launch/gpu_check.py [--profile=FOLDER]

The networks are those of the configs in --configs. They train on noise or drawn scenes, so no data set is needed. They
compile at the same time. A network that fails is named, and the others are still checked.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import runpy
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import jax
from absl import flags, logging

from affect_jax.benchmark.classifier import noise_batch
from affect_jax.benchmark.detector import first_batch
from affect_jax.benchmark.steps import step_work
from affect_jax.benchmark.timing import Work
from affect_jax.data import open_split
from affect_jax.process import prepare_process

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DRAWN = {"classification": "drawn_faces", "detection": "drawn_scenes"}
NUM_STEPS = 20

NETWORKS = flags.DEFINE_list(
    "configs",
    ["fer_vgg_best", "fer_mobilenet", "fer_finetune", "widerface_yunet", "widerface_rcnn", "affectnet_resnet"],
    "Configs of the networks: NAME or NAME:VARIANT.",
)
DTYPES = flags.DEFINE_list("dtypes", ["bfloat16", "float32"], "Types of the arithmetic.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Images of a step; 0: those of the config.", 0)
PROFILE = flags.DEFINE_string("profile", "", "Write a profile of the first network's steps to this folder.")


def main(argv):
    command_line.reject_arguments(argv)
    logging.set_verbosity(logging.ERROR)
    prepare_process()
    print(", ".join(f"{device.device_kind} ({device.platform})" for device in jax.devices()), flush=True)
    if (jax.config.jax_platforms or "").startswith("cuda") and jax.default_backend() == "cpu":
        sys.exit("JAX sees no GPU: JAX_PLATFORMS asks for cuda, but there is no /dev/nvidia*")  # JAX itself continues
    pairs = [(name, dtype) for dtype in DTYPES.value for name in NETWORKS.value]
    works, failed = {}, set()
    with ThreadPoolExecutor(len(pairs)) as pool:
        compiling = {pool.submit(compile_step, *pair): pair for pair in pairs}
        for future in as_completed(compiling):
            pair = compiling[future]
            with failure_named(pair, failed):
                work, seconds = future.result()
                work()
                works[pair] = work
                print(f"{pair[0]} {pair[1]}: compiled in {seconds:.1f} s, a step runs", flush=True)
    for pair in filter(works.get, pairs):
        with failure_named(pair, failed):
            start = time.perf_counter()
            for _ in range(NUM_STEPS):
                works[pair]()
            print(f"{pair[0]} {pair[1]}: {1e3 * (time.perf_counter() - start) / NUM_STEPS:.2f} ms a step", flush=True)
    if PROFILE.value and pairs[0] not in failed:
        with jax.profiler.trace(PROFILE.value):
            works[pairs[0]]()
    sys.exit(f"{len(failed)} of {len(pairs)} failed" if failed else 0)


@contextmanager
def failure_named(pair: tuple[str, str], failed: set[tuple[str, str]]) -> Iterator[None]:
    """Print an error of the block and add the network to `failed`, so that the others are still checked."""
    try:
        yield
    except Exception as error:
        failed.add(pair)
        print(f"{pair[0]} {pair[1]}: {type(error).__name__}: {error}", flush=True)


def compile_step(name: str, dtype: str) -> tuple[Work, float]:
    """Return a training step of a config's network on noise or drawn scenes, and the seconds of compiling."""
    file, _, variant = name.partition(":")
    config = runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"](variant)
    config.dtype = dtype
    config.batch_size = BATCH_SIZE.value or config.batch_size
    config.data.name = DRAWN[config.task]
    config.data.options = {"num_examples": config.batch_size}
    config.data.num_workers = 0
    if config.task == "detection":
        config.data.epoch_limits = ()
        batch = first_batch(config)
    else:
        config.data.sampling, config.valence_arousal_weight = "shuffled", 0.0
        split = open_split(config.data.name, "train", num_examples=config.batch_size)
        batch = noise_batch(config.batch_size, split.image_shape, len(split.class_names))
    work, costs = step_work(config, batch, 1)
    return work, costs["compile_seconds"]


if __name__ == "__main__":
    command_line.run(main)
