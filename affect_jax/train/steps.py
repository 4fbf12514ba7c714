"""Training steps: one step, and several steps per dispatch.

B batch, S steps in a dispatch, N examples of the split.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from affect_jax.names import Selects, path_name
from affect_jax.tasks.interface import Batch, LossFn, Sums
from affect_jax.train.optim import hold_frozen
from affect_jax.train.state import TrainState

TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Sums]]
"""(state, batch, key of the run) -> (state, sums); the key of a step is made from that of the run and its number."""
LAST_STEP_VALUES = ("grad_norm", "finite")
"""Values of a step of which several steps keep the last one; all others are added."""
Gradient = Callable[[TrainState, Batch, jax.Array], tuple[tuple[jax.Array, tuple[Any, Sums]], Any]]
"""(state, batch, key of the step) -> ((loss, (batch_stats, sums)), gradient of the loss with respect to params)."""


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    axis_name: str | None = None,
    frozen: Selects | None = None,
) -> TrainStep:
    """Return one training step: `train_step(state, batch, key) -> (state, sums)`.

    The batch is processed in `accumulate_steps` parts, whose gradients are added (BatchNorm sees the parts). `sums` are
    those of loss_fn, "loss", "grad_norm", and "finite", which is 1 if loss, gradient and new variables are finite.
    `axis_name` is for pmap and shard_map, where each device has its own rows. Parameters that are `frozen` do not
    change, and no gradient is computed for them. The key is an argument, so that all seeds share one compiled program.
    """
    rule = tx if frozen is None else hold_frozen(tx, frozen)

    def loss(params, *rest):
        return loss_fn(params if frozen is None else without_gradient(params, frozen), *rest)

    def gradient(state: TrainState, batch: Batch, key: jax.Array):
        return jax.value_and_grad(loss, has_aux=True)(state.params, state.batch_stats, batch, key)

    compute_gradient = gradient if accumulate_steps == 1 else accumulated(gradient, accumulate_steps)

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(key, state.step)
        (loss, (batch_stats, sums)), grads = compute_gradient(state, batch, key)
        if axis_name:
            loss, sums, grads = lax.psum((loss, sums, grads), axis_name)
        grads = jax.tree.map(lambda g: g / sums["count"], grads)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = rule.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = {"params": params, "batch_stats": batch_stats}
        ema = None if state.ema is None else update_average(state.ema, new, ema_decay, state.step)
        size = optax.tree.norm((params, batch_stats))  # a finite gradient can still overflow a weight
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(size)
        sums = {**sums, "loss": loss, "grad_norm": grad_norm, "finite": finite.astype(jnp.float32)}
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), sums

    return train_step


def accumulated(gradient: Gradient, parts: int) -> Gradient:
    """Return `gradient` computed in `parts` parts of the batch, one after the other, and added."""
    unroll = jax.default_backend() == "cpu"  # there XLA runs the body of a loop on one core

    def accumulated_gradient(state: TrainState, batch: Batch, key: jax.Array):
        # Every part has rows of all devices. In parts of neighbouring rows, each would be on some devices only, and XLA
        # would copy it to all of them.
        stacked = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add_part(carry, part):
            batch_stats, totals = carry
            index, batch = part
            (loss, (batch_stats, sums)), grads = gradient(
                state.replace(batch_stats=batch_stats), batch, jax.random.fold_in(key, index)
            )
            return (batch_stats, jax.tree.map(jnp.add, totals, (loss, sums, grads))), None

        first = jax.tree.map(lambda x: x[0], stacked)
        (loss, (_, sums)), grads = jax.eval_shape(gradient, state, first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, sums, grads))
        (batch_stats, (loss, sums, grads)), _ = lax.scan(
            add_part, (state.batch_stats, zeros), (jnp.arange(parts), stacked), unroll=unroll
        )
        return (loss, (batch_stats, sums)), grads

    return accumulated_gradient


def without_gradient(params, frozen: Selects):
    """Return the parameters such that no gradient is computed for the `frozen` ones."""

    def stop(path, p):
        return lax.stop_gradient(p) if frozen(path_name(path)) else p

    return jax.tree_util.tree_map_with_path(stop, params)


def update_average(average: dict, new: dict, decay: float, step: jax.Array) -> dict:
    """Return the moving average of the variables after step number `step`, from 0, which gave the `new` ones.

    In the first steps the average follows closely; otherwise the random initial weights would dominate it.
    """
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, value: decay * old + (1.0 - decay) * value, average, new)


def make_train_steps(train_step: TrainStep) -> Callable[..., tuple[TrainState, Sums]]:
    """Return up to S training steps in one call: `train_steps(state, examples, batches, count, key) -> (state, sums)`.

    `batches` are stacked, [S, B, ...]. Only the first `count` (int32 []) are used, so that one compilation serves every
    number of steps up to S. If `examples` is a whole split on the device, [N, ...], `batches` is {"index": [S, B]};
    otherwise `examples` is None. The loop ends after the first step that is not finite. `sums` are totals, except
    LAST_STEP_VALUES; "steps" is the number of steps done.
    """

    train_step = jax.jit(train_step, inline=True)  # traced once, not once for its shapes and once for the loop

    def batch_at(examples: Batch | None, batches: Batch, i: jax.Array) -> Batch:
        batch = jax.tree.map(lambda x: x[i], batches)
        return batch if examples is None else jax.tree.map(lambda x: x[batch["index"]], examples)

    def train_steps(state: TrainState, examples: Batch | None, batches: Batch, count: jax.Array, key: jax.Array):
        def unfinished(carry):
            _, sums = carry
            return (sums["steps"] < count) & (sums["finite"] > 0)

        def next_step(carry):
            state, totals = carry
            state, sums = train_step(state, batch_at(examples, batches, totals["steps"]), key)
            last = {name: sums.pop(name) for name in LAST_STEP_VALUES}
            added = {name: totals[name] + sums[name] for name in sums}
            return state, {**added, **last, "steps": totals["steps"] + 1}

        # with an array of the batch: a mere shape has no mesh, so that the step would be traced again in next_step
        _, shapes = jax.eval_shape(train_step, state, batch_at(examples, batches, jnp.int32(0)), key)
        zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
        start = {**zeros, "finite": jnp.float32(1), "steps": jnp.int32(0)}
        if jax.tree.leaves(batches)[0].shape[0] == 1:
            return next_step((state, start))  # on CPU, XLA runs the body of a loop thirty times slower (measured)
        return lax.while_loop(unfinished, next_step, (state, start))

    return train_steps
