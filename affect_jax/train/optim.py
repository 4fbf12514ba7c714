"""Optimizers and learning-rate schedules by name."""

from collections.abc import Sequence

import jax
import optax

from affect_jax.names import path_name, selects


def make_schedule(
    name: str,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
    boundaries: tuple[int, ...] = (),
    factor: float = 0.1,
) -> optax.Schedule:
    """Learning rate by step, rising linearly over `warmup_steps` to its peak `learning_rate` and then, by name:

    "constant"; "cosine" down to final_fraction of the peak; "linear", linearly down to it; "step", times `factor` at
    each of `boundaries`. Past total_steps the last value stays.
    """
    decay_steps = max(1, total_steps - warmup_steps)
    final = learning_rate * final_fraction
    after = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, decay_steps, alpha=final_fraction),
        "linear": lambda: optax.linear_schedule(learning_rate, final, decay_steps),
        "step": lambda: optax.piecewise_constant_schedule(
            learning_rate, {boundary - warmup_steps: factor for boundary in boundaries}
        ),
    }[name]()
    if warmup_steps == 0:
        return after
    # the first update already moves: its rate is one step up the ramp
    ramp = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, max(1, warmup_steps - 1))
    return optax.join_schedules([ramp, after], [warmup_steps])


def decays(params) -> dict:
    """True for the parameters that weight decay shrinks: kernels, not biases, not BatchNorm's scale."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def multiply_rates(multipliers: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Updates times the factor of the first (regex, factor) whose regex matches the parameter's whole name, else 1."""
    factors = [(selects([pattern]), factor) for pattern, factor in multipliers]

    def factor_of(path) -> float:
        return next((factor for selected, factor in factors if selected(path_name(path))), 1.0)

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(lambda path, u: u * factor_of(path), updates)
    )


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    multipliers: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformation:
    """The optimizer called `name`.

    "sgd" has Nesterov's momentum and adds weight_decay * kernel to the gradient; "adamw" decays beside the gradient
    (Loshchilov and Hutter 2019, arXiv 1711.05101); "adam" does not decay. clip_norm bounds the gradient's global norm
    first; 0 leaves it. `multipliers` scale the rates of single parameters: see multiply_rates.
    """
    rule = {
        "adam": lambda: optax.adam(schedule),
        "adamw": lambda: optax.adamw(schedule, weight_decay=weight_decay, mask=decays),
        "sgd": lambda: optax.chain(
            optax.add_decayed_weights(weight_decay, mask=decays), optax.sgd(schedule, momentum, nesterov=True)
        ),
    }[name]()
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm > 0 else []
    scale = [multiply_rates(multipliers)] if multipliers else []
    return optax.chain(*clip, rule, *scale)
