"""The training loop: set-up, restore, steps, evaluation and saving."""

import itertools
from bisect import bisect_right
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from affect_jax.config import default_config, differing_fields
from affect_jax.data.pipeline import BatchIterator
from affect_jax.models.calibration import calibrate_batch_norm
from affect_jax.models.pretrained import Pretrained
from affect_jax.names import Selects
from affect_jax.tasks.interface import Batch, Task
from affect_jax.train import builders
from affect_jax.train.checkpoint import Checkpoints
from affect_jax.train.mesh import data_mesh, replicated, split_over_devices, to_devices
from affect_jax.train.plan import plan_steps
from affect_jax.train.prediction import compile_predict, predict_split
from affect_jax.train.progress import Clock, RunLog
from affect_jax.train.signals import Interrupted, ended_by_signals, stop_request
from affect_jax.train.state import create_state, describe_parameters, make_apply, run_once
from affect_jax.train.steps import LAST_STEP_VALUES, make_train_steps

CALIBRATION_IMAGES = 512
"""Training images on which the statistics of weights with folded BatchNorm are measured."""


class Dispatch(NamedTuple):
    """Training steps that one call to the device computes; the call may still be running."""

    first_step: int
    indices: np.ndarray
    """int32 [steps, B], this process's rows."""
    sums: dict[str, jax.Array]


class BestEvaluation(NamedTuple):
    """The best evaluation on val so far."""

    step: int
    predictions: Any


