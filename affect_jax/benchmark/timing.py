"""Time functions and make tables of the results."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping

import jax
import jax.numpy as jnp

Work = Callable[[], None]
"""Function that does a fixed amount of work and returns when the devices have finished it."""


def interleaved_seconds(works: Mapping[Hashable, Work], rounds: int) -> dict[Hashable, list[float]]:
    """Return the seconds of each work in each round; every round calls all works once, after one call to warm up."""
    seconds = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def seconds_one_by_one(works: Mapping[Hashable, Work], rounds: int) -> dict[Hashable, list[float]]:
    """Return the seconds of each work in each round, all rounds of a work one after the other.

    For a loop that reads data ahead: between its rounds, it would read without being timed.
    """
    return {name: interleaved_seconds({name: work}, rounds)[name] for name, work in works.items()}


def result_row(name: str, implementation: str, images: int, seconds: list[float], flop: float) -> dict:
    """Return a row of the results: the median of calls with `images` images of `flop` operations each."""
    median = statistics.median(seconds)
    return {
        "work": name,
        "implementation": implementation,
        "images_per_second": images / median,
        "images_per_second_best": images / min(seconds),
        "ms": 1000 * median,
        "flop_per_second": images * flop / median,
    }


def interleaved_rows(name: str, works: Mapping[str, Work], images: int, flop: float, rounds: int) -> list[dict]:
    """Time the implementations of a work, interleaved, and return a row for each."""
    return rows_of(name, images, flop, interleaved_seconds(works, rounds))


def rows_of(name: str, images: int, flop: float, seconds: Mapping[str, list[float]]) -> list[dict]:
    """Return a row for each implementation of a work, of its seconds in each round."""
    return [result_row(name, implementation, images, of_one, flop) for implementation, of_one in seconds.items()]


def format_header() -> str:
    """Return the names of the columns of format_row."""
    return f"{'work':26} {'implementation':14} {'img/s':>10} {'best':>10} {'ms/call':>9} {'GFLOP/s':>9} {'of peak':>8}"


def format_row(row: dict) -> str:
    """Return a row as a line of a table; the costs of a training step follow on further lines."""
    lines = [
        f"{row['work']:26} {row['implementation']:14} {row['images_per_second']:10.1f}"
        f" {row['images_per_second_best']:10.1f} {row['ms']:9.1f} {row['flop_per_second'] / 1e9:9.0f}"
        f" {row['share_of_peak']:8.1%}"
    ]
    if "compile_seconds" in row:
        state, temporary = (row[name] / 2**20 for name in ("state_bytes", "temporary_bytes"))
        lines.append(f"  compiled (or loaded from cache) in {row['compile_seconds']:.1f} s")
        lines.append(f"  {state:.0f} MiB for state and batch, {temporary:.0f} MiB for temporary arrays")
    if row.get("peak_bytes"):
        lines.append(f"  peak memory of the device {row['peak_bytes'] / 2**20:.0f} MiB")
    return "\n".join(lines)


def matmul_peak(dtype: jnp.dtype) -> float:
    """Return the FLOP/s of large matrix products on one device, the best of ten.

    float32 products have JAX's default precision, which is TF32 on NVIDIA GPUs since Ampere.
    """
    n = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)  # equal numbers would use less power and run faster
    product = jax.jit(lambda x: x @ x)
    seconds = interleaved_seconds({"product": lambda: jax.block_until_ready(product(x))}, rounds=10)["product"]
    return 2 * n**3 / min(seconds)


def peak_memory() -> int | None:
    """Return the peak of bytes in use on the first device; None if the device does not report it, as on CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
