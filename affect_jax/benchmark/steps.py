"""How fast the parts of a run are: the bare step, the whole loop, evaluation, prediction.

`step` is forward, backward and update on one batch that lies on the device, without augmentation; `loop_resident` and
`loop_stream` are the run itself, augmentation and data included, by its own record; `evaluate` goes over a split;
`predict_1` and `predict_64` take so many images from the host and bring their probabilities back, a call at a time.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from affect_jax.config import validate
from affect_jax.runs import workdir
from affect_jax.runs.training import train_and_evaluate
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import Batch, DataFacts
from affect_jax.train import builders
from affect_jax.train.mesh import data_mesh, one_device, replicated, split_over_devices, to_devices
from affect_jax.train.prediction import compile_predict, predict_split
from affect_jax.train.state import create_state, init_variables, make_apply
from affect_jax.train.steps import make_train_step

Work = Callable[[], None]
"""Does its work once and returns when it is done."""


def seconds_in_turn(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work, one call a round, all of them in turn in every round; a first call of each is not timed."""
    seconds = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def row(work: str, implementation: str, images: int, seconds: list[float], flop: float) -> dict:
    """A row of the table: the median over calls that each took `images` images of `flop` operations."""
    median = statistics.median(seconds)
    return {
        "work": work,
        "implementation": implementation,
        "images_per_second": images / median,
        "images_per_second_best": images / min(seconds),
        "ms": 1000 * median,
        "flop_per_second": images * flop / median,
    }


def step_work(config: ConfigDict, batch: Batch, updates: int) -> tuple[Work, dict[str, int]]:
    """`updates` training steps of the config's network on a batch on the devices, augmentation and mixup off.

    And the bytes that a step needs: "arguments" and, in addition, "temporaries".
    """
    config = ConfigDict(config.to_dict())
    if "augment" in config:
        config.augment, config.mixup_alpha = {}, 0.0
    mesh, task = data_mesh(), build_task(config)
    split = task.open_split("train")
    data = task.data_facts(split)
    model = task.build_network(data)
    tx = builders.build_optimizer(config, builders.build_schedule(config, len(split)))
    variables = init_variables(model, jax.random.key(0), task.network_inputs(data))
    state = jax.device_put(create_state(variables, tx, config.ema_decay > 0), replicated(mesh))
    loss_fn = task.loss_fn(make_apply(model), data)
    train_step = make_train_step(loss_fn, tx, jax.random.key(1), config.accumulate_steps, config.ema_decay)
    batch = to_devices(batch, split_over_devices(mesh))
    compiled = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()
    memory = compiled.memory_analysis()

    def work() -> None:
        nonlocal state
        for _ in range(updates):
            state, sums = compiled(state, batch)
        jax.block_until_ready(sums)

    return work, {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes}


def noise_batch(batch_size: int, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, np.ndarray]:
    """A batch as the pipeline gives it, of noise."""
    rng = np.random.default_rng(0)
    votes = rng.dirichlet(np.ones(num_classes), batch_size).astype(np.float32)
    return {
        "image": rng.integers(0, 256, (batch_size, *image_shape), np.uint8),
        "label": votes.argmax(-1).astype(np.int32),
        "votes": votes,
        "valence_arousal": rng.uniform(-1, 1, (batch_size, 2)).astype(np.float32),
    }


def evaluate_work(config: ConfigDict, batches: int) -> tuple[Work, int]:
    """Probabilities of the first `batches` evaluation batches of val; and how many images those are."""
    mesh, task = data_mesh(), build_task(config)
    evaluation = task.evaluation("val")
    split = evaluation.split
    split.arrays = {key: array[: batches * config.eval_batch_size] for key, array in split.arrays.items()}
    data = task.data_facts(split)
    model = task.build_network(data)
    variables = init_variables(model, jax.random.key(0), task.network_inputs(data))
    variables = jax.device_put(variables, replicated(mesh))
    predict = compile_predict(task.predict_fn(make_apply(model), data), mesh)

    def work() -> None:
        predict_split(predict, variables, task.evaluation_batches(evaluation), len(split), mesh)

    return work, len(split)


def predict_work(config: ConfigDict, images: np.ndarray, calls: int) -> Work:
    """Probabilities on the host of these images, uint8 [B, H, W, C] on the host, `calls` times, from random weights."""
    task = build_task(config)
    data = DataFacts(task.open_split("val").class_names, images.shape[1:])
    model = task.build_network(data)
    variables = init_variables(model, jax.random.key(0), task.network_inputs(data))
    predict = compile_predict(task.predict_fn(make_apply(model), data), one_device())

    def work() -> None:
        for _ in range(calls):
            np.asarray(predict(variables, {"image": images})["probs"])

    return work


def loop_seconds(config: ConfigDict, data_input: str, windows: int, steps_a_window: int) -> list[float]:
    """Seconds of each window of `steps_a_window` updates of a real run with this config, from the record it leaves."""
    config = ConfigDict(config.to_dict())
    config.init_from, config.init_excuse = "", ()  # what the weights are makes no step slower
    num_examples = len(build_task(config).open_split("train"))
    if "input" in config.data:
        config.data.input = data_input
    if data_input == "resident":
        config.data.num_workers = 0
    config.log_every_steps = steps_a_window
    config.total_epochs = (windows + 1) * steps_a_window * config.batch_size / num_examples
    config.eval_every_epochs = config.total_epochs
    config.optim.warmup_epochs = 0.0
    validate(config)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        train_and_evaluate(config, Path(folder) / "run")
        history = workdir.load_history(workdir.Workdir(Path(folder) / "run"))
    at = [record["seconds"] for record in history if "train/loss" in record]
    return list(np.diff(at))


def matmul_peak(dtype: jnp.dtype) -> float:
    """FLOP/s of the best of ten large matrix products on one device, times the devices: what XLA reaches here.

    float32 products are what JAX makes of them by default: TF32 on NVIDIA's GPUs from Ampere on.
    """
    n = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)  # equal numbers would draw less power, and run faster
    product = jax.jit(lambda x: x @ x)
    seconds = seconds_in_turn({"product": lambda: jax.block_until_ready(product(x))}, rounds=10)["product"]
    return 2 * n**3 / min(seconds) * jax.device_count()


def peak_memory() -> int | None:
    """Bytes of the first device that were in use at once, at most, up to now; None where it does not tell, as a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def forward_flop(config: ConfigDict) -> float:
    """Operations that one image takes forward: two for each multiplication of convolutions and matrix products.

    Of a detector, a picture of its first bucket; boxes, NMS and the like count nothing.
    """
    task = build_task(config)
    data = task.data_facts(task.open_split("train"))
    model, inputs = task.build_network(data), task.network_inputs(data)
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), inputs))
    return _flop(jax.make_jaxpr(lambda variables, x: make_apply(model)(variables, x, False))(variables, inputs).jaxpr)


def _flop(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * np.prod(kernel) / features
        elif name == "dot_general":
            contracted = [equation.invars[0].aval.shape[axis] for axis in params["dimension_numbers"][0][0]]
            total += 2 * equation.outvars[0].aval.size * np.prod(contracted)
        elif name == "cond":  # of a convolution's forms, the last: XLA's own
            total += _flop(params["branches"][-1].jaxpr)
        else:
            inner = params.get("jaxpr", params.get("call_jaxpr"))
            total += _flop(getattr(inner, "jaxpr", inner)) if inner is not None else 0.0
    return total