class Trainer:
    """Trains a network as a config says: builds all parts, restores a checkpoint, trains to the end.

    `plan` has the steps of the run, and `step` is the number of steps done. `best` is the best evaluation that this
    process computed. Nothing is written to disk before `train`. ValueError if the config does not fit the data, the
    devices or the pretrained weights.
    """

    def __init__(self, config: ConfigDict, task: Task, pretrained: Pretrained | None = None):
        self.config, self.task, self.mesh = config, task, data_mesh()
        train_split = task.open_split("train")
        check_batch_size(config, self.mesh.size, len(train_split))
        self.data = task.data_facts(train_split)
        self.validation = task.evaluation("val")
        self.data_description = task.describe(train_split, self.validation)

        num_examples = task.examples_per_epoch(train_split)
        self.plan = plan_steps(config, num_examples)

        # Separate keys: a change of the initial weights does not change the augmentation.
        init_key, self.step_key = jax.random.split(jax.random.key(config.seed))
        self.model = task.build_network(self.data)
        inputs = task.network_inputs(self.data)
        variables = builders.build_variables(config, self.model, init_key, inputs, pretrained, self.data.class_names)
        if pretrained is not None and pretrained.folded:
            images = task.normalized_images(train_split, CALIBRATION_IMAGES)
            variables = calibrate_batch_norm(self.model, variables, images, pretrained.values)
        self.schedule = builders.build_schedule(config, num_examples)
        self.optimizer = builders.build_optimizer(config, self.schedule, self.plan.thaw_step)
        # in one program: outside of one, every shape of a parameter would be compiled by itself
        state = run_once(lambda variables: create_state(variables, self.optimizer, config.ema_decay > 0), variables)
        self.state = jax.device_put(state, replicated(self.mesh))
        self.step, self.clock, self.best, self.has_evaluated = 0, Clock({}), None, False

        builders.check_selections(config, variables)
        frozen = builders.build_frozen(config)
        # While parameters are frozen another step runs, which computes no gradient for them.
        self.steps_frozen, self.steps_free = self.build_train_steps(frozen), self.build_train_steps(None)
        self.programs = {}
        self.predict = compile_predict(task.predict_fn(make_apply(self.model), self.data), self.mesh)

        self.steps_per_dispatch = task.steps_per_dispatch(train_split)
        processes = jax.process_index(), jax.process_count()
        self._reading, shapes, self.batches = task.training_data(train_split, self.plan.total_steps, *processes)
        self.example_shapes = jax.tree.map(lambda x: x.update(sharding=replicated(self.mesh)), shapes)

    @cached_property
    def examples(self) -> Batch | None:
        """Training split on the devices; None if batches are streamed. The first access waits until it is read."""
        reading, self._reading = self._reading, None  # frees the arrays on the host
        return None if reading is None else to_devices(reading.result(), replicated(self.mesh))

    def build_train_steps(self, frozen: Selects | None):
        """Build the jitted function of several training steps."""
        parts = self.config, self.task, self.model, self.data, self.optimizer
        train_step = builders.build_train_step(*parts, frozen)
        # The state that comes out goes in again: with the same layout it fits the compiled program.
        return jax.jit(make_train_steps(train_step), donate_argnums=0, out_shardings=replicated(self.mesh))

    def describe(self) -> str:
        """Return a description of the run: config, parameters, devices, data and steps."""
        config, device = self.config, self.mesh.devices.flat[0]
        devices = f"{self.mesh.size} x {device.device_kind} ({device.platform})"
        return "\n".join(
            [
                describe_config(config),
                describe_parameters({"params": self.state.params}),
                f"devices: {devices}, {jax.process_count()} process(es)",
                *self.data_description,
                f"{self.plan.total_steps} steps, {config.total_epochs} epochs",
            ]
        )

    def restore(self, checkpoints: Checkpoints) -> None:
        """Continue from the newest checkpoint: state, data iterator and clock."""
        self.step = checkpoints.newest
        self.state, seconds = checkpoints.restore(self.step, self.state, self.batches)
        self.clock = Clock(seconds)

    def train(self, checkpoints: Checkpoints, log: RunLog, keep_best: Callable[[BestEvaluation], None]) -> None:
        """Train up to the last step, with evaluations and checkpoints on the way.

        `keep_best` is called with every evaluation that is the best so far. Raises Interrupted after a signal, with
        everything saved, FloatingPointError if loss, gradient or weights are not finite, and OSError if something
        cannot be read or written.
        """
        self.clock.begin()
        running: list[Dispatch] = []  # dispatched since the last log line
        due: list[Dispatch] = []  # logged after the next dispatch, so that the device never waits for the log
        with stop_request() as stop:
            while self.step < self.plan.total_steps:
                running.append(self.dispatch(log))
                if len(running) > 1:  # one dispatch waits behind the one that runs: a stop waits for all dispatched
                    jax.block_until_ready(running[-2].sums)
                if due:
                    checkpoints.check()
                    self.log_steps(due, log)
                    due = []
                if self.step % self.config.log_every_steps == 0:
                    running, due = [], running
                evaluating, stopping = self.step in self.plan.eval_steps, stop.is_due_after(self.step)
                if not (evaluating or stopping):
                    continue
                if due or running:
                    self.log_steps(due + running, log)  # also checks that what is saved is finite
                    running, due = [], []
                with self.clock.paused():
                    metrics = self.evaluate(checkpoints, log, keep_best) if evaluating else None
                    checkpoints.save(self.step, self.state, self.batches, self.clock.seconds, metrics)
                if stopping:
                    break
        checkpoints.wait()
        if self.step < self.plan.total_steps:
            message = f"stopped after step {self.step} of {self.plan.total_steps}; rerun the command to resume"
            raise Interrupted(message, stop.signal)

    def dispatch(self, log: RunLog) -> Dispatch:
        """Start the steps up to the next boundary, at most `steps_per_dispatch`, without waiting for them."""
        next_boundary = self.plan.boundaries[bisect_right(self.plan.boundaries, self.step)]
        count = min(self.steps_per_dispatch, next_boundary - self.step)
        batches, indices = take_batches(self.batches, count, self.steps_per_dispatch, self.mesh)
        train_steps = self.steps_frozen if self.step < self.plan.thaw_step else self.steps_free
        rest = batches, jnp.int32(count), self.step_key
        program = train_steps, tuple((name, array.shape) for name, array in batches.items())
        if program not in self.programs:
            self.programs[program] = self.compile(train_steps, rest, log)
        with self.clock.paused():
            examples = self.examples
        self.state, sums = self.programs[program](self.state, examples, *rest)
        dispatch = Dispatch(self.step, indices, sums)
        self.step += count
        return dispatch

    def compile(self, train_steps, arguments: tuple, log: RunLog):
        """Compile training steps for arguments of these shapes, or load the program from the cache."""
        jax.block_until_ready(self.state)  # steps that still run count as training, not as compilation
        nothing_to_save, before = not self.programs, self.clock.seconds["compile_seconds"]
        end = ended_by_signals() if nothing_to_save else nullcontext(False)
        with self.clock.compiling(), end as ends_at_once:
            log.say("compiling the training step" + (", Ctrl-C ends this at once" if ends_at_once else ""))
            compiled = train_steps.lower(self.state, self.example_shapes, *arguments).compile()
        log.say(f"compiled (or loaded from cache) in {self.clock.seconds['compile_seconds'] - before:.1f} s")
        return compiled

    def log_steps(self, dispatches: list[Dispatch], log: RunLog) -> None:
        """Fetch the sums of dispatched steps, check that they are finite, log their means."""
        sums = [jax.device_get(dispatch.sums) for dispatch in dispatches]
        for dispatch, sums_of_one in zip(dispatches, sums, strict=True):
            check_finite(dispatch, sums_of_one)
        not_totals = {*LAST_STEP_VALUES, "steps"}
        totals = {name: sum(one[name] for one in sums) for name in sums[0] if name not in not_totals}
        last = dispatches[-1].first_step + len(dispatches[-1].indices)
        # The rate is since the last line, not since the start: one slow hour would distort all later rates.
        steps_per_second = sum(len(dispatch.indices) for dispatch in dispatches) / self.clock.lap()
        count = totals.pop("count")
        metrics = {
            **{f"train/{name}": float(total / count) for name, total in totals.items()},
            **{f"train/{name}": float(sums[-1][name]) for name in LAST_STEP_VALUES if name != "finite"},
            "train/learning_rate": float(self.schedule(last - 1)),
            "train/images_per_second": steps_per_second * self.config.batch_size,
            **self.clock.seconds,
        }
        log.training(last, metrics, seconds_left=(self.plan.total_steps - last) / steps_per_second)

    def evaluate(
        self, checkpoints: Checkpoints, log: RunLog, keep_best: Callable[[BestEvaluation], None]
    ) -> dict[str, float]:
        """Evaluate on val, log the metrics, and keep the predictions if they are the best so far."""
        if not self.has_evaluated:
            log.say("compiling the evaluation")
            self.has_evaluated = True
        predictions = self.predict_val(self.state.eval_variables)
        metrics = self.task.scalars(self.task.metrics(predictions, self.validation, intervals=False))
        best = checkpoints.is_best(metrics)
        log.evaluation(self.step, {**metrics, **self.clock.seconds}, best)
        if best:
            self.best = BestEvaluation(self.step, predictions)
            keep_best(self.best)
        return metrics

    def predict_val(self, variables: dict):
        """Return the predictions on val."""
        return predict_split(self.predict, variables, self.task, self.validation, self.mesh)

    def close(self) -> None:
        """Stop reading batches."""
        self.batches.close()


