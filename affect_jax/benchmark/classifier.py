"""Measure a classifier: step, prediction, evaluation and the loop with its data, and PyTorch's step and prediction."""

import shutil
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from affect_jax.benchmark import torch_twin
from affect_jax.benchmark.steps import evaluate_work, loop_work, predict_work, step_work
from affect_jax.benchmark.timing import (
    Work,
    interleaved_rows,
    interleaved_seconds,
    peak_memory,
    result_row,
    rows_of,
    seconds_one_by_one,
)
from affect_jax.packages import require
from affect_jax.tasks import build_task

LOOP_WINDOW = 5
"""Steps of the loop that are timed together on CPU."""
PREDICTED = {1: 100, 64: 10}
"""Images per call -> calls that are timed together, long enough for the threads of the previous work to rest."""
EVALUATION_BATCHES = 4


def classifier_measurements(
    config: ConfigDict, compare_torch: bool, rounds: int
) -> dict[str, Callable[[], list[dict]]]:
    """Return the measurements of a classifier by name; see benchmark.training."""
    batch_size, on_cpu = config.batch_size, jax.default_backend() == "cpu"
    num_steps, window = (1, LOOP_WINDOW) if on_cpu else (50, 500)  # so that dispatch and clock do not matter
    split = build_task(config).open_split("train")
    num_classes = len(split.class_names)
    twins = torch_twins(config, split.image_shape, num_classes) if compare_torch else {}

    def implementations(ours: Work, make_theirs: Callable[..., Work], *arguments) -> dict[str, Work]:
        theirs = {name: torch_twin.start(name, make_theirs, twin, *arguments) for name, twin in twins.items()}
        return {"affect_jax": ours, **theirs}

    def images_of(size: int) -> np.ndarray:
        return noise_batch(size, split.image_shape, num_classes)["image"]

    def step() -> list[dict]:
        batch = noise_batch(batch_size, split.image_shape, num_classes)
        ours, costs = step_work(config, batch, num_steps)
        works = implementations(ours, torch_twin.step_work, torch_twin.optimizer_of(config), batch, num_steps)
        rows = interleaved_rows("step", works, num_steps * batch_size, costs["flop_per_image"], rounds)
        rows[0] |= costs | {"peak_bytes": peak_memory()}
        return rows

    def predict(size: int) -> list[dict]:
        images, calls = images_of(size), PREDICTED[size]
        ours, flop = predict_work(config, images, calls)
        works = implementations(ours, torch_twin.predict_work, images, calls)
        return interleaved_rows(f"predict_{size}", works, calls * size, flop, rounds)

    def evaluate() -> list[dict]:
        ours, images = evaluate_work(config, EVALUATION_BATCHES)
        calls = -(-images // 64)
        alone, flop = predict_work(config, images_of(64), calls)
        works = {"affect_jax": ours, "predict_64": alone}
        counts = {"affect_jax": images, "predict_64": calls * 64}
        seconds = interleaved_seconds(works, rounds)
        return [result_row("evaluate", name, counts[name], seconds[name], flop) for name in works]

    def loop(data_input: str) -> list[dict]:
        alone, costs = step_work(config, noise_batch(batch_size, split.image_shape, num_classes), window)
        with loop_work(config, rounds + 1, window, data_input) as ours:
            seconds = seconds_one_by_one({"affect_jax": ours, "step": alone}, rounds)
        return rows_of(f"loop_{data_input}", window * batch_size, costs["flop_per_image"], seconds)

    return {
        "step": step,
        **{f"predict_{size}": partial(predict, size) for size in PREDICTED},
        "evaluate": evaluate,
        **{f"loop_{data_input}": partial(loop, data_input) for data_input in ("resident", "stream")},
    }


def noise_batch(batch_size: int, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, np.ndarray]:
    """Return a batch of noise with the fields of the input pipeline."""
    rng = np.random.default_rng(0)
    votes = rng.dirichlet(np.ones(num_classes), batch_size).astype(np.float32)
    return {
        "image": rng.integers(0, 256, (batch_size, *image_shape), np.uint8),
        "label": votes.argmax(-1).astype(np.int32),
        "votes": votes,
        "valence_arousal": rng.uniform(-1, 1, (batch_size, 2)).astype(np.float32),
    }


def torch_twins(config: ConfigDict, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, torch_twin.Twin]:
    """Return the network in PyTorch, eager and, if there is a C++ compiler, compiled."""
    require("torch", purpose="--compare=torch")
    options = config.model.to_dict()
    name = options.pop("name")
    if name not in torch_twin.NETWORKS:
        raise ValueError(f"--compare=torch has no {name}; choose one of {', '.join(torch_twin.NETWORKS)}")
    network = name, image_shape, num_classes, options, config.dtype
    twins = {"torch_eager": torch_twin.Twin(*network, compiled=False)}
    if shutil.which("g++") or shutil.which("clang++"):
        twins["torch_compile"] = torch_twin.Twin(*network, compiled=True)
    else:
        print("torch_compile is left out: it needs g++ or clang++ on the PATH", flush=True)
    return twins
