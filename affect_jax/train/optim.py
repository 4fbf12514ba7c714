"""Optimizers and learning-rate schedules by name."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from affect_jax.names import Selects, path_name, selects


def make_schedule(
    name: str,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
    boundaries: tuple[int, ...] = (),
    factor: float = 0.1,
) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up over `warmup_steps` to the peak `learning_rate`, then by name:

    "constant": the peak. "cosine": cosine decay to final_fraction of the peak. "linear": linear decay to it. "step":
    times `factor` at each of `boundaries`; two boundaries at one step apply the factor twice.
    The last value continues after total_steps.
    """
    decay_steps = max(1, total_steps - warmup_steps)
    final = learning_rate * final_fraction
    drops = {boundary - warmup_steps: factor ** boundaries.count(boundary) for boundary in boundaries}
    after = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, decay_steps, alpha=final_fraction),
        "linear": lambda: optax.linear_schedule(learning_rate, final, decay_steps),
        "step": lambda: optax.piecewise_constant_schedule(learning_rate, drops),
    }[name]()
    if warmup_steps == 0:
        return after
    # the first step already has 1 / warmup_steps of the peak, not 0
    ramp = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, max(1, warmup_steps - 1))
    return optax.join_schedules([ramp, after], [warmup_steps])


def decays(params) -> dict:
    """Return True for the parameters that weight decay shrinks: kernels, not biases, not BatchNorm's scale."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def multiply_rates(multipliers: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiply each update by the factor of the first (regex, factor) that matches the parameter's whole name, or 1."""
    factors = [(selects([pattern]), factor) for pattern, factor in multipliers]

    def factor_of(path) -> float:
        return next((factor for selected, factor in factors if selected(path_name(path))), 1.0)

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(lambda path, u: u * factor_of(path), updates)
    )


ADAM_DECAYS = (0.9, 0.999)
"""Decays of Adam's moments."""


def scale_by_adam(frozen: Selects | None = None, thaw_step: int = 0) -> optax.GradientTransformation:
    """Return optax.scale_by_adam for parameters of which hold_frozen holds the `frozen` ones until `thaw_step`.

    Until then their moments are zero, so their bias correction counts steps from there.
    """
    rule = optax.scale_by_adam(*ADAM_DECAYS)
    if frozen is None:
        return rule

    def correction(steps):
        first, second = (1.0 - decay**steps for decay in ADAM_DECAYS)
        return jnp.sqrt(second) / first

    def update(gradients, state, params=None):
        updates, state = rule.update(gradients, state, params)
        factor = correction(jnp.maximum(state.count - thaw_step, 1)) / correction(state.count)
        return (
            jax.tree_util.tree_map_with_path(lambda path, u: u * factor if frozen(path_name(path)) else u, updates),
            state,
        )

    return optax.GradientTransformation(rule.init, update)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    multipliers: Sequence[tuple[str, float]] = (),
    frozen: Selects | None = None,
    thaw_step: int = 0,
) -> optax.GradientTransformation:
    """Return the optimizer called `name`.

    "sgd" has `momentum`, Nesterov's if `nesterov`, and adds weight_decay * kernel to the gradient. "adamw" decouples
    weight decay from the gradient (Loshchilov and Hutter 2019, arXiv:1711.05101). "adam" has no weight decay.
    clip_norm limits the global norm of the gradient first; 0 is no limit. `multipliers` scale the learning rates of
    single parameters: see multiply_rates. `frozen` and `thaw_step` are for parameters that are held at first: see
    scale_by_adam.
    """
    rate, decay = optax.scale_by_learning_rate(schedule), optax.add_decayed_weights(weight_decay, mask=decays)
    rule = {
        "adam": lambda: optax.chain(scale_by_adam(frozen, thaw_step), rate),
        "adamw": lambda: optax.chain(scale_by_adam(frozen, thaw_step), decay, rate),
        "sgd": lambda: optax.chain(decay, optax.sgd(schedule, momentum, nesterov)),
    }[name]()
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm > 0 else []
    scale = [multiply_rates(multipliers)] if multipliers else []
    return optax.chain(*clip, rule, *scale)


def hold_frozen(tx: optax.GradientTransformation, frozen: Selects) -> optax.GradientTransformation:
    """Return `tx` with zero updates for the `frozen` parameters, whose optimizer state (momentum) stays as well.

    The state has the same structure as that of `tx`, so that training can continue with `tx` itself.
    """

    def update(gradients, state, params):
        is_frozen = jax.tree_util.tree_map_with_path(lambda path, _: frozen(path_name(path)), params)
        structure = jax.tree.structure(params)

        def hold(new, old):
            return jax.tree.map(lambda fixed, new, old: old if fixed else new, is_frozen, new, old)

        def is_per_parameter(part) -> bool:
            return jax.tree.structure(part) == structure

        updates, new_state = tx.update(gradients, state, params)
        new_state = jax.tree.map(
            lambda new, old: hold(new, old) if is_per_parameter(new) else new,
            new_state,
            state,
            is_leaf=is_per_parameter,
        )
        return hold(updates, jax.tree.map(jnp.zeros_like, updates)), new_state

    return optax.GradientTransformation(tx.init, update)