def describe_config(config: ConfigDict) -> str:
    """Return network, data set and seed, then the fields that differ from their defaults, one per line."""
    data, fields = config.data, differing_fields(default_config(config.task).to_dict(), config.to_dict())
    lines = [f"{config.model.name} on {data.name} in {data.data_dir}, seed {config.seed}; changed fields:"]
    return "\n".join([*lines, *(f"  {name} = {new!r}" for name, _, new in fields)])


def check_batch_size(config: ConfigDict, num_devices: int, num_examples: int) -> None:
    """Raise ValueError if a batch cannot be split evenly over the devices, or is larger than the training split."""
    if config.batch_size > num_examples:
        raise ValueError(
            f"batch_size is {config.batch_size}, but train has only {num_examples} images; set a smaller one"
            " with --config.batch_size=N"
        )
    if config.batch_size % (config.accumulate_steps * num_devices):
        parts = f" in {config.accumulate_steps} parts" if config.accumulate_steps > 1 else ""
        raise ValueError(
            f"batch_size is {config.batch_size}, which cannot be split evenly over {num_devices} devices{parts};"
            " change one of them"
        )


def take_batches(
    iterator: BatchIterator, count: int, capacity: int, mesh: Mesh
) -> tuple[dict[str, jax.Array], np.ndarray]:
    """Return the next `count` batches on the devices, padded to [capacity, B, ...], and their indices [count, B]."""
    try:
        batches = list(itertools.islice(iterator, count))
    except RuntimeError as error:  # raised by grain if a worker was killed
        raise ChildProcessError(
            f"the next batch could not be read: {error} The system kills processes when memory is short: free memory,"
            " then rerun the command to resume from the newest checkpoint. A new run can use fewer data.num_workers."
        ) from error
    indices = np.stack([batch["index"] for batch in batches])
    batches += [batches[-1]] * (capacity - count)
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    return to_devices(stacked, split_over_devices(mesh, axis=1)), indices


def check_finite(dispatch: Dispatch, sums: dict[str, np.ndarray]) -> None:
    """Raise FloatingPointError, in every process, if a step was not finite; name the step, its losses and examples."""
    if sums["finite"] > 0:
        return
    at = int(sums["steps"]) - 1
    indices = np.ravel(multihost_utils.process_allgather(dispatch.indices[at]))
    if np.isfinite(sums["loss"]) and np.isfinite(sums["grad_norm"]):
        raise FloatingPointError(
            f"the weights after step {dispatch.first_step + at + 1} are not finite, although its loss and its gradient"
            f" (norm {sums['grad_norm']}) are: lower optim.learning_rate or set optim.clip_norm"
        )
    losses = ", ".join(f"{name} {sums[name]}" for name in sorted(sums) if name.startswith("loss"))
    raise FloatingPointError(
        f"step {dispatch.first_step + at + 1} is not finite: {losses} (summed over {int(sums['count'])} examples),"
        f" gradient norm {sums['grad_norm']}; its examples have the indices"
        f" {np.array2string(indices, separator=', ', max_line_width=110)}."
        " The last checkpoint is from an earlier step. Check these examples, lower optim.learning_rate or set"
        " optim.clip_norm."
    )
