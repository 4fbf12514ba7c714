"""The parts of a run as functions to time: training step, evaluation, prediction and the loop.

`step_work` is forward, backward and update on a batch on the device, without augmentation; `loop_work` is the loop of a
run, with augmentation, data and log; `predict_work` copies images to the device and probabilities back in every call.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import jax
import numpy as np
from ml_collections import ConfigDict

from affect_jax.benchmark.flop import program_flop
from affect_jax.benchmark.timing import Work
from affect_jax.config_checks import validate
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import Batch, DataFacts, Task
from affect_jax.train import builders
from affect_jax.train.loop import Trainer
from affect_jax.train.mesh import data_mesh, one_device, replicated, split_over_devices, to_devices
from affect_jax.train.prediction import compile_predict, predict_split
from affect_jax.train.progress import RunLog
from affect_jax.train.state import Network, create_state, init_variables, make_apply


def random_network(task: Task, data: DataFacts) -> tuple[Network, dict]:
    """Return the task's network and random variables, whose values do not change the speed."""
    model = task.build_network(data)
    return model, init_variables(model, jax.random.key(0), task.network_inputs(data))


def refuse_teachers(config: ConfigDict) -> None:
    """Raise ValueError for a config with teachers, which are not part of the measured step."""
    if "distillation" in config and config.distillation.teachers:
        raise ValueError("the teachers of a distillation are not measured: set --config.distillation.teachers='()'")


def step_work(
    config: ConfigDict, batch: Batch, num_steps: int, augmented: bool = False
) -> tuple[Work, dict[str, float]]:
    """Return a function that runs `num_steps` training steps on a batch, and the step's costs.

    Without `augmented` the step has no augmentation and no mixup.
    The costs are "compile_seconds", "state_bytes" (with the batch), "temporary_bytes" and "flop_per_image".
    """
    refuse_teachers(config)
    config = ConfigDict(config.to_dict())
    if "augment" in config and not augmented:
        config.augment, config.mixup_alpha = {}, 0.0
    mesh, task = data_mesh(), build_task(config)
    split = task.open_split("train")
    data = task.data_facts(split)
    model, variables = random_network(task, data)
    tx = builders.build_optimizer(config, builders.build_schedule(config, len(split)))
    state = jax.device_put(create_state(variables, tx, config.ema_decay > 0), replicated(mesh))
    frozen = builders.build_frozen(config)
    train_step = jax.jit(builders.build_train_step(config, task, model, data, tx, frozen), donate_argnums=0)
    batch, key = to_devices(batch, split_over_devices(mesh)), jax.random.key(1)
    start = time.perf_counter()
    compiled = train_step.lower(state, batch, key).compile()
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()

    def work() -> None:
        nonlocal state
        for _ in range(num_steps):
            state, sums = compiled(state, batch, key)
        jax.block_until_ready(sums)

    return work, {
        "compile_seconds": compile_seconds,
        "state_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "flop_per_image": program_flop(train_step, state, batch, key) / config.batch_size,
    }


def evaluate_work(config: ConfigDict, batches: int) -> tuple[Work, int]:
    """Return a function that predicts the first `batches` batches of val, and their number of images."""
    mesh, task = data_mesh(), build_task(config)
    evaluation = task.evaluation("val")
    split = evaluation.split
    split.arrays = {key: array[: batches * config.eval_batch_size] for key, array in split.arrays.items()}
    data = task.data_facts(split)
    model, variables = random_network(task, data)
    variables = jax.device_put(variables, replicated(mesh))
    predict = compile_predict(task.predict_fn(make_apply(model), data), mesh)

    def work() -> None:
        predict_split(predict, variables, task, evaluation, mesh)

    return work, len(split)


def predict_work(config: ConfigDict, images: np.ndarray, calls: int) -> tuple[Work, float]:
    """Return a function that predicts `calls` times, and the operations for an image.

    Each call is from images uint8 [B, H, W, C] to probabilities on the host.
    """
    task = build_task(config)
    data = DataFacts(task.open_split("val").class_names, images.shape[1:])
    model, variables = random_network(task, data)
    predict = compile_predict(task.predict_fn(make_apply(model), data), one_device())

    def work() -> None:
        for _ in range(calls):
            np.asarray(predict(variables, {"image": images})["probs"])

    return work, program_flop(predict, variables, {"image": images}) / len(images)


@contextmanager
def loop_work(config: ConfigDict, calls: int, num_steps: int, data_input: str | None = None) -> Iterator[Work]:
    """Open a function that runs `num_steps` steps of a run's loop and logs a line; it can be called `calls` times.

    `data_input` replaces config.data.input: "resident" or "stream".
    """
    refuse_teachers(config)
    config = loop_config(config, calls, num_steps, data_input)
    with closing(Trainer(config, build_task(config))) as trainer:
        log = RunLog(trainer.plan.total_steps, trainer.plan.steps_per_epoch, {}, say=lambda line: None)

        def work() -> None:
            first = trainer.step
            dispatches = []
            while trainer.step < first + num_steps:
                dispatches.append(trainer.dispatch(log))
            trainer.log_steps(dispatches, log)

        yield work


def loop_config(config: ConfigDict, windows: int, window_steps: int, data_input: str | None = None) -> ConfigDict:
    """Return the config of a run that logs a line after each of `windows` windows of `window_steps` steps.

    The initial weights are random, because their values do not change the speed.
    """
    config = ConfigDict(config.to_dict())
    config.init_from, config.init_excuse = "", ()
    task = build_task(config)
    num_examples = task.examples_per_epoch(task.open_split("train"))
    if data_input:
        config.data.input = data_input
    if data_input == "resident":
        config.data.num_workers = 0
    config.log_every_steps = window_steps
    config.total_epochs = windows * window_steps * config.batch_size / num_examples
    config.eval_every_epochs = config.total_epochs
    config.optim.warmup_epochs = 0.0
    validate(config)
    return config
