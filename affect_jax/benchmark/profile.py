"""Measure the parts of a training step, each compiled alone, next to the least time that the device allows.

The floor of a part is the larger of two times: its operations at the rate of a large matrix product, and its arrays,
each read or written once, at the measured bandwidth of the memory. Its backward pass has twice the operations.
"""

import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from affect_jax.benchmark.classifier import noise_batch
from affect_jax.benchmark.detector import PARTS_OF_STEP, first_batch
from affect_jax.benchmark.flop import program_flop
from affect_jax.benchmark.steps import random_network, step_work
from affect_jax.benchmark.timing import interleaved_seconds, matmul_peak
from affect_jax.models.inspection import LayerCall, layer_calls
from affect_jax.ops.augment import augment
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import Batch, LossFn
from affect_jax.train import builders
from affect_jax.train.state import create_state, make_apply
from affect_jax.train.steps import make_train_step

BANDWIDTH_ELEMENTS = 2**25
"""float32 numbers of each array of the measurement of bandwidth, far more than a cache holds."""


class Peak(NamedTuple):
    """Measured peak rates of the device."""

    flop_per_second: float
    """Operations per second of large matrix products."""
    bytes_per_second: float
    """Bytes per second read from and written to the memory."""

    def floor_ms(self, flop: float, *arrays) -> float:
        """Return the least milliseconds of a part with `flop` operations and these arrays."""
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
        return 1000 * max(flop / self.flop_per_second, size / self.bytes_per_second)


def profile_rows(config: ConfigDict, rounds: int) -> tuple[list[dict], Peak]:
    """Return a row for each part of the config's step, then "rest" and "step", and the peak of the device.

    A row has "part", "calls", "ms" of all calls together, "forward_ms" of it and "floor_ms". "rest" is the step minus
    the parts: activations and sums between layers, losses and, in a detector, proposals. It is negative if the layers
    take less time together than alone, because XLA fuses them and computes independent ones at the same time. All parts
    are trained, also those that the config freezes.
    """
    config = ConfigDict(config.to_dict())
    config.optim.freeze = ()
    task = build_task(config)
    split = task.open_split("train")
    data = task.data_facts(split)
    is_detector = config.task == "detection"
    batch = (
        first_batch(config) if is_detector else noise_batch(config.batch_size, data.image_shape, len(data.class_names))
    )
    batch = jax.device_put(batch)
    model, variables = random_network(task, data)
    peak = Peak(matmul_peak(jnp.dtype(config.dtype)), memory_bandwidth())

    rows = layer_rows(task.loss_fn(make_apply(model), data), variables, batch, peak, rounds)
    rows.append(optimizer_row(config, variables, len(split), peak, rounds))
    if is_detector:
        rows += [part_row(name, 1, *median_ms(rounds, part(config))) for name, part in PARTS_OF_STEP.items()]
    elif config.augment:
        rows.append(augment_row(config, batch["image"], peak, rounds))
    (step,) = median_ms(rounds, step_work(config, batch, 1, augmented=True)[0])
    rows.append(part_row("rest", 1, step - sum(row["ms"] for row in rows)))
    rows.append(part_row("step", 1, step, 0.0, sum(row["floor_ms"] for row in rows)))
    return rows, peak


def layer_rows(loss_fn: LossFn, variables: dict, batch: Batch, peak: Peak, rounds: int) -> list[dict]:
    """Return a row for each kind of layer that the loss of a batch calls, the slowest first."""
    rows = []
    calls = layer_calls(loss_fn, variables["params"], variables["batch_stats"], batch, jax.random.key(0))
    examples = {label(call): call for call in calls}
    for name, count in Counter(map(label, calls)).items():
        forward, both, arguments = layer_programs(examples[name])
        alone, together = median_ms(rounds, partial(forward, *arguments[:2]), partial(both, *arguments))
        flop = program_flop(examples[name].apply, *arguments[:2])
        own, x, gradient = arguments
        least = peak.floor_ms(flop, own, x, gradient) + peak.floor_ms(2 * flop, own, x, x, gradient)
        rows.append(part_row(name, count, count * together, count * alone, count * least))
    return sorted(rows, key=lambda row: -row["ms"])


