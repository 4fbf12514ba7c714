"""Measure the training step, loop, evaluation and prediction of a config."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from affect_jax.benchmark.classifier import classifier_rows
from affect_jax.benchmark.detector import detector_rows
from affect_jax.benchmark.timing import matmul_peak

ROWS = {"classification": classifier_rows, "detection": detector_rows}
"""By task: (config, compare_torch, rounds) -> rows."""


def benchmark(config: ConfigDict, compare_torch: bool, rounds: int) -> list[dict]:
    """Return a row for each measured work and implementation; all have the share of the peak of matrix products.

    Raises ValueError if PyTorch has no counterpart of the network, ImportError if it is not installed, OSError if it
    fails.
    """
    rows = ROWS[config.task](config, compare_torch, rounds)
    peak = matmul_peak(jnp.dtype(config.dtype))
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}: {peak / 1e9:.0f} GFLOP/s in {config.dtype} products")
    for row in rows:
        row["share_of_peak"] = row["flop_per_second"] / peak
    return rows
