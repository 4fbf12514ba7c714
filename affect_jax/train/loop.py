"""The run: from a config and a folder to a trained, evaluated, reported model."""

import itertools
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from affect_jax.config import epochs_to_steps, validate
from affect_jax.names import Selects, selects
from affect_jax.train import builders, workdir
from affect_jax.train.checkpoint import set_aside_damaged
from affect_jax.train.evaluation import evaluate_run
from affect_jax.train.mesh import data_mesh, replicated, split_over_devices, to_devices
from affect_jax.train.progress import Clock, Progress
from affect_jax.train.signals import Interrupted, stop_request
from affect_jax.train.state import create_state, describe_parameters, make_apply
from affect_jax.train.steps import make_train_step, make_train_steps
from affect_jax.train.tasks import build_task
from affect_jax.train.writers import JsonlWriter, tensorboard_writer

OF_THE_LAST = ("grad_norm", "finite", "updates")
"""What of an update's sums is no total over examples."""


@dataclass
class Dispatch:
    """A call to the device that may still be running: what it took and what it will give."""

    first_step: int
    indices: np.ndarray  # [updates, B], this process' rows
    sums: dict[str, jax.Array]


def train_and_evaluate(config: ConfigDict, path: str | Path) -> dict[str, float]:
    """Run `config` in the folder `path`, or go on with the run there; returns the best checkpoint's metrics, "val/...".

    Raises ValueError on a config that cannot be run and a folder that another run is in, Interrupted when a signal
    asked to stop (all is saved then), FloatingPointError when the loss, the gradient or the weights are not finite, and
    OSError when something could not be read or written. Whatever it was, the same call goes on from what is saved.
    """
    with ExitStack() as held:
        return run_in(held, config, path)