def optimizer_row(config: ConfigDict, variables: dict, num_examples: int, peak: Peak, rounds: int) -> dict:
    """Return the row of the update of the parameters and of their average, with the checks of a step."""
    tx = builders.build_optimizer(config, builders.build_schedule(config, num_examples))
    state = create_state(variables, tx, config.ema_decay > 0)
    update = jax.jit(make_train_step(_loss_of_sizes, tx, ema_decay=config.ema_decay))
    (ms,) = median_ms(rounds, partial(update, state, {}, jax.random.key(1)))
    return part_row("optimizer", 1, ms, ms, peak.floor_ms(0.0, state, state, variables["params"]))


def augment_row(config: ConfigDict, images: jax.Array, peak: Peak, rounds: int) -> dict:
    """Return the row of the augmentation of images uint8 [B, H, W, C]."""
    images = images.astype(jnp.float32)
    change = jax.jit(partial(augment, **config.augment.to_dict()))
    (ms,) = median_ms(rounds, partial(change, jax.random.key(0), images))
    return part_row("augment", 1, ms, ms, peak.floor_ms(0.0, images, images))


def part_row(part: str, calls: int, ms: float, forward_ms: float = 0.0, floor_ms: float = 0.0) -> dict:
    """Return a row: see profile_rows."""
    return {"part": part, "calls": calls, "ms": ms, "forward_ms": forward_ms, "floor_ms": floor_ms}


def median_ms(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """Return the median milliseconds of each call, until its arrays are computed; the calls are interleaved."""
    works = {place: lambda call=call: jax.block_until_ready(call()) for place, call in enumerate(calls)}
    return [1000 * statistics.median(times) for times in interleaved_seconds(works, rounds).values()]


def format_profile(rows: list[dict], peak: Peak) -> str:
    """Return the peak and the rows as a table."""
    width = max(len(row["part"]) for row in rows)
    products, memory = peak.flop_per_second / 1e9, peak.bytes_per_second / 1e9
    lines = [f"{products:.0f} GFLOP/s in matrix products, {memory:.1f} GB/s of memory"]
    lines += [f"{'part':{width}} {'calls':>5} {'ms':>8} {'forward':>8} {'backward':>8} {'floor':>8} {'ratio':>6}"]
    for row in rows:
        ms, forward, least = row["ms"], row["forward_ms"], row["floor_ms"]
        split = f"{forward:8.1f} {ms - forward:8.1f}" if forward else f"{'':17}"
        ratio = f"{least:8.1f} {ms / least:6.1f}" if least else ""
        lines.append(f"{row['part']:{width}} {row['calls']:5} {ms:8.1f} {split} {ratio}".rstrip())
    return "\n".join(lines)


def label(call: LayerCall) -> str:
    """Return the kind of a layer with the sides of its kernel and the shapes of its input and output."""
    kernel = call.variables["params"].get("kernel")
    kind = call.kind
    if kernel is not None and kernel.ndim == 4:
        kind = "depthwise" if kernel.shape[2] == 1 < call.x.shape[-1] else kind
        kind += f" {kernel.shape[0]}x{kernel.shape[1]}"
    y = jax.eval_shape(call.apply, call.variables, call.x)
    return f"{kind} {' -> '.join('x'.join(map(str, x.shape[1:])) for x in (call.x, y))}"


def layer_programs(call: LayerCall) -> tuple[Callable, Callable, tuple]:
    """Return a layer's forward pass, its forward and backward passes, and arguments of the second."""

    def both(variables, x, gradient):
        def apply(params, x):
            return call.apply({**variables, "params": params}, x)

        y, pull_back = jax.vjp(apply, variables["params"], x)
        return y, pull_back(gradient)

    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), call.variables)
    x = jax.random.normal(jax.random.key(0), call.x.shape, call.x.dtype)
    forward = jax.jit(call.apply)
    gradient = jnp.ones_like(forward(variables, x))
    return forward, jax.jit(both), (variables, x, gradient)


def memory_bandwidth() -> float:
    """Return the bytes per second of the sum of two large arrays, the best of ten."""
    x = jnp.ones(BANDWIDTH_ELEMENTS, jnp.float32)
    y, add = 2 * x, jax.jit(lambda x, y: x + y)
    seconds = interleaved_seconds({"add": lambda: jax.block_until_ready(add(x, y))}, rounds=10)["add"]
    return 3 * x.nbytes / min(seconds)


def _loss_of_sizes(params, batch_stats, batch, key):
    """Return a loss of almost no operations: a step with it consists of the optimizer and the checks."""
    loss = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)) / 2
    return loss, (batch_stats, {"count": jnp.float32(1.0)})
