"""Measure the training step, loop, evaluation and prediction of a config."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from affect_jax.benchmark.classifier import classifier_measurements
from affect_jax.benchmark.detector import detector_measurements
from affect_jax.benchmark.timing import matmul_peak

MEASUREMENTS = {"classification": classifier_measurements, "detection": detector_measurements}
"""Functions by task: (config, compare_torch, rounds) -> functions that measure a work and return its rows, by name."""


def benchmark(config: ConfigDict, compare_torch: bool, rounds: int, works: Sequence[str] = ()) -> Iterator[dict]:
    """Yield a row for each work and implementation when it is measured, of `works` only if any are given.

    All rows have the share of the peak of matrix products. Raises ValueError if a work is unknown, or if PyTorch has no
    counterpart of the network, of its frozen parameters or of several devices; ImportError if it is not installed,
    OSError if it fails.
    """
    if compare_torch and jax.device_count() > 1:
        raise ValueError(
            f"--compare=torch measures one device, but there are {jax.device_count()}: hide the others, for example"
            " with CUDA_VISIBLE_DEVICES=0"
        )
    if compare_torch and config.optim.freeze:
        raise ValueError("--compare=torch trains all parameters: set --config.optim.freeze='()'")
    measurements = MEASUREMENTS[config.task](config, compare_torch, rounds)
    if unknown := [name for name in works if name not in measurements]:
        raise ValueError(f"unknown works {', '.join(unknown)}; choose from {', '.join(measurements)}")
    peak = matmul_peak(jnp.dtype(config.dtype))
    kind = jax.devices()[0].device_kind
    print(f"{jax.device_count()} x {kind}; one computes {peak / 1e9:.0f} GFLOP/s in {config.dtype} products")
    for name, measure in measurements.items():
        if not works or name in works:
            for row in measure():
                devices = 1 if name.startswith("predict_") else jax.device_count()  # others split batches over all
                yield row | {"share_of_peak": row["flop_per_second"] / (peak * devices)}