def run_in(held: ExitStack, config: ConfigDict, path: str | Path) -> dict[str, float]:
    """train_and_evaluate; what it opens, it leaves to `held` to close."""
    validate(config)
    mesh = data_mesh()
    check_batch_sizes(config, mesh.size)
    say = print_now if jax.process_index() == 0 else lambda line: None

    task = build_task(config)

    # one seed, three streams: what draws the weights does not draw the order or the augmentation
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    num_classes, inputs = len(task.data_facts.class_names), builders.network_inputs(config, task.data_facts.image_shape)
    model = builders.build_network(config, num_classes)
    schedule = builders.build_schedule(config, task.num_examples)
    tx = builders.build_optimizer(config, schedule)
    variables = builders.build_variables(config, model, init_key, inputs)
    state = jax.device_put(create_state(variables, tx, config.ema_decay > 0), replicated(mesh))

    total_steps = epochs_to_steps(config.total_epochs, task.num_examples, config.batch_size)
    eval_steps = evaluation_steps(config, task.num_examples, total_steps)
    steps_per_epoch = task.num_examples / config.batch_size
    evaluate = task.evaluator(make_apply(model), mesh)

    def jitted_steps(frozen: Selects | None):
        loss_fn = builders.build_loss_fn(config, make_apply(model, frozen), num_classes)
        train_step = make_train_step(loss_fn, tx, step_key, config.accumulate_steps, config.ema_decay, frozen=frozen)
        # what comes out goes in again: laid out in the same way, it fits the compiled program
        return jax.jit(make_train_steps(train_step), donate_argnums=0, out_shardings=replicated(mesh))

    # while some parameters are frozen the step is another one, that spends nothing on them
    frozen = selects(config.optim.freeze) if config.optim.freeze else None
    thaw_step = epochs_to_steps(config.optim.freeze_epochs, task.num_examples, config.batch_size) or total_steps
    steps_frozen, steps_free = jitted_steps(frozen), jitted_steps(None)
    examples, iterator = task.batches(total_steps, mesh)
    held.callback(iterator.close)

    run = workdir.Workdir(path)
    held.enter_context(workdir.only_run(run))
    workdir.claim(run, config, task.data_facts)  # nothing is written before all has been built
    for line in set_aside_damaged(run.checkpoints):
        say(line)
    checkpoints = builders.build_checkpoints(config, run)
    held.callback(checkpoints.close)
    step, seconds = 0, {}
    if checkpoints.newest is not None:
        step = checkpoints.newest
        state, seconds = checkpoints.restore(step, state, iterator)
        say(f"going on behind update {step}")
    elif run.history.exists():
        say("the run there has no checkpoint yet: starting again with the first update")

    say(first_screen(config, run, variables, mesh, task, total_steps))
    writers = []
    if jax.process_index() == 0:
        writers = [JsonlWriter(run.history, step), tensorboard_writer(run.path, step)]
    held.callback(close_writers, writers)
    progress = Progress(total_steps, steps_per_epoch, task.SHOWN, say)
    clock, programs = Clock(seconds), {}

    def write(step: int, metrics: dict[str, float]) -> None:
        for writer in writers:
            writer.write_scalars(step, {"epoch": step / steps_per_epoch, **metrics})
            writer.flush()

    def report(dispatches: list[Dispatch]) -> None:
        """Fetch the sums of finished updates, check that they are finite, write their means."""
        sums = [jax.device_get(dispatch.sums) for dispatch in dispatches]
        for dispatch, one in zip(dispatches, sums, strict=True):
            check_finite(dispatch, one)
        totals = {key: sum(one[key] for one in sums) for key in sums[0]}
        last = dispatches[-1].first_step + len(dispatches[-1].indices)
        # since the line before, not since the start: one slow hour would be in all later rates
        updates_per_second = sum(len(dispatch.indices) for dispatch in dispatches) / clock.lap()
        count = totals.pop("count")
        metrics = {
            **{f"train/{name}": float(totals[name] / count) for name in totals if name not in OF_THE_LAST},
            "train/grad_norm": float(sums[-1]["grad_norm"]),
            "train/learning_rate": float(schedule(last - 1)),
            "train/images_per_second": updates_per_second * config.batch_size,
            **clock.seconds,
        }
        write(last, metrics)
        progress.train_line(last, metrics, (total_steps - last) / updates_per_second)

    waiting: list[Dispatch] = []  # not reported yet
    overdue: list[Dispatch] = []  # to be reported once the next call is under way, so that the device never waits
    with stop_request() as stop:
        while step < total_steps:
            count = min(
                task.updates_at_once,
                next_multiple(step, config.log_every_steps) - step,
                min(later for later in eval_steps if later > step) - step,
                thaw_step - step if step < thaw_step else total_steps,
                total_steps - step,
            )
            batches, indices = take_batches(iterator, count, task, mesh)
            train_steps = steps_frozen if step < thaw_step else steps_free
            arguments = state, examples, batches, jnp.int32(count)
            program = train_steps, batches_shape(batches)
            if program not in programs:
                jax.block_until_ready(state)  # the update under way is training, not compilation
                with clock.compiling():
                    programs[program] = train_steps.lower(*arguments).compile()
                say(f"step compiled, or found so: {clock.seconds['compile_seconds']:.1f} s of compilation so far")
            state, sums = programs[program](*arguments)
            waiting.append(Dispatch(step, indices, sums))
            step += count
            if overdue:
                checkpoints.check()
                report(overdue)
                overdue = []
            if step % config.log_every_steps == 0:
                waiting, overdue = [], waiting
            evaluating, stopping = step in eval_steps, stop.holds_behind(step)
            if not evaluating and not stopping:
                continue
            if overdue or waiting:
                report(overdue + waiting)  # also the check that what is saved is finite
                waiting, overdue = [], []
            with clock.paused():
                metrics = evaluate(state.eval_variables) if evaluating else None
                if metrics:
                    write(step, {**metrics, **clock.seconds})
                    progress.eval_line(step, metrics, checkpoints.is_best(metrics))
                checkpoints.save(step, state, iterator, clock.seconds, metrics)
            if stopping:
                break
    checkpoints.wait()
    if step < total_steps:
        raise Interrupted(f"stopped behind update {step} of {total_steps}; the same command goes on", stop.signal)
    final = evaluate_run(run.path, "val")
    say(f"{run.report} shows the run; {run.path} holds its checkpoints and TensorBoard events")
    return task.scalars(final)


def close_writers(writers: list) -> None:
    """End writing; all that counts is flushed already, so that an error here would only hide another."""
    for writer in writers:
        with suppress(OSError):
            writer.close()


def check_batch_sizes(config: ConfigDict, num_devices: int) -> None:
    """ValueError where a batch does not split evenly over the devices."""
    for name in ("batch_size", "eval_batch_size"):
        if config[name] % num_devices:
            raise ValueError(f"{name} is {config[name]}, no multiple of the {num_devices} devices; change one of them")


def evaluation_steps(config: ConfigDict, num_examples: int, total_steps: int) -> set[int]:
    """The updates behind which val is evaluated: those nearest to each eval_every_epochs, and the last."""
    evaluations = int(config.total_epochs / config.eval_every_epochs)
    nearest = (
        epochs_to_steps(i * config.eval_every_epochs, num_examples, config.batch_size)
        for i in range(1, evaluations + 1)
    )
    return {min(step, total_steps) for step in nearest} | {total_steps}


def next_multiple(step: int, every: int) -> int:
    """The first multiple of `every` past `step`."""
    return (step // every + 1) * every


def take_batches(iterator, count: int, task, mesh) -> tuple[dict[str, jax.Array], np.ndarray]:
    """The next `count` batches on the devices, filled up to [task.updates_at_once, B, ...]; and their indices."""
    try:
        batches = [task.local_batch(batch) for batch in itertools.islice(iterator, count)]
    except RuntimeError as error:  # grain's, of a worker that was ended
        raise ChildProcessError(
            f"the next batch was not read: {error} The system ends a process where memory is short, which fewer"
            " data.num_workers spare. The same command goes on from the newest checkpoint."
        ) from error
    indices = np.stack([batch["index"] for batch in batches])
    batches += [batches[-1]] * (task.updates_at_once - count)
    stacked = {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}
    return to_devices(stacked, split_over_devices(mesh, axis=1)), indices


def batches_shape(batches: dict[str, jax.Array]) -> tuple:
    """By what a compiled step differs from that for other batches."""
    return tuple((key, array.shape) for key, array in batches.items())


def check_finite(dispatch: Dispatch, sums: dict[str, np.ndarray]) -> None:
    """FloatingPointError, in every process, that names step, parts of the loss and examples of an update gone wrong."""
    if sums["finite"] > 0:
        return
    at = int(sums["updates"]) - 1
    indices = np.ravel(multihost_utils.process_allgather(dispatch.indices[at]))
    losses = ", ".join(f"{name} {sums[name]}" for name in sorted(sums) if name.startswith("loss"))
    raise FloatingPointError(
        f"update {dispatch.first_step + at + 1} is not finite: {losses} (summed over {int(sums['count'])} examples),"
        f" norm of the gradient {sums['grad_norm']}; its examples have the indices"
        f" {np.array2string(indices, separator=', ', max_line_width=110)}."
        " The last checkpoint is from before. Look at these examples, lower optim.learning_rate or set optim.clip_norm."
    )


def first_screen(config, run, variables, mesh, task, total_steps) -> str:
    """What is about to run: config, devices, parameters, shapes, steps."""
    device = mesh.devices.flat[0]
    return "\n".join(
        [
            str(config),
            describe_parameters(variables),
            f"devices: {mesh.size} x {device.device_kind} ({device.platform}), {jax.process_count()} process(es)",
            *task.describe(),
            f"{total_steps} updates, {config.total_epochs} epochs; workdir: {run.path}",
        ]
    )


def print_now(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)
